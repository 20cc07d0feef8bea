"""What all commands share: the application, its exit codes, and ways in and out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from evotune.settings import Settings

FOUND, NOTHING_FOUND, WRONG_USE, MACHINE_FAULT, INTERRUPTED = 0, 1, 2, 3, 130

GRAVEST_FIRST = (INTERRUPTED, MACHINE_FAULT, WRONG_USE, NOTHING_FOUND, FOUND)

app = typer.Typer(
    help="Tune GPU kernels: evolving programs, a Gaussian-process screen, and timings you can trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from evotune import __version__

        typer.echo(f"evotune {__version__}")
        raise typer.Exit


def gravest(codes: Sequence[int]) -> int:
    """The exit code for several ends together; one that is not documented, as of who was killed, is a fault."""
    return min((c if c in GRAVEST_FIRST else MACHINE_FAULT for c in codes), key=GRAVEST_FIRST.index)


def stdout() -> Any:
    """A console for results."""
    from evotune.terminal import Output

    return Output()


def read_settings(path: Path | None, flags: dict[str, Any]) -> Settings:
    """Settings of a file, the environment, and flags, the last one wins; a flag that is None was not given."""
    from evotune import settings

    return settings.load(path or settings.default_path(), flags, os.environ)


def journal_path(given: Path | None, config: Path | None) -> Path:
    """The journal of ``--journal``, the environment, a settings file, or where runs are recorded without them."""
    return Path(read_settings(config, {"run.journal": None if given is None else str(given)}).run.journal)


def log_to(terminal: Any) -> None:
    """Let warnings of the library reach the person who runs it, above the live line."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            terminal.warn(self.format(record))

    logger = logging.getLogger("evotune")
    logger.handlers = [Handler(level=logging.WARNING)]
    logger.propagate = False


def fail(message: str, code: int) -> NoReturn:
    """End the process with a message and an exit code."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)
