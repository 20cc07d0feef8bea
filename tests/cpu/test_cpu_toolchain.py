from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest

from evotune.cpu.toolchain import code_bytes, find_compiler
from evotune.errors import Rejected, UsageError

CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="no cc on the PATH")


@pytest.fixture(autouse=True)
def _no_cc_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)


def tools_without_compilers(folder: Path) -> str:
    """A PATH with what compilers call, but no compiler under a name that is looked for."""
    folder.mkdir()
    for name in ("sh", "as", "ld", "sleep", "env"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def build_and_call(folder: Path) -> float:
    compiler = find_compiler(folder)
    source, library = folder / "half.c", folder / "half.so"
    source.write_text("#include <math.h>\ndouble half(double x) { return cos(x) / 2; }\n")
    compiler.compile(source, library, timeout_s=120)
    half = ctypes.CDLL(str(library)).half
    half.restype, half.argtypes = ctypes.c_double, [ctypes.c_double]
    return float(half(1.0))


@needs_cc
def test_the_compiler_on_the_path_makes_code_that_runs(tmp_path: Path) -> None:
    assert build_and_call(tmp_path) == pytest.approx(math.cos(1.0) / 2)
    compiler = find_compiler(tmp_path)
    assert CC is not None
    assert compiler.argv == (CC,)
    said = subprocess.run([CC, "--version"], capture_output=True, text=True, check=True).stdout
    assert compiler.version == said.splitlines()[0]


@needs_cc
def test_cc_in_the_environment_wins_and_may_carry_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{CC} -DX=1")
    assert find_compiler(tmp_path).argv == (CC, "-DX=1")


@pytest.mark.parametrize("chosen", ["/no/such/cc", "false"])
def test_a_chosen_compiler_that_does_not_work_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv("CC", chosen)
    with pytest.raises(UsageError, match="does not compile a test program"):
        find_compiler(tmp_path)


def test_without_a_compiler_the_message_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", tools_without_compilers(tmp_path / "bin"))
    monkeypatch.setattr("evotune.cpu.toolchain.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"apt-get install gcc .*pip install 'evotune\[cc\]'"):
        find_compiler(tmp_path)


@needs_cc
def test_the_zig_of_the_wheel_is_run_directly_with_a_cache_it_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the wheel: a package `ziglang` with a program `zig`."""
    caches = '-n "$ZIG_LOCAL_CACHE_DIR" -a -w "$ZIG_GLOBAL_CACHE_DIR"'
    zig = write_script(
        tmp_path / "site" / "ziglang" / "zig",
        f'test "$1" = cc -a {caches} || exit 9\nshift\nexec {CC} "$@"',
    )
    (zig.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PATH", tools_without_compilers(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build_and_call(tmp_path) == pytest.approx(math.cos(1.0) / 2)
    compiler = find_compiler(tmp_path)
    assert compiler.argv == (str(zig), "cc")
    assert compiler.version.startswith("zig cc, ")
    assert Path(compiler.environment["ZIG_GLOBAL_CACHE_DIR"]) == tmp_path / "cache" / "zig"
    assert Path(compiler.environment["ZIG_LOCAL_CACHE_DIR"]).parent == tmp_path


@pytest.mark.slow
def test_the_real_ziglang_wheel_works_when_no_compiler_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ziglang", reason="ziglang is not installed")
    monkeypatch.setenv("PATH", tools_without_compilers(tmp_path / "bin"))
    assert build_and_call(tmp_path) == pytest.approx(math.cos(1.0) / 2)


@needs_cc
def test_a_base_flag_that_the_compiler_does_not_know_is_dropped_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = 'for a; do test "$a" = -march=native && echo "error: unknown argument $a" && exit 1; done'
    monkeypatch.setenv("CC", str(write_script(tmp_path / "mycc", f'{refusing}\nexec {CC} "$@"')))
    compiler = find_compiler(tmp_path)
    assert "-march=native" not in compiler.flags
    assert "-march=native" in caplog.text


@needs_cc
def test_an_error_is_told_in_a_few_lines_without_paths(tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text("#include <nonsense.h>\n")
    compiler = find_compiler(tmp_path)
    with pytest.raises(Rejected, match=r"bad\.c:1:10: fatal error: nonsense\.h") as caught:
        compiler.compile(source, tmp_path / "bad.so", timeout_s=60)
    assert str(tmp_path) not in caught.value.reason
    source.write_text("int f(void) { return " + " + ".join(f"undeclared_{i}" for i in range(500)) + "; }\n")
    with pytest.raises(Rejected) as caught:
        compiler.compile(source, tmp_path / "bad.so", timeout_s=60)
    assert "undeclared_0" in caught.value.reason
    assert len(caught.value.reason) <= 400


@needs_cc
def test_code_bytes_agree_with_binutils(tmp_path: Path) -> None:
    size = shutil.which("size")
    if size is None:
        pytest.skip("no `size` of binutils on the PATH")
    compiler = find_compiler(tmp_path)
    found: list[int] = []
    for n in (1, 50):
        source, library = tmp_path / f"f{n}.c", tmp_path / f"f{n}.so"
        source.write_text("".join(f"double f{i}(double x) {{ return x * {i} + {i + 1}; }}\n" for i in range(n)))
        compiler.compile(source, library, timeout_s=60)
        listed = subprocess.run([size, "-A", str(library)], capture_output=True, text=True, check=True).stdout
        sections = {line.split()[0]: int(line.split()[1]) for line in listed.splitlines() if line.startswith(".")}
        executable = sum(sections.get(s, 0) for s in (".init", ".plt", ".plt.got", ".plt.sec", ".text", ".fini"))
        assert code_bytes(library) == executable
        found.append(executable)
    assert found[1] > found[0]
    (tmp_path / "text").write_text("not an ELF file")
    assert code_bytes(tmp_path / "text") is None
