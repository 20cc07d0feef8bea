"""How runs converge: medians and bands over seeds, by evaluations and by seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evotune.compare.comparison import Comparison
from evotune.compare.score import Course, Landscape

Array = npt.NDArray[Any]

POINTS = 60


@dataclass(frozen=True)
class Curve:
    """Optimum / best so far over runs, (n,) each: 1 is the optimum. The band is the middle half."""

    x: Array
    low: Array
    median: Array
    high: Array


@dataclass(frozen=True)
class Panel:
    """The curves of all methods over one axis."""

    title: str
    x_label: str
    curves: Mapping[str, Curve]


def panels(comparison: Comparison) -> list[tuple[Panel, Panel]]:
    """For all spaces together and then for each: by evaluations, and by seconds of compiling and
    benchmarking as recorded plus the search's own. All together, a second is a share of what an
    evaluation takes on average."""
    landscapes = [Landscape(r) for r in comparison.recordings]
    methods = list(dict.fromkeys(r.method for r in comparison.runs))
    courses: dict[tuple[str, str], list[Course]] = {}
    for landscape in landscapes:
        for method in methods:
            mine = [r for r in comparison.runs if (r.space, r.method) == (landscape.name, method)]
            courses[landscape.name, method] = [landscape.course(r, comparison.budget) for r in mine]
    groups = [(landscape.name, [landscape]) for landscape in landscapes]
    if len(landscapes) > 1:
        groups.insert(0, (f"all {len(landscapes)} spaces", landscapes))
    return [_pair(title, group, methods, courses, comparison.budget) for title, group in groups]


def _pair(
    title: str,
    group: Sequence[Landscape],
    methods: Sequence[str],
    courses: Mapping[tuple[str, str], Sequence[Course]],
    budget: int,
) -> tuple[Panel, Panel]:
    at = np.unique(np.linspace(1, budget, min(POINTS, budget)).astype(int))
    by_evaluations: dict[str, Curve] = {}
    by_time: dict[str, Curve] = {}
    one = group[0].mean_cost_s if len(group) == 1 else 1.0
    for method in methods:
        made = [(land, course) for land in group for course in courses[land.name, method]]
        if not made:
            continue
        shares = np.array([land.optimum_ms / course.best_ms[at - 1] for land, course in made])
        by_evaluations[method] = _curve(at, shares)
        # Drawn from the first evaluation on; what is best before it is nobody's merit.
        timed = [land.optimum_ms / c.best_at(at * land.mean_cost_s, float(c.best_ms[0])) for land, c in made]
        by_time[method] = _curve(at * one, np.array(timed))
    unit = "seconds, simulated" if len(group) == 1 else "time, in average evaluations"
    return Panel(title, "evaluations", by_evaluations), Panel(title, unit, by_time)


def _curve(x: Array, shares: Array) -> Curve:
    low, median, high = np.quantile(shares, [0.25, 0.5, 0.75], axis=0)
    return Curve(x, low, median, high)
