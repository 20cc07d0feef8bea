"""Names a process so that another, later one can tell whether it still runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def me() -> str:
    """This process, in a word that no other process ever has."""
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def is_alive(owner: str) -> bool:
    """Whether the process that :func:`me` named still runs: a pid alone may have been given out again."""
    host, pid, started = owner.split()
    return host == socket.gethostname() and _started(int(pid)) == started


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot, or ``-`` if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except OSError:
        return "-"
