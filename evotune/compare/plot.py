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


def check_plot(out: Path) -> None:
    """Raise :class:`UsageError` if a picture of this name cannot be drawn here; to be asked before any work."""
    if find_spec("matplotlib") is None:
        raise UsageError("a plot needs matplotlib; pip install 'evotune[plot]', or write a page instead")
    supported: dict[str, str] = _canvas(figsize=(1, 1)).get_supported_filetypes()
    if out.suffix[1:] not in supported:
        raise UsageError(f"cannot draw {out.name}; use one of {sorted('.' + s for s in supported)}")


def write_plot(comparison: Comparison, out: Path) -> None:
    """Write medians and bands of all spaces, then of each, by evaluations and by time.

    Raises:
        UsageError: matplotlib is not installed, or does not know the suffix of ``out``.
    """
    check_plot(out)
    pairs = panels(comparison)
    styles = looks(dict.fromkeys(r.method for r in comparison.runs))
    devices = {r.name: str(r.meta.get("device") or "unnamed device") for r in comparison.recordings}
    figure: Any = _canvas(figsize=(11, 0.9 + 3.3 * len(pairs)), layout="constrained").figure
    axes: Any = figure.subplots(len(pairs), 2, squeeze=False, sharey="row")
    for row, pair in zip(axes, pairs, strict=True):
        for ax, panel in zip(row, pair, strict=True):
            _draw(ax, panel, styles)
        row[0].set_ylabel("optimum / best so far")
        title = pair[0].title
        where = f" ({devices[title]})" if title in devices else ""
        row[0].set_title(title + where, loc="left", fontsize="medium")
    seeds = len({r.seed for r in comparison.runs})
    figure.suptitle(f"Best so far: median of {seeds} seeds, and their middle half", x=0.01, ha="left")
    # One legend outside: inside it would lie on the curves of one space or another.
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(out, dpi=110)


def _canvas(**options: Any) -> Any:
    """An Agg canvas by hand: pyplot would choose a backend for the whole process."""
    figure: Any = import_module("matplotlib.figure").Figure(**options)
    return import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)


def _draw(ax: Any, panel: Panel, styles: dict[str, Look]) -> None:
    for i, (method, curve) in enumerate(panel.curves.items()):
        look = styles[method]
        dashes = tuple(float(d) for d in look.dash.split())
        # What was found stays the best until something better is: steps, the first method's on top.
        style: dict[str, Any] = {"color": look.colour, "zorder": 3 - i / len(panel.curves)}
        line_style = (0, dashes) if dashes else "-"
        ax.plot(curve.x, curve.median, drawstyle="steps-post", linestyle=line_style, label=method, **style)
        ax.fill_between(curve.x, curve.low, curve.high, step="post", alpha=0.1, linewidth=0, **style)
    ax.set_xlabel(panel.x_label)
    ax.set_xlim(left=0)
    ax.set_ylim(top=1.02)
    ax.yaxis.set_major_formatter(import_module("matplotlib.ticker").PercentFormatter(1.0, decimals=0))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
