"""How near the run came to what the device could do at best (Williams, Waterman & Patterson 2009)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evotune.history import RunHistory
from evotune.llm import Roofline
from evotune.report.kept import roofline_of

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44
# Decades beside the ridge and the kernel.
MARGIN = 0.7

Place = Callable[[float, float], tuple[float, float]]
"""Where in the picture an intensity and a rate are."""


@dataclass(frozen=True)
class Reached:
    """A latency as rates; ``share`` of what the roof allows at this intensity, None without peaks."""

    name: str
    latency_ms: float
    flops_per_s: float
    bytes_per_s: float
    share: float | None


@dataclass(frozen=True)
class Roof:
    """The kernel's work, the device's peaks, and what was reached."""

    work: Roofline
    reached: Sequence[Reached]
    svg: str | None
    """None where work or peaks are not known."""

    @property
    def intensity(self) -> float:
        """Operations per byte that must be moved, where both are known."""
        return self.work.flops / self.work.bytes_moved

    @property
    def peaks(self) -> str:
        """Those of the device that bound this work."""
        named = (
            (self.work.flops, self.work.peak_flops_per_s, "FLOP/s"),
            (self.work.bytes_moved, self.work.peak_bytes_per_s, "B/s"),
        )
        return " and ".join(f"{si(peak)}{unit}" for work, peak, unit in named if work and peak)


def roof(history: RunHistory, best_ms: float | None, default_ms: float | None) -> Roof | None:
    """Of a run at one shape; None if the kernel's work was not kept, or makes no sense."""
    work = roofline_of(history)
    if work is None or min(work.flops, work.bytes_moved) < 0 or not (work.flops or work.bytes_moved):
        return None
    named = {"default": default_ms, "best": best_ms}
    reached = [_reached(work, name, ms) for name, ms in named.items() if ms is not None]
    return Roof(work, reached, _drawn(work, reached))


def _reached(work: Roofline, name: str, latency_ms: float) -> Reached:
    seconds = latency_ms / 1e3
    share = None if work.bound_ms is None else work.bound_ms / latency_ms
    return Reached(name, latency_ms, work.flops / seconds, work.bytes_moved / seconds, share)


def _drawn(work: Roofline, reached: Sequence[Reached]) -> str | None:
    """Operations per second over operations per byte, both logarithmic."""
    if not (work.flops and work.bytes_moved and work.peak_flops_per_s and work.peak_bytes_per_s):
        return None
    intensity, ridge = work.flops / work.bytes_moved, work.peak_flops_per_s / work.peak_bytes_per_s
    low_x = math.log10(min(intensity, ridge)) - MARGIN
    high_x = math.log10(max(intensity, ridge)) + MARGIN
    high_y = math.log10(work.peak_flops_per_s) + 0.3
    lowest = [10**low_x * work.peak_bytes_per_s, *(r.flops_per_s for r in reached)]
    low_y = min(math.log10(min(lowest)) - 0.2, high_y - 1.8)  # two powers of ten are named at least

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (math.log10(x) - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high_y - math.log10(y)) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    start, top = at(10**low_x, 10**low_x * work.peak_bytes_per_s), at(ridge, work.peak_flops_per_s)
    told = "; ".join(f"{r.name} {si(r.flops_per_s)}FLOP/s" for r in reached)
    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Roofline: the peaks meet at {ridge:.3g} '
        f'FLOP per byte, the kernel has {intensity:.3g}; {told}">',
        *_grid(low_x, high_x, low_y, high_y, at),
        f'<path class="roof" d="M{start[0]:.1f} {start[1]:.1f}L{top[0]:.1f} {top[1]:.1f}H{WIDTH - RIGHT}"/>',
    ]
    column = at(intensity, 10**high_y)[0]
    out.append(f'<path class="column" d="M{column:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for r in reached:
        x, y = at(intensity, r.flops_per_s)
        # The best is above the default: names on both sides cannot meet.
        side, anchor = (-9, "end") if r.name == "best" else (9, "start")
        out.append(f'<circle class="{r.name}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        out.append(f'<text x="{x + side:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{r.name}</text>')
    return "".join([*out, "</svg>"])


def _grid(low_x: float, high_x: float, low_y: float, high_y: float, at: Place) -> list[str]:
    out: list[str] = []
    bottom = HEIGHT - BOTTOM
    for power in range(math.ceil(low_x), math.floor(high_x) + 1):
        x = at(10.0**power, 1.0)[0]
        out.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(math.ceil(low_y), math.floor(high_y) + 1):
        y = at(1.0, 10.0**power)[1]
        out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{si(10.0**power)}</text>')
    out.append(f'<text x="0" y="{TOP - 4}">FLOP/s</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">FLOP per byte</text>')
    return out


def si(number: float) -> str:
    """Four digits and a prefix, ready for a unit: ``40.28 G``."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {prefix}"
    return f"{number:.4g} "
