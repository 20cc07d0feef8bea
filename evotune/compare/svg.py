"""Line charts as SVG text, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from evotune.compare.curves import Panel

# Okabe & Ito 2008, told apart with any colour vision; then the same with dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
DASHES = ("", "6 3", "2 2")
# Room for the larger letters that a narrow screen gets.
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 50, 18, 24, 40


@dataclass(frozen=True)
class Look:
    """How a method is drawn everywhere."""

    colour: str
    dash: str


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method, in order."""
    return {
        method: Look(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, method in enumerate(methods)
    }


def line_chart(panel: Panel, styles: dict[str, Look], *, width: int, height: int) -> str:
    """One panel as an ``<svg>`` element."""
    right, bottom = width - MARGIN_RIGHT, height - MARGIN_BOTTOM
    most_x = max((float(c.x[-1]) for c in panel.curves.values()), default=1.0)
    least = min((float(c.low.min()) for c in panel.curves.values()), default=0.0)
    least_y = min(0.9, math.floor(10 * least) / 10)

    def at(x: float, y: float) -> str:
        across = MARGIN_LEFT + x / most_x * (right - MARGIN_LEFT)
        down = bottom - (y - least_y) / (1 - least_y) * (bottom - MARGIN_TOP)
        return f"{across:.1f},{down:.1f}"

    out = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(panel.title)} by {panel.x_label}">',
        f'<text class="title" x="{MARGIN_LEFT}" y="14">{escape(panel.title)}</text>',
        f'<text x="{right}" y="{height - 4}" text-anchor="end">{panel.x_label}</text>',
    ]
    for tick in _ticks(least_y, 1.0):
        x, y = at(0, tick).split(",")
        out.append(f'<path class="grid" d="M{x} {y}H{right}"/>')
        out.append(f'<text x="{MARGIN_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
    for tick in _ticks(0, most_x):
        x = at(tick, least_y).split(",")[0]
        out.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for method, curve in panel.curves.items():
        look = styles[method]
        xs = curve.x.tolist()
        upper = [at(x, y) for x, y in zip(xs, curve.high.tolist(), strict=True)]
        lower = [at(x, y) for x, y in zip(xs, curve.low.tolist(), strict=True)]
        line = [at(x, y) for x, y in zip(xs, curve.median.tolist(), strict=True)]
        band = " ".join([*upper, *reversed(lower)])
        out.append(f'<polygon points="{band}" fill="{look.colour}" opacity="0.12"/>')
        out.append(
            f'<polyline points="{" ".join(line)}" fill="none" stroke="{look.colour}" stroke-width="1.8" '
            f'stroke-dasharray="{look.dash}"><title>{escape(method)}</title></polyline>'
        )
    return "".join([*out, "</svg>"])


def _ticks(low: float, high: float) -> Sequence[float]:
    """Four to ten round numbers in a range."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
