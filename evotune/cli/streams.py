"""stdout and stderr where they are closed or cannot be written: neither changes what a command does."""

from __future__ import annotations

import io
import os
import sys
from typing import BinaryIO, TextIO, cast


class Told(io.TextIOWrapper):
    """stderr that goes quiet when it cannot be written: a full disk under a log must not end a run.

    A reader that has gone is still an error, as of stdout: ``evotune run … 2>&1 | head``.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError:
            go_nowhere(self.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError:
            go_nowhere(self.fileno())


def prepare() -> None:
    """Call before anything is written or opened by a command."""
    # A file opened while one of these is closed would take its number, and with it what is meant for people.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # Python has None for a stream that was closed when it started.
    stdout, stderr = cast("TextIO | None", sys.stdout), cast("TextIO | None", sys.stderr)
    if stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if stderr is None:
        sys.stderr = os.fdopen(2, "w")
    elif isinstance(stderr, io.TextIOWrapper) and stderr is sys.__stderr__:  # what others put there is theirs
        sys.stderr = Told(
            cast("BinaryIO", stderr.buffer),
            encoding=stderr.encoding,
            errors=stderr.errors,
            line_buffering=True,
            write_through=True,
        )


def write_no_more() -> None:
    """Let what is still buffered go nowhere: Python writes it when it ends, and would fail once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            go_nowhere(stream.fileno())


def go_nowhere(descriptor: int) -> None:
    """Drop what is written to a file descriptor from here on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
