"""Folders for what need not last, which go also if their process is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

LOCK = ".lock"
# A folder may be younger than the lock on it; none takes so long to be locked.
LEAST_AGE_S = 60.0


class Scratch:
    """A temporary folder. The next one of its kind removes those whose processes have died, as the kernel
    gives up the locks of the dead.

    Args:
        kind: Part of its name.
    """

    def __init__(self, kind: str) -> None:
        _sweep(f"evotune-{kind}-")
        self._folder = tempfile.TemporaryDirectory(prefix=f"evotune-{kind}-", ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def cleanup(self) -> None:
        """Remove it with all that is in it; safe to call twice."""
        self._folder.cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            # Others may put anything there: only a folder of one's own is followed.
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # not made here, or just being removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(lock).st_mtime > LEAST_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(lock)
