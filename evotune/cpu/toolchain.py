"""A C compiler: where it is, which one it is, and how it is run."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from evotune.errors import Rejected, UsageError
from evotune.process import run_killable

_log = logging.getLogger(__name__)

NATIVE = "-march=native"
OPTIMISE = ("-std=gnu11", "-O3", "-w")
# Undefined names are an error when linking, not a crash when running. The clang in zig traps on
# undefined behaviour unless told not to, which the others do not.
SHARED = ("-fPIC", "-shared", "-fno-sanitize=undefined", "-Wl,-z,defs")
REASON_CHARS = 400
REASON_LINES = 4
_PROBE_TIMEOUT_S = 120.0  # zig builds its C library's stubs on first use: 3.5 s on two idle cores


@dataclass(frozen=True)
class Compiler:
    """A C compiler that has compiled, linked and optimised a test program here."""

    argv: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    """Given before a kernel's own, so that those win."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def compile(
        self,
        source: Path,
        library: Path,
        flags: Sequence[str] = (),
        *,
        timeout_s: float,
        stop: threading.Event | None = None,
    ) -> float:
        """Make a shared object; seconds that it took.

        Raises:
            Rejected: At stage ``compile``, with what the compiler said first, or for its time.
        """
        command = [*self.argv, *self.flags, *flags, *SHARED, "-o", str(library), str(source), "-lm"]
        done = run_killable(command, timeout_s, environment=self.environment, stop=stop)
        if done.returncode is None:
            was = "was stopped" if stop and stop.is_set() else f"took more than {timeout_s:g} s"
            raise Rejected("compile", f"the compiler {was}")
        if done.returncode != 0 or not library.is_file():
            raise Rejected("compile", _shorten(done.output, source) or f"exit status {done.returncode}")
        return done.seconds


def find_compiler(folder: Path) -> Compiler:
    """The compiler in ``$CC``, else ``cc``, ``gcc`` or ``clang`` on the path, else the ziglang wheel.

    Args:
        folder: Where probes are compiled. Compilers have their temporary files there, which one that is killed
            leaves behind, and one without a cache of its own keeps it there.

    Raises:
        UsageError: There is none, or it does not work; says how to get one.
    """
    problems: list[str] = []
    for argv, environment in _candidates(folder):
        try:
            return _probe(argv, {"TMPDIR": str(folder), **environment}, folder)
        except Rejected as rejected:
            problems.append(f"{shlex.join(argv)!r} does not compile a test program: {rejected.reason}")
    found = "; ".join(problems) or "none of cc, gcc and clang is on the PATH and $CC is not set"
    raise UsageError(
        f"the CPU target needs a C compiler: {found}. "
        "Get one with `apt-get install gcc libc6-dev` or `pip install 'evotune[cc]'`, or set CC"
    )


def _candidates(folder: Path) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    if chosen := os.environ.get("CC"):  # an explicit choice is not replaced in silence
        return [(tuple(shlex.split(chosen)), {})]
    found: list[tuple[tuple[str, ...], dict[str, str]]] = []
    found += [((path,), {}) for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    if zig := _zig():
        found.append(((zig, "cc"), _zig_caches(folder)))
    return found


def _zig() -> str | None:
    spec = find_spec("ziglang")
    for place in (spec and spec.submodule_search_locations) or ():
        # Run directly: `python -m ziglang` would start an interpreter for every configuration.
        if (binary := Path(place) / "zig").is_file():
            return str(binary)
    return None


def _zig_caches(folder: Path) -> dict[str, str]:
    """Objects of our sources go with ``folder``; C library stubs stay for the next run if they can."""
    caches = {"ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    lasting = Path(os.environ.get("ZIG_GLOBAL_CACHE_DIR") or home / "zig")
    try:
        lasting.mkdir(parents=True, exist_ok=True)
        usable = os.access(lasting, os.W_OK)
    except OSError:
        usable = False
    caches["ZIG_GLOBAL_CACHE_DIR"] = str(lasting if usable else folder / "zig")
    return caches


def _probe(argv: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> Compiler:
    """A compiler with the base flags that it takes."""
    if shutil.which(argv[0]) is None:
        raise Rejected("compile", "no such program")
    source, library = folder / "probe.c", folder / "probe.so"
    source.write_text("#include <math.h>\ndouble probe(double x) { return sqrt(x); }\n")
    compiler = Compiler(argv, _version(argv, environment), (*OPTIMISE, NATIVE), environment)
    try:
        compiler.compile(source, library, timeout_s=_PROBE_TIMEOUT_S)
    except Rejected:
        # Clang has no -march=native on some architectures; anything else fails again and is told.
        compiler = Compiler(argv, compiler.version, OPTIMISE, environment)
        compiler.compile(source, library, timeout_s=_PROBE_TIMEOUT_S)
        _log.warning("%s does not take %s; compiling without", shlex.join(argv), NATIVE)
    return compiler


def _version(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    done = run_killable([*argv, "--version"], _PROBE_TIMEOUT_S, environment=environment)
    first = next(iter(done.output.splitlines()), "").strip()
    return f"zig cc, {first}" if Path(argv[0]).name == "zig" else first or shlex.join(argv)


def _shorten(output: str, source: Path) -> str:
    """The lines that name an error, or else the first, without this run's paths."""
    lines = [line.strip() for line in output.replace(str(source), source.name).splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|undefined|fatal|unknown|not found)\b", line)]
    text = " | ".join((errors or lines)[:REASON_LINES]).replace(f"{source.parent}/", "")
    return text if len(text) <= REASON_CHARS else f"{text[: REASON_CHARS - 1]}…"


def code_bytes(library: Path) -> int | None:
    """Bytes of machine code in a 64-bit little-endian ELF file; None for anything else."""
    data = library.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry_bytes, entries = struct.unpack_from("<HH", data, 0x3A)
    total = 0
    for i in range(entries):
        # Section header: name, type, flags, address, offset, size (System V ABI, figure 4-8).
        _, _, flags, _, _, size = struct.unpack_from("<IIQQQQ", data, table + i * entry_bytes)
        total += size if flags & 0x4 else 0  # SHF_EXECINSTR
    return total
