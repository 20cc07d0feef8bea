"""How many cores there are."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may use: a batch system or a container often leaves it few of the machine's."""
    return len(os.sched_getaffinity(0))
