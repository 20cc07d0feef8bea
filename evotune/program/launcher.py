# Runs alone, as the text of an executable file: `python -ISE`, an empty environment, a directory
# that may not exist. It starts once per program, so it imports as little as it can; everything
# that can be worked out beforehand (the seccomp filter, the list of paths) arrives as bytes and text.
"""Locks its own process into a jail, then becomes another program.

No root, no user namespaces: Landlock takes the file system away, seccomp the system calls, resource
limits memory, files and processor time, and the parent's death ends it. All of them are inherited
by the program that follows and cannot be undone by it.
"""

from __future__ import annotations

import ctypes
import os
import resource

SIGKILL = 9  # importing `signal` costs a quarter of the start
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
# The same numbers on every architecture: include/uapi/asm-generic/unistd.h.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_VERSION = 1
LANDLOCK_PATH_BENEATH = 1
EXECUTE, READ_FILE = 1 << 0, 1 << 2
# Rights that each version of Landlock can take away: file system, network, signals and sockets.
FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
NET_RIGHTS, SCOPES = 3, 3

LIMITS = {
    resource.RLIMIT_AS: 512 << 20,
    # Private writable memory: the bound that counts, with room for the interpreter's own 20 MB.
    resource.RLIMIT_DATA: 96 << 20,
    resource.RLIMIT_CPU: 2,
    resource.RLIMIT_NOFILE: 16,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
}

Strings = tuple[str, ...]

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, value: int, pointer: object = None) -> None:
    # A bare int would be passed as 32 bits, and the kernel wants the unused arguments to be zero.
    word = ctypes.c_ulong
    _checked(_libc.prctl(option, word(value), pointer, word(0), word(0)), f"prctl({option})")


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the thread that started this process ends; exit if it already has."""
    _prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def limit_resources() -> None:
    """Bound memory, processor seconds, open files and written bytes."""
    for what, most in LIMITS.items():
        _, already = resource.getrlimit(what)
        bound = most if already == resource.RLIM_INFINITY else min(most, already)
        resource.setrlimit(what, (bound, bound))


def lose_files(executable: Strings, readable: Strings) -> None:
    """Landlock: nothing may be opened but these paths, nothing executed but ``executable``."""
    abi = _checked(_libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_VERSION), "Landlock")
    rights = (ctypes.c_uint64 * 3)(FS_RIGHTS[min(abi, 5)], NET_RIGHTS if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    size_bytes = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _checked(_libc.syscall(LANDLOCK_CREATE_RULESET, rights, size_bytes, 0), "Landlock ruleset")
    for allowed, paths in ((EXECUTE | READ_FILE, executable), (READ_FILE, readable)):
        for path in paths:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = allowed.to_bytes(8, "little") + fd.to_bytes(4, "little")
            _checked(_libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_PATH_BENEATH, rule, 0), path)
            os.close(fd)
    _checked(_libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0), "Landlock restriction")
    os.close(ruleset)


def lose_system_calls(instructions: bytes) -> None:
    """Seccomp: only the calls that a compiled filter (8 bytes per instruction) lets through."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    program = Program(len(instructions) // 8, instructions)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))


def lock(
    *, layers: Strings, parent_pid: int, executable: Strings, readable: Strings, filter_code: bytes
) -> dict[str, str]:
    """Put on the named layers in the only order that works; returns those that failed, and why."""
    die_with_parent(parent_pid)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    failed: dict[str, str] = {}
    for name in layers:
        try:
            if name == "limits":
                limit_resources()
            elif name == "landlock":
                lose_files(executable, readable)
            elif name == "seccomp":
                lose_system_calls(filter_code)
        except (OSError, ValueError) as error:
            failed[name] = str(error)
    return failed


def launch(
    arguments: list[str],
    *,
    layers: Strings,
    parent_pid: int,
    executable: Strings,
    readable: Strings,
    filter_code: bytes,
) -> None:
    """Become ``executable[0]`` behind all of the layers, or exit with status 1."""
    # Whatever the asking process left inheritable must not be readable in here, and the worker's
    # last words (allocation failures) do not belong on the user's terminal.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    os.closerange(3, 1 << 20)
    if lock(
        layers=layers,
        parent_pid=parent_pid,
        executable=executable,
        readable=readable,
        filter_code=filter_code,
    ):
        os._exit(1)
    os.execve(executable[0], [executable[0], *arguments], {})
