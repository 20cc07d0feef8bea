"""An executable file that starts a program in a jail, and the proof that the jail holds.

Monty's pool starts its workers from one path and without arguments of ours, so the launcher and
all that it must know become one script. It lies in memory: no directory has to be writable, and a
``noexec`` mount of the temporary directory does not matter.
"""

from __future__ import annotations

import fcntl
import json
import marshal
import os
import platform
import shlex
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

LAYERS = ("limits", "landlock", "seccomp")  # in the only order that works: seccomp forbids the others
PROBE_TIMEOUT_S = 20.0
# What a dynamically linked program reads before it starts.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")

SHEBANG_BYTES = 127  # before Linux 5.1; 255 since: include/uapi/linux/binfmts.h
# include/uapi/linux/memfd.h and fcntl.h; the standard library does not have all of them in 3.10.
MFD_ALLOW_SEALING, MFD_EXEC = 0x2, 0x10
F_ADD_SEALS, F_SEAL_ALL = 1033, 0xF

# System calls by architecture: AUDIT_ARCH from include/uapi/linux/audit.h, numbers from the kernel's
# tables. Enough to load a program, use memory and threads, and talk over open descriptors.
SYSTEM_CALLS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8,
            "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
            "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20, "access": 21, "sched_yield": 24,
            "mremap": 25, "madvise": 28, "getpid": 39, "execve": 59, "exit": 60, "gettimeofday": 96,
            "sigaltstack": 131, "arch_prctl": 158, "gettid": 186, "futex": 202, "sched_getaffinity": 204,
            "set_tid_address": 218, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
            "clock_nanosleep": 230, "exit_group": 231, "openat": 257, "newfstatat": 262, "ppoll": 271,
            "set_robust_list": 273, "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "faccessat": 48, "openat": 56, "close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65,
            "writev": 66, "pread64": 67, "ppoll": 73, "newfstatat": 79, "fstat": 80, "exit": 93,
            "exit_group": 94, "set_tid_address": 96, "futex": 98, "set_robust_list": 99, "clock_gettime": 113,
            "clock_getres": 114, "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124,
            "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135,
            "rt_sigreturn": 139, "gettimeofday": 169, "getpid": 172, "gettid": 178, "brk": 214, "munmap": 215,
            "mremap": 216, "execve": 221, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278,
            "membarrier": 283, "statx": 291, "rseq": 293,
        },
    ),
}  # fmt: skip
# Threads are made by `clone` with this flag; without it, it makes a process. clone3 hides its flags
# behind a pointer that a filter cannot follow: "not implemented" sends libc back to clone.
CLONE: Mapping[str, int] = {"x86_64": 56, "aarch64": 220}
CLONE_THREAD = 0x00010000
CLONE3 = 435
ENOSYS, EPERM = 38, 1

# Classic BPF: load a word of struct seccomp_data, jump if equal, jump if any bit is set, return.
LOAD, IF_EQUAL, IF_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


@dataclass(frozen=True)
class Jail:
    """A program behind ``layers``; ``unproven`` says of every other layer why it does not count."""

    script: Script
    layers: tuple[str, ...]
    unproven: Mapping[str, str]


def build(program: Path) -> Jail:
    """A jail for a program, each layer of it attacked from inside.

    Raises:
        OSError: No launcher can be started on this system at all.
    """
    if sys.platform != "linux" or platform.machine() not in SYSTEM_CALLS:
        raise OSError(f"no jail for {sys.platform} on {platform.machine()}")
    probe = _call("probe(lambda: lock({0}), {1!r})", LAYERS, program, sys.executable)
    report, place = _first_that_runs(_text("launcher", "probe", call=probe))
    unproven = _judge(report)
    # A layer that went on without an error is kept even if its proof is incomplete: it cannot harm.
    layers: tuple[str, ...] = tuple(name for name in LAYERS if name not in report.failed)
    launch = _call("launch(sys.argv[1:], {0})", layers, program)
    return Jail(place(_text("launcher", call=f"import sys\n{launch}")), layers, unproven)


