"""The page of one run: a file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from evotune import __version__, page
from evotune.facts import GIVEN
from evotune.report.course import is_simulated
from evotune.report.kept import kept
from evotune.report.roofline import si
from evotune.report.summary import PROVENANCE, command
from evotune.report.view import View

HERE = Path(__file__).parent
SCRIPTS = ("course", "heat", "parallel", "table", "page", "live")
PARTS = {
    "base_css": page.STYLE,
    "page_css": HERE / "page.css",
    "base_js": page.SCRIPT,
    **{f"{name}_js": HERE / f"{name}.js" for name in SCRIPTS},
}
# Ids of sections, and what they are called, in their order.
SECTIONS = {
    "summary": "Summary",
    "best": "Best configuration",
    "convergence": "Convergence",
    "funnel": "What each stage let through",
    "importance": "Importance of parameters",
    "heat": "Two parameters",
    "parallel": "All parameters",
    "roofline": "Roofline",
    "failures": "Failures",
    "ancestry": "Genealogy of the best",
    "model": "Model and other origins",
    "trials": "Trials",
    "reproduce": "How to reproduce",
}


def text_of(view: View, journal: Path, *, revision: str = "") -> str:
    """The page as HTML; with the ``revision`` of what it shows, it asks for news where it came from."""
    sections = dict(SECTIONS)
    if view.history.shapes:
        sections["best"] = "Program and shapes"
    return page.render(
        HERE / "page.html.jinja",
        PARTS,
        view=view,
        sections=sections,
        provenance=PROVENANCE,
        command=command(view.history, journal),
        is_simulated=is_simulated(view.history),
        si=si,
        has_command=kept(view.history, GIVEN) is not None,
        journal=journal,
        version=__version__,
        revision=revision,
    )
