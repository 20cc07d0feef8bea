"""A page for each run of a batch, and one that leads to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evotune import page
from evotune.batch.run import Outcome
from evotune.errors import UsageError
from evotune.files import write
from evotune.report import write_report

HERE = Path(__file__).parent
INDEX = "index.html"


def check_folder(folder: Path) -> None:
    """Make the folder for pages; :class:`UsageError` if that cannot be. To be done before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot hold pages: {error}; give --report another folder") from None


def write_pages(outcomes: Sequence[Outcome], journal: Path, folder: Path) -> None:
    """Write ``index.html``, and a page for each run that reported something.

    A page that an earlier call of the batch wrote of a run that had ended stays as it is.

    Raises:
        UsageError: One cannot be written.
    """
    pages: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.result is not None:
            run_id = outcome.result["run_id"]
            pages[run_id] = f"{run_id}.html"
            if not (outcome.was_done and (folder / pages[run_id]).is_file()):
                write_report(journal, run_id, folder / pages[run_id])
    parts = {"base_css": page.STYLE}
    text = page.render(HERE / "index.html.jinja", parts, outcomes=outcomes, pages=pages, journal=journal)
    write(folder / INDEX, text)