def filter_code(machine: str) -> bytes:
    """The seccomp filter of an architecture as BPF instructions; ``KeyError`` if it has no table."""
    architecture, calls = SYSTEM_CALLS[machine]
    code = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (IF_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, ERRNO | ENOSYS),
    ]
    for number in sorted(calls.values()):
        code += [(IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    code += [
        (IF_EQUAL, 0, 3, CLONE[machine]),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT),
        (IF_ANY_BIT, 0, 1, CLONE_THREAD),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ERRNO | EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


# -- the proof ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Report:
    before: Mapping[str, Mapping[str, bool]]
    after: Mapping[str, Mapping[str, bool]]
    failed: Mapping[str, str]
    escaped: bool


def _judge(report: _Report) -> dict[str, str]:
    """Layers that are not proven: an attack must succeed outside of the jail and fail inside."""
    out = dict(report.failed)
    for layer in LAYERS:
        moot = [name for name, worked in report.before[layer].items() if not worked]
        open_doors = [name for name, worked in report.after[layer].items() if worked]
        if layer not in out and (moot or open_doors):
            out[layer] = f"still possible inside: {open_doors}" if open_doors else f"impossible outside: {moot}"
    if report.escaped and "landlock" not in out:
        out["landlock"] = "another program could be started inside"
    return out


def _first_that_runs(text: str) -> tuple[_Report, Callable[[str], Script]]:
    """The probe's report, and the kind of file that this system lets us execute."""
    problems: list[str] = []
    for place in (in_memory, on_disk):
        try:
            with place(text) as script:
                return _run_probe(script), place
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problems.append(f"{place.__name__}: {error}")
    raise OSError(f"{sys.executable} does not start as a launcher ({'; '.join(problems)})")


def _run_probe(script: Script) -> _Report:
    done = subprocess.run(
        [script.path], env={}, stdin=subprocess.DEVNULL, capture_output=True, close_fds=False,
        timeout=PROBE_TIMEOUT_S, check=False,
    )  # fmt: skip
    line, _, rest = done.stdout.decode(errors="replace").partition("\n")
    if not line:
        raise OSError(f"status {done.returncode}, {done.stderr.decode(errors='replace').strip()[-200:]!r}")
    found = json.loads(line)
    return _Report(found["before"], found["after"], found["failed"], escaped="denied" not in rest)


# -- the file -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """An executable file that exists until it is closed."""

    path: str
    close: Callable[[], None]

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_memory(text: str) -> Script:
    """An executable file without a place in the file system, sealed against changes."""
    try:
        fd = os.memfd_create("evotune-jail", MFD_ALLOW_SEALING | MFD_EXEC)
    except OSError:  # before Linux 6.3 there is no such flag and every one is executable
        fd = os.memfd_create("evotune-jail", MFD_ALLOW_SEALING)
    os.write(fd, text.encode())
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_ALL)
    # The child opens its own copy of the descriptor: /proc/<our pid> would be closed to it if this
    # process had changed its user.
    os.set_inheritable(fd, True)
    return Script(f"/proc/self/fd/{fd}", lambda: os.close(fd))


def on_disk(text: str) -> Script:
    """An executable file in the temporary directory."""
    folder = tempfile.TemporaryDirectory(prefix="evotune-jail-")
    path = Path(folder.name, "jail")
    path.write_text(text, encoding="utf-8")
    path.chmod(0o700)
    return Script(str(path), folder.cleanup)


def _text(*modules: str, call: str) -> str:
    """The text of modules of this package and a last statement, as one executable script."""
    future = "from __future__ import annotations\n"
    files = resources.files("evotune.program")
    bodies = [files.joinpath(f"{name}.py").read_text(encoding="utf-8").replace(future, "") for name in modules]
    code = compile("\n".join([future, *bodies, call]), "<jail>", "exec")
    # Parsing would take a fifth of the launcher's time, at every program.
    return f"{_first_line(sys.executable)}\nimport marshal\nexec(marshal.loads({marshal.dumps(code)!r}))\n"


def _first_line(python: str) -> str:
    """What makes the kernel start a script with an interpreter, wherever that lies."""
    line = f"#!{python} -ISE"
    if " " not in python and len(line) <= SHEBANG_BYTES:
        return line
    # The kernel splits at blanks and cuts what is long, so the shell starts it. To Python the second line and the
    # third are a text; to the shell they are a command and what it never comes to.
    return f"#!/bin/sh\n'''exec' {shlex.quote(python)} -ISE \"$0\" \"$@\"\n' '''"


def _call(form: str, layers: Sequence[str], program: Path, *more: object) -> str:
    """A statement in which ``{0}`` stands for the arguments of ``lock``."""
    loaders = [str(p) for root in ("/lib", "/lib64") for p in sorted(Path(root).glob("ld-*.so*"))]
    readable = tuple(p for p in LIBRARIES if Path(p).exists())
    arguments: dict[str, object] = {
        "layers": tuple(layers),
        "parent_pid": os.getpid(),
        "executable": (str(program), *loaders),
        "readable": readable,
        "filter_code": filter_code(platform.machine()),
    }
    return form.format(", ".join(f"{name}={value!r}" for name, value in arguments.items()), *more)
