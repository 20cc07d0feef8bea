"""Convergence curves as a picture; needs matplotlib."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evotune.compare.comparison import Comparison
from evotune.compare.curves import Panel, panels
from evotune.compare.svg import Look, looks
from evotune.errors import UsageError


def check_plot() -> None:
    """Raise :class:`UsageError` if pictures cannot be drawn here; to be asked before any work."""
    if find_spec("matplotlib") is None:
        raise UsageError("a plot needs matplotlib; pip install 'evotune[plot]', or write a page instead")


def write_plot(comparison: Comparison, out: Path) -> None:
    """Write medians and bands of all spaces, then of each, by evaluations and by time.

    Raises:
        UsageError: matplotlib is not installed, or does not know the suffix of ``out``.
    """
    check_plot()
    pairs = panels(comparison)
    styles = looks(dict.fromkeys(r.method for r in comparison.runs))
    # Figure and canvas by hand: pyplot would choose a backend for the whole process.
    figure: Any = import_module("matplotlib.figure").Figure(figsize=(11, 3.4 * len(pairs)), layout="constrained")
    canvas: Any = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    supported: dict[str, str] = canvas.get_supported_filetypes()
    if out.suffix[1:] not in supported:
        raise UsageError(f"cannot draw {out.name}; use one of {sorted('.' + s for s in supported)}")
    axes: Any = figure.subplots(len(pairs), 2, squeeze=False, sharey="row")
    for row, pair in zip(axes, pairs, strict=True):
        for ax, panel in zip(row, pair, strict=True):
            _draw(ax, panel, styles)
    axes[0][0].legend(loc="lower right", fontsize="small")
    figure.savefig(out, dpi=110)


def _draw(ax: Any, panel: Panel, styles: dict[str, Look]) -> None:
    for method, curve in panel.curves.items():
        look = styles[method]
        dashes = tuple(float(d) for d in look.dash.split())
        line_style = (0, dashes) if dashes else "-"
        ax.plot(curve.x, 100 * curve.median, color=look.colour, linestyle=line_style, label=method)
        ax.fill_between(curve.x, 100 * curve.low, 100 * curve.high, color=look.colour, alpha=0.12, linewidth=0)
    ax.set_title(panel.title, loc="left", fontsize="medium")
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel("optimum / best so far (%)")
    ax.grid(alpha=0.3)
