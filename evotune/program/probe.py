# Runs after the text of `launcher` in the same file; see `jail`.
"""Attacks the jail from inside, after showing that the same attacks work outside of it.

A version check says what a kernel claims; this says what happens.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
from collections.abc import Callable


def _open_a_directory() -> None:
    os.close(os.open("/", os.O_RDONLY))


def _read_a_file() -> None:
    os.close(os.open("/proc/self/cmdline", os.O_RDONLY))


def _write_a_file() -> None:
    os.close(os.open(os.devnull, os.O_WRONLY))  # the one file that everybody may write


def _open_a_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _fork() -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _take_memory() -> None:
    mmap.mmap(-1, 1 << 30).close()


# Each of them is stopped by its layer alone: signals, say, are forbidden by two.
ATTACKS: dict[str, dict[str, Callable[[], None]]] = {
    "landlock": {"read": _read_a_file, "list": _open_a_directory, "write": _write_a_file},
    "seccomp": {"socket": _open_a_socket, "fork": _fork},
    "limits": {"memory": _take_memory},
}


def attack() -> dict[str, dict[str, bool]]:
    """By layer and attack, whether it succeeded."""
    return {layer: {name: _succeeds(f) for name, f in attacks.items()} for layer, attacks in ATTACKS.items()}


def _succeeds(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def probe(lock: Callable[[], dict[str, str]], other_program: str) -> None:
    """Write one line of JSON: what succeeded before and after, and which layers failed outright."""
    before = attack()
    failed = lock()
    after = attack()
    report = json.dumps({"before": before, "after": after, "failed": failed})
    os.write(1, report.encode() + b"\n")
    try:
        os.execve(other_program, [other_program, "-ISE", "-c", "print('escaped')"], {})
    except OSError:
        os.write(1, b"exec denied\n")
    os._exit(0)
