"""A comparison as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from evotune.compare.belief import beliefs
from evotune.compare.comparison import Comparison
from evotune.compare.curves import panels
from evotune.compare.score import MethodScore
from evotune.compare.svg import line_chart, looks
from evotune.files import write
from evotune.page import SCRIPT, STYLE, render

TEMPLATE = Path(__file__).with_name("page.html.jinja")
# What is drawn of a belief: fields of a slice, and what they are called.
PANELS: Mapping[str, str] = {
    "latency_ms": "Predicted latency, ms",
    "true_ms": "Recorded latency, ms",
    "std": "Uncertainty: standard deviation of log latency",
    "utility": "Log acquisition, weighed with the chance of running",
}


def write_page(comparison: Comparison, rows: Sequence[MethodScore], out: Path) -> None:
    """Write tables, convergence curves, the heat map of scores, method x space, and the surrogate's beliefs."""
    from markupsafe import Markup

    styles = looks(dict.fromkeys(r.method for r in comparison.runs))
    drawn = [
        [Markup(line_chart(p, styles, width=520, height=280 if i == 0 else 220)) for p in pair]
        for i, pair in enumerate(panels(comparison))
    ]
    text = render(
        TEMPLATE,
        {"base_css": STYLE, "base_js": SCRIPT},
        comparison=comparison,
        rows=rows,
        marks=list(rows[0].ratios) if rows else [],
        styles=styles,
        spaces=[r.name for r in comparison.recordings],
        devices={r.name: r.meta.get("device") or "unnamed device" for r in comparison.recordings},
        charts=drawn,
        shade=_shade,
        panels=PANELS,
        beliefs=[asdict(belief) for belief in beliefs(comparison)],
    )
    write(out, text)


def _shade(score: float) -> str:
    """A cell's colour: green the nearer to the optimum at once, red below random search."""
    strength = min(1.0, abs(score)) * 0.75
    return f"rgba({'0, 158, 115' if score >= 0 else '213, 94, 0'}, {strength:.2f})"
