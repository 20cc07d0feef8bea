"""A run as a page: :func:`write_report` makes a file, :func:`serve` shows the run while it goes on."""

from __future__ import annotations

from pathlib import Path

from evotune.files import check_writable, write
from evotune.report.kept import load
from evotune.report.live import serve
from evotune.report.page import text_of
from evotune.report.view import View

__all__ = ["View", "serve", "text_of", "write_report"]


def write_report(journal: Path, run_id: str | None, out: Path) -> str:
    """Write the page of a run, of the latest if none is named; its id.

    Raises:
        UsageError: The file cannot be written, or there is no such run.
    """
    check_writable(out)
    found = load(journal, run_id)
    write(out, text_of(View(found), journal))
    return found.summary.run_id
