"""How good a search is on recorded spaces, whose optimum is known.

``score`` is the area between the best so far that random search without replacement expects and the
method's mean best so far, as a share of the distance to the optimum: 0 is random search, 1 the
optimum at once. ``time_score`` is the same over recorded compile and benchmark seconds plus the
search's own. A repeat of a configuration is free, a failed one counts, and latencies are those of
the recording, whatever a run says. On the synthetic landscape a repeat counts as well: it is another
measurement there, at another fidelity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evotune.compare.runs import SearchRun
from evotune.compare.synthetic import SyntheticRecording
from evotune.errors import UsageError
from evotune.replay import Recording
from evotune.space import Config

Array = npt.NDArray[Any]

MARKS = (10, 25, 50, 100, 200)
WITHIN = 1.05
TIME_POINTS = 200


@dataclass(frozen=True)
class MethodScore:
    """How one method did; means over spaces of means over seeds, except where said."""

    method: str
    seeds: int
    score: float
    worst: float
    """The lowest score of a space."""
    time_score: float
    ratios: Mapping[int, float]
    """Evaluations made to optimum / best found by then, in (0, 1]."""
    within_5pct: float
    """Share of runs whose best is at most 5 % slower than the optimum."""
    overhead_ms: float
    """CPU time of the search per evaluation, median over runs."""
    per_space: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class Course:
    """How one run went: the best latency after each of ``budget`` evaluations, and the seconds that
    each evaluation that was made had taken by its end."""

    best_ms: Array
    seconds: Array

    def best_at(self, at_s: Array, before_ms: float) -> Array:
        """The best latency known at given seconds; ``before_ms`` before the first evaluation."""
        i: Array = np.searchsorted(self.seconds, at_s, side="right") - 1
        return np.where(i >= 0, self.best_ms[np.maximum(i, 0)], before_ms)


class Landscape:
    """A recorded space as arrays, (n,) each; failures have a latency of infinity."""

    def __init__(self, recording: Recording) -> None:
        rows = recording.rows.values()
        self.name = recording.name
        self.space = recording.space
        # A recording knows one number of each configuration, and asking again is looking it up again.
        # The synthetic landscape is measured anew: a search pays for each of its promotions.
        self.repeats_count = isinstance(recording, SyntheticRecording)
        self.latency_ms = np.array([np.inf if r.time_ms is None else r.time_ms for r in rows])
        self.cost_s = np.array([r.seconds for r in rows])
        self._keys = list(recording.rows)
        self._index = {key: i for i, key in enumerate(self._keys)}
        valid = self.latency_ms[np.isfinite(self.latency_ms)]
        self.optimum_ms = float(valid.min())
        self.median_ms = float(np.median(valid))
        """Stands in for the best so far while everything has failed."""

    @property
    def mean_cost_s(self) -> float:
        """Compile and benchmark seconds of a configuration on average."""
        return float(self.cost_s.mean())

    def random_ms(self, budget: int) -> Array:
        """Best latency that random search without replacement expects after 1 … budget
        evaluations, (budget,). With the latencies sorted, the chance that t draws all miss the best
        k of n is C(n - k, t) / C(n, t)."""
        values = np.sort(self.latency_ms)
        values[np.isinf(values)] = self.median_ms
        n = len(values)
        missed = np.ones(n + 1)
        out = np.empty(budget)
        for t in range(min(budget, n)):
            missed *= np.maximum(n - np.arange(n + 1) - t, 0) / (n - t)
            out[t] = (missed[:-1] - missed[1:]) @ values
        out[n:] = out[min(budget, n) - 1]
        return out

    def course(self, run: SearchRun, budget: int) -> Course:
        """What a run had found when.

        Raises:
            UsageError: It evaluated a configuration that is not in the recording.
        """
        rows = self.rows(run)[:budget]
        best_ms = np.full(budget, np.inf)
        best_ms[: len(rows)] = self.latency_ms[rows]
        best_ms = np.minimum.accumulate(best_ms)
        best_ms[np.isinf(best_ms)] = self.median_ms
        own_s = run.overhead_s / max(1, len(rows)) * np.arange(1, len(rows) + 1)
        return Course(best_ms, np.cumsum(self.cost_s[rows]) + own_s)

    def rows(self, run: SearchRun) -> Array:
        """The evaluations of a run that count, as positions in :attr:`latency_ms`.

        Raises:
            UsageError: It evaluated a configuration that is not in the recording.
        """
        keys = [self.space.key(config) for config, _ in run.evaluations]
        if unknown := [k for k in keys if k not in self._index]:
            config = self.space.from_key(unknown[0])
            raise UsageError(f"{run.method} evaluated {config}, which is not in the recording {self.name}")
        made = [self._index[k] for k in keys]
        return np.array(made if self.repeats_count else list(dict.fromkeys(made)), dtype=int)

    def config(self, row: int) -> Config:
        """The configuration at a position of :attr:`latency_ms`."""
        return self.space.from_key(self._keys[row])

    def gain(self, random_ms: Array, courses_ms: Sequence[Array]) -> float:
        """Mean share of the distance from random search to the optimum that was won. Where random
        search is at the optimum itself there is nothing to win, and nothing is counted."""
        distance: Array = random_ms - self.optimum_ms
        open_: Array = distance > 1e-9 * self.optimum_ms
        if not open_.any():
            return 0.0
        won: Array = random_ms - np.mean(courses_ms, axis=0)
        return float(np.mean(won[open_] / distance[open_]))

    def time_gain(self, random_ms: Array, courses: Sequence[Course]) -> float:
        """:meth:`gain` over the time in which random search spends the budget."""
        budget = len(random_ms)
        at = np.linspace(1, budget, TIME_POINTS)
        expected = np.interp(at, np.arange(1, budget + 1), random_ms)
        return self.gain(expected, [c.best_at(at * self.mean_cost_s, self.median_ms) for c in courses])


def score(runs: Sequence[SearchRun], recordings: Sequence[Recording], budget: int) -> list[MethodScore]:
    """One row per method, best first.

    Raises:
        UsageError: A run is of a space that is not among the recordings, or left its space.
    """
    landscapes = {r.name: Landscape(r) for r in recordings}
    if unknown := sorted({r.space for r in runs} - set(landscapes)):
        raise UsageError(f"there are runs on {unknown}, but no such recordings; given: {sorted(landscapes)}")
    random_ms = {name: landscape.random_ms(budget) for name, landscape in landscapes.items()}
    rows = [
        _score_method(method, [r for r in runs if r.method == method], landscapes, random_ms)
        for method in dict.fromkeys(r.method for r in runs)
    ]
    return sorted(rows, key=lambda row: -row.score)


def _score_method(
    method: str, runs: Sequence[SearchRun], landscapes: Mapping[str, Landscape], random_ms: Mapping[str, Array]
) -> MethodScore:
    scores: dict[str, float] = {}
    time_scores: list[float] = []
    ratios: list[list[float]] = []
    within: list[float] = []
    for name, landscape in landscapes.items():
        mine = [r for r in runs if r.space == name]
        if not mine:
            continue
        budget = len(random_ms[name])
        courses = [landscape.course(r, budget) for r in mine]
        curves = np.array([c.best_ms for c in courses])
        scores[name] = landscape.gain(random_ms[name], list(curves))
        time_scores.append(landscape.time_gain(random_ms[name], courses))
        share = landscape.optimum_ms / curves
        ratios.append([float(share[:, k - 1].mean()) for k in MARKS if k <= budget])
        within.append(float((curves[:, -1] <= WITHIN * landscape.optimum_ms).mean()))
    marks = [k for k in MARKS if k <= len(next(iter(random_ms.values())))]
    return MethodScore(
        method=method,
        seeds=max(sum(r.space == name for r in runs) for name in scores),
        score=float(np.mean(list(scores.values()))),
        worst=min(scores.values()),
        time_score=float(np.mean(time_scores)),
        ratios=dict(zip(marks, np.mean(ratios, axis=0).tolist(), strict=True)),
        within_5pct=float(np.mean(within)),
        overhead_ms=1e3 * float(np.median([r.overhead_s / max(1, len(r.evaluations)) for r in runs])),
        per_space=scores,
    )


def format_table(rows: Sequence[MethodScore]) -> str:
    """The scores as text, one line per method."""
    marks = list(rows[0].ratios) if rows else []
    width = max([6, *(len(r.method) for r in rows)])
    head = f"{'method':{width}s} spaces seeds  score  worst  time  " + " ".join(f"{f'r@{k}':>6s}" for k in marks)
    lines = [head + "   <=5%  ms/eval"]
    for r in rows:
        ratios = " ".join(f"{r.ratios[k]:6.3f}" for k in marks)
        lines.append(
            f"{r.method:{width}s} {len(r.per_space):6d} {r.seeds:5d} {r.score:6.3f} {r.worst:6.3f} "
            f"{r.time_score:6.3f} {ratios} {r.within_5pct:6.1%} {r.overhead_ms:8.2f}"
        )
    return "\n".join(lines)
