"""The jail under Monty: every layer is attacked, and shown to be the one that held."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from evotune.program import Sandbox, jail
from evotune.space import ConfigSpace

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is made of Linux's parts")
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
PROGRAM = Path("/bin/true").resolve()
SPACE = ConfigSpace.from_dict({"x": [1, 2]})
T = TypeVar("T")


def probe(layers: tuple[str, ...]) -> jail._Report:
    call = jail._call("probe(lambda: lock({0}), {1!r})", layers, PROGRAM, sys.executable)
    with jail.in_memory(jail._text("launcher", "probe", call=call)) as script:
        return jail._run_probe(script)


def python(code: str, path: str = sys.executable, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [path, "-c", code]
    return subprocess.run(
        command, text=True, capture_output=True, cwd=REPOSITORY, timeout=60, check=False, **options
    )


def test_every_layer_is_proven_here_or_the_reason_is_told() -> None:
    built = jail.build(PROGRAM)
    built.script.close()
    assert set(built.layers) | set(built.unproven) == set(jail.LAYERS)
    if not built.unproven:
        assert all(all(worked.values()) for worked in probe(jail.LAYERS).before.values())


def landlock_version() -> int:
    """What this kernel has of it; below 1: nothing."""
    create_ruleset, version = 444, 1  # include/uapi/asm-generic/unistd.h and linux/landlock.h
    return ctypes.CDLL(None).syscall(create_ruleset, None, 0, version)


# What the kernel says of itself. The other tests skip what the jail finds missing, also by a fault of its own.
OFFERED = {
    "limits": lambda: True,
    "landlock": lambda: landlock_version() >= 1,
    "seccomp": Path("/proc/sys/kernel/seccomp/actions_avail").exists,
}


@pytest.mark.parametrize("layer", jail.LAYERS)
def test_a_layer_that_the_kernel_offers_is_proven(layer: str) -> None:
    if not OFFERED[layer]():
        pytest.skip(f"this kernel has no {layer}")
    built = jail.build(PROGRAM)
    built.script.close()
    assert layer in built.layers
    assert layer not in built.unproven


@pytest.mark.parametrize("left_out", jail.LAYERS)
def test_what_a_layer_forbids_is_possible_without_it(left_out: str) -> None:
    needs_all_layers()
    others = tuple(name for name in jail.LAYERS if name != left_out)
    report = probe(others)
    assert all(report.after[left_out].values())
    assert not any(worked for name in others for worked in report.after[name].values())
    assert left_out in jail._judge(report)
    assert report.escaped == (left_out == "landlock")


def report(before: bool = True, after: bool = False, escaped: bool = False) -> jail._Report:
    outcome = [{layer: {"attack": worked} for layer in jail.LAYERS} for worked in (before, after)]
    return jail._Report(*outcome, failed={}, escaped=escaped)


@pytest.mark.parametrize(
    ("seen", "unproven"),
    [
        (report(), []),
        (report(before=False), [*jail.LAYERS]),  # what is impossible anyway proves nothing
        (report(after=True), [*jail.LAYERS]),
        (report(escaped=True), ["landlock"]),
    ],
)
def test_a_layer_counts_if_it_alone_made_the_attack_fail(seen: jail._Report, unproven: list[str]) -> None:
    assert list(jail._judge(seen)) == unproven


@pytest.mark.parametrize("machine", jail.SYSTEM_CALLS)
def test_the_table_of_system_calls_agrees_with_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]}")
    text = HEADERS[machine].read_text()
    numbers = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    aliases = {"newfstatat": "fstatat"} if machine == "aarch64" else {}
    _, calls = jail.SYSTEM_CALLS[machine]
    wanted = {**calls, "clone": jail.CLONE[machine]}
    if "clone3" in numbers:
        wanted["clone3"] = jail.CLONE3
    assert wanted == {name: numbers[aliases.get(name, name)] for name in wanted}


def simulate(code: bytes, machine: str, number: int, argument: int = 0) -> int:
    """What a classic BPF machine returns for a system call."""
    data = struct.pack("=IIQQ", number, jail.SYSTEM_CALLS[machine][0], 0, argument)
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, k = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x15:
            at += if_true if accumulator == k else if_false
        elif operation == 0x45:
            at += if_true if accumulator & k else if_false
        else:
            return k


@pytest.mark.parametrize("machine", jail.SYSTEM_CALLS)
def test_the_filter_lets_through_its_table_and_threads_only(machine: str) -> None:
    code = jail.filter_code(machine)
    allowed = {n for n in range(1024) if simulate(code, machine, n) == jail.ALLOW}
    assert allowed == set(jail.SYSTEM_CALLS[machine][1].values())
    assert simulate(code, machine, jail.CLONE[machine], jail.CLONE_THREAD) == jail.ALLOW
    assert simulate(code, machine, jail.CLONE3) == jail.ERRNO | jail.ENOSYS
    # The other numbering of x86-64 (x32) reaches the same calls.
    assert simulate(code, machine, 0x40000000) == jail.ERRNO | jail.EPERM


def test_calls_of_another_architecture_kill() -> None:
    assert simulate(jail.filter_code("x86_64"), "aarch64", 63) == jail.KILL
    assert simulate(jail.filter_code("aarch64"), "x86_64", 0) == jail.KILL


RUN = """
import logging
logging.basicConfig(level="WARNING")
from evotune.errors import UsageError
from evotune.program import Sandbox
from evotune.space import ConfigSpace
{before}
space = ConfigSpace.from_dict({{"x": [1, 2]}})
try:
    with Sandbox({isolation!r}) as box:
        print(box.run("def get_kernel_config():\\n    return {{'x': 2}}", space), *box.protection().proven)
