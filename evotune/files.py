"""Files that are written whole or not at all, what tells their texts apart, and where those are kept that can be
made again."""

from __future__ import annotations

import os
import threading
from hashlib import sha256
from pathlib import Path

from evotune.errors import UsageError


def replace(path: Path, text: str) -> None:
    """Write a file; whoever reads it meanwhile sees the old one or the new one.

    Raises:
        OSError: It cannot be written; then nothing has changed.
    """
    place = path.resolve()
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(place)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def write(path: Path, text: str) -> None:
    """Write a file that somebody asked for, as :func:`replace` does; :class:`UsageError` if it cannot be."""
    try:
        replace(path, text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}; choose another place") from None


def check_writable(path: Path) -> None:
    """Raise :class:`UsageError` if a file cannot be written; to be asked before any work."""
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {folder}; make it, or choose another")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} cannot be written: it is not a file; choose another name")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"{path} cannot be written: permission denied; choose another place")


def digest(text: str) -> str:
    """What tells the text of a kernel from any other."""
    return sha256(text.encode()).hexdigest()[:16]


def cache_folder(name: str) -> Path:
    """Where evotune keeps one kind of things under the user's cache; it need not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "evotune" / name
