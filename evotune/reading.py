"""A journal that is read and in no case written, created or brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from evotune.errors import JournalError, UsageError
from evotune.journal import SCHEMA_VERSION, Journal, folder_instead

T = TypeVar("T")


class _ReadOnly(Journal):
    """A journal of which nothing is changed; its methods that write fail.

    Args:
        path: Of an existing file.
        how: ``mode=ro``, or ``immutable=1`` where nobody else has the file open.
    """

    def __init__(self, path: Path, how: str) -> None:
        self.path = path
        uri = f"file:{quote(str(path.resolve()))}?{how}"
        self._db = sqlite3.connect(uri, uri=True, timeout=10.0, isolation_level=None)

    def __enter__(self) -> _ReadOnly:
        return self

    def check(self) -> None:
        """Refuse a file that has not the tables of this version, and look at one moment from now on."""
        self._db.execute("BEGIN")
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        has_runs = bool(self._db.execute("SELECT name FROM sqlite_master WHERE name='run'").fetchall())
        if found == SCHEMA_VERSION and has_runs:
            return
        if not has_runs or found <= 0:
            raise JournalError(f"{self.path} is no journal of evotune", "name one with --journal PATH")
        if found < SCHEMA_VERSION:
            raise UsageError(
                f"journal {self.path} has schema version {found}, this evotune reads {SCHEMA_VERSION}; "
                f"the next run in it brings it up to date: evotune run … --journal {self.path}"
            )
        raise UsageError(
            f"journal {self.path} has schema version {found}, this evotune reads {SCHEMA_VERSION}; "
            "use the evotune that wrote it, or a newer one"
        )


def read(path: Path, look: Callable[[Journal], T]) -> T:
    """What a function sees in a journal at one moment, whether a run writes it meanwhile or not.

    Raises:
        UsageError: It is missing, no journal, of another version, or cannot be read.
    """
    if path.is_dir():
        raise folder_instead(path)
    if is_empty(path):
        raise JournalError(
            f"journal {path} is empty: no run has begun in it", f"evotune run KERNEL --journal {path} begins one"
        )
    if not path.is_file():
        raise JournalError(
            f"no journal at {path}",
            f"a run makes one: evotune run KERNEL --journal {path}, or name another one with --journal PATH",
        )
    try:
        # SQLite lays two files beside a journal that it opens, and needs a folder that can be written for
        # them, unless it is told that nobody writes. Without a write-ahead log nobody did when we looked, and
        # the file still being the same afterwards shows that nobody has since.
        if not Path(f"{path}-wal").exists():
            before = path.stat()
            found = _attempt(path, "immutable=1", look)
            after = path.stat()
            if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size):
                return found
        return _attempt(path, "mode=ro", look)
    except (OSError, sqlite3.Error) as error:
        why, advice = "it may be damaged", "name another one with --journal PATH"
        if any(word in str(error) for word in ("open", "readonly", "locked")):
            why = "if a run writes it, or was killed, its folder must be writable"
            advice = f"copy {path.name}* to such a folder, and name the copy with --journal PATH"
        raise JournalError(f"journal {path} cannot be read: {error}; {why}", advice) from None


def is_empty(path: Path) -> bool:
    """Whether it is a file in which nothing was ever written; a run may begin in it."""
    return path.is_file() and path.stat().st_size == 0 and not Path(f"{path}-wal").exists()


def _attempt(path: Path, how: str, look: Callable[[Journal], T]) -> T:
    with _ReadOnly(path, how) as journal:
        try:
            journal.check()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            found = f"{path} is no journal of evotune: {error}"
            raise JournalError(found, "name one with --journal PATH") from None
        return look(journal)