except UsageError as error:
    print("UsageError", error)
"""
# What an older kernel answers: the three system calls of Landlock do not exist.
WITHOUT_LANDLOCK = """
import struct
from evotune.program import launcher
code = [(0x20, 0, 0, 0)]
code += [i for n in (444, 445, 446) for i in ((0x15, 0, 1, n), (0x06, 0, 0, 0x50000 | 38))]
code += [(0x06, 0, 0, 0x7FFF0000)]
launcher._prctl(launcher.PR_SET_NO_NEW_PRIVS, 1)
launcher.lose_system_calls(b"".join(struct.pack("=HBBI", *i) for i in code))
"""
WITHOUT_LAUNCHER = "import sys; sys.executable = '/nonexistent/python'"
PROVEN = "{'x': 2} language limits landlock seccomp\n"


def needs_all_layers() -> None:
    built = jail.build(PROGRAM)
    built.script.close()
    if built.unproven:
        pytest.skip(f"not proven here: {dict(built.unproven)}")


def test_strict_isolation_runs_where_every_layer_is_proven() -> None:
    needs_all_layers()
    assert python(RUN.format(before="", isolation="strict")).stdout == PROVEN


@pytest.mark.parametrize(("before", "named"), [(WITHOUT_LANDLOCK, "landlock"), (WITHOUT_LAUNCHER, "seccomp")])
def test_strict_isolation_refuses_and_standard_warns_once_without_a_layer(before: str, named: str) -> None:
    refused = python(RUN.format(before=before, isolation="strict"))
    assert refused.stdout.startswith("UsageError strict isolation is not possible here")
    assert named in refused.stdout
    warned = python(RUN.format(before=before, isolation="standard"))
    assert warned.stdout.startswith("{'x': 2} language")
    assert named not in warned.stdout
    assert warned.stderr.count("WARNING") == 1
    assert named in warned.stderr


@pytest.mark.parametrize("folder", ["with blanks and 'quotes'", "long" * 50])
def test_the_interpreter_may_lie_anywhere(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_all_layers()
    (tmp_path / folder).mkdir()
    python = tmp_path / folder / "python"
    python.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(sys, "executable", str(python))
    with Sandbox("strict") as box:
        assert box.run("def get_kernel_config():\n    return {'x': 2}", SPACE) == {"x": 2}


def test_no_temporary_directory_is_needed() -> None:
    needs_all_layers()
    environment = {**os.environ, "TMPDIR": "/nonexistent"}
    assert python(RUN.format(before="", isolation="strict"), env=environment).stdout == PROVEN


def test_a_file_on_disk_serves_where_memory_cannot_be_executed() -> None:
    needs_all_layers()
    before = "from evotune.program import jail\ndef none(text): raise OSError('refused')\njail.in_memory = none"
    assert python(RUN.format(before=before, isolation="strict")).stdout == PROVEN


def test_a_temporary_directory_without_execution_does_not_matter(tmp_path: Path) -> None:
    needs_all_layers()
    mount = f"mount -t tmpfs -o noexec none {tmp_path} && cp /bin/true {tmp_path} && ! {tmp_path}/true"
    unshare = ["unshare", "-m", "sh", "-c"]
    if os.getuid() != 0 or subprocess.run([*unshare, mount], capture_output=True, check=False).returncode:
        pytest.skip("a noexec file system cannot be mounted here")
    code = RUN.format(before="", isolation="strict")
    command = [*unshare, f'{mount} 2>/dev/null; TMPDIR={tmp_path} exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, text=True, capture_output=True, check=False, cwd=REPOSITORY)
    assert done.stdout == PROVEN


def test_it_works_for_a_user_without_rights() -> None:
    needs_all_layers()
    if os.getuid() != 0:
        pytest.skip("this is not root: every other test shows it")
    # The interpreter of a virtual environment may lie in root's home; any of this version will do.
    version = f"python3.{sys.version_info.minor}"
    reachable = [p for p in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")) if p]
    paths = os.pathsep.join([str(REPOSITORY), *(p for p in sys.path if p.endswith("-packages"))])
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "env": {"PYTHONPATH": paths}}
    for path in reachable:
        try:
            done = python("import numpy", path, **nobody)
        except OSError:
            continue
        if done.returncode == 0:
            done = python(RUN.format(before="", isolation="strict"), path, **nobody)
            assert done.stdout == PROVEN, done.stderr
            return
    pytest.skip("no interpreter that another user may start")


HOLD = """
import threading
from evotune.program import Sandbox
box = Sandbox()
box.protection()
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def host() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a prepared worker."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_worker_has_nothing_of_its_parent_and_dies_with_it(host: subprocess.Popen[bytes]) -> None:
    # protection() has answered before the next worker is prepared.
    workers = wait_for(lambda: [p for p in _children(host.pid) if _program(p) == "monty"])
    assert workers
    for worker in workers:
        assert (worker / "environ").read_bytes() == b""
        # While it is loaded, it has the libraries open.
        assert wait_for(lambda w=worker: {fd.name for fd in (w / "fd").iterdir()} == {"0", "1", "2"})
        # It can neither notice the end of its input nor use up its processor time.
        os.kill(int(worker.name), signal.SIGSTOP)
    host.kill()
    host.wait()
    wait_for(lambda: all(_parent(p) is None for p in workers))
    left = [p for p in workers if _parent(p) is not None]
    for worker in left:
        os.kill(int(worker.name), signal.SIGKILL)
    assert left == []


def wait_for(condition: Callable[[], T]) -> T:
    """What a condition gives when it holds, or after ten seconds."""
    end = time.monotonic() + 10
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def _children(pid: int) -> list[Path]:
    return [p for p in Path("/proc").glob("[0-9]*") if _parent(p) == pid]


def _program(process: Path) -> str:
    try:
        return (process / "exe").readlink().name
    except OSError:
        return ""


def _parent(process: Path) -> int | None:
    try:
        state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def test_resources_are_limited_to_what_a_program_may_need() -> None:
    code = """
import resource
from evotune.program import launcher
launcher.limit_resources()
for name in ("AS", "DATA", "CPU", "NOFILE", "FSIZE", "CORE"):
    print(name, *resource.getrlimit(getattr(resource, "RLIMIT_" + name)))
"""
    most = {"AS": 512 << 20, "DATA": 96 << 20, "CPU": 2, "NOFILE": 16, "FSIZE": 0, "CORE": 0}
    assert python(code).stdout.splitlines() == [f"{name} {bound} {bound}" for name, bound in most.items()]


def test_limits_of_the_surroundings_are_never_raised() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
from evotune.program import launcher
launcher.limit_resources()
print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_FSIZE))
"""
    assert python(code).stdout == "(8, 8) (0, 0)\n"


def test_a_launcher_whose_parent_has_died_starts_nothing() -> None:
    # The signal of the parent's death comes only if that death is still ahead.
    code = "from evotune.program import launcher\nlauncher.die_with_parent(1 << 22)\nprint('went on')"
    done = python(code)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_layer_that_worked_at_start_and_fails_later_stops_the_program() -> None:
    code = """
import os
from evotune.program import launcher
def fails(*paths): raise OSError("gone")
launcher.lose_files = fails
jail = dict(layers=("landlock",), executable=("/bin/echo",), readable=(), filter_code=b"")
launcher.launch(["went on"], parent_pid=os.getppid(), **jail)
"""
    done = python(code)
    assert (done.returncode, done.stdout) == (1, "")


LOSE_FILES = """
import os, socket, subprocess
from evotune.program import launcher
launcher._prctl(launcher.PR_SET_NO_NEW_PRIVS, 1)
launcher.lose_files((), ({folder!r}, "/lib", "/lib64", "/usr/lib", "/etc"))
def outcome(attempt):
    try:
        return attempt()
    except OSError as error:
        return type(error).__name__
print(outcome(lambda: open({program!r}, "rb").read(4)))
print(outcome(lambda: os.execv({program!r}, [{program!r}])))
print(outcome(lambda: socket.socket().connect(("127.0.0.1", {port}))))
print(outcome(lambda: os.kill(os.getppid(), 0)))
"""


def test_landlock_alone_stops_execution_connections_and_signals(tmp_path: Path) -> None:
    if landlock_version() < 6:
        pytest.skip("this kernel's Landlock knows files only")
    program = shutil.copy(PROGRAM, tmp_path / "program")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = python(LOSE_FILES.format(folder=str(tmp_path), program=str(program), port=port))
    assert done.stdout.splitlines() == ["b'\\x7fELF'", *["PermissionError"] * 3], done.stderr
