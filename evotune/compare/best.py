"""What each method found on each space: how fast, how soon, and which configuration.

Latencies are those of the recording, the true ones on the synthetic landscape, whatever a search was
told. Pattern search is the one to beat; what is said against it is a median over seeds of ratios
between the two runs of one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from evotune.compare.comparison import Comparison
from evotune.compare.runs import SearchRun
from evotune.compare.score import Array, Landscape
from evotune.space import Config

BASELINE = "pattern"


@dataclass(frozen=True)
class Best:
    """What one method found on one space; medians over seeds, except where said."""

    space: str
    method: str
    latency_ms: float | None
    """None if not every other run found something that works."""
    reached: float | None
    """Evaluations made until its best was found."""
    evaluations: float
    """Evaluations made in all."""
    speedup: float | None
    """Latency of pattern search's best over that of this method's, 0 where it found nothing; None without both."""
    sooner: float | None
    """Evaluations that pattern search made until its best, over those until this method had one as fast;
    0 where it never had. None without both."""
    config: Config | None
    """The fastest of all seeds."""


@dataclass(frozen=True)
class _Run:
    """One run: the best latency after each evaluation, (n,), infinity where all have failed."""

    seed: int
    best_ms: Array
    fastest: int
    """The evaluation that found the best, from 0."""
    config: Config

    @property
    def final_ms(self) -> float:
        return float(self.best_ms[-1])

    def reaches(self, latency_ms: float) -> float:
        """Evaluations until a configuration was known that is this fast; infinity if none was."""
        (found,) = np.nonzero(self.best_ms <= latency_ms)
        return float(found[0]) + 1 if len(found) else math.inf


def best_found(comparison: Comparison) -> list[Best]:
    """One row per space and method: spaces as they were given, the methods with the fastest first."""
    out: list[Best] = []
    for recording in comparison.recordings:
        landscape = Landscape(recording)
        runs: dict[str, list[_Run]] = {}
        for run in comparison.runs:
            if run.space == landscape.name and run.evaluations:
                runs.setdefault(run.method, []).append(_follow(landscape, run, comparison.budget))
        rows = [_best(landscape.name, method, mine, runs.get(BASELINE, [])) for method, mine in runs.items()]
        out += sorted(rows, key=lambda r: (r.latency_ms or math.inf, r.reached or math.inf))
    return out


def _follow(landscape: Landscape, run: SearchRun, budget: int) -> _Run:
    rows = landscape.rows(run)[:budget]
    best_ms = np.minimum.accumulate(landscape.latency_ms[rows])
    fastest = int(np.argmin(landscape.latency_ms[rows]))
    return _Run(run.seed, best_ms, fastest, landscape.config(int(rows[fastest])))


def _best(space: str, method: str, runs: Sequence[_Run], baseline: Sequence[_Run]) -> Best:
    rivals = {run.seed: run for run in baseline if math.isfinite(run.final_ms)}
    pairs = [(run, rivals[run.seed]) for run in runs if run.seed in rivals]
    working = [run for run in runs if math.isfinite(run.final_ms)]
    latency_ms = median(run.final_ms for run in runs)
    fastest = min(working, key=lambda run: run.final_ms, default=None)
    return Best(
        space=space,
        method=method,
        latency_ms=latency_ms if math.isfinite(latency_ms) else None,
        reached=median(run.fastest + 1 for run in working) if working else None,
        evaluations=median(len(run.best_ms) for run in runs),
        speedup=median(rival.final_ms / run.final_ms for run, rival in pairs) if pairs else None,
        sooner=median((rival.fastest + 1) / run.reaches(rival.final_ms) for run, rival in pairs) if pairs else None,
        config=fastest.config if fastest else None,
    )


def format_best(rows: Sequence[Best]) -> str:
    """The rows as text: for each space a table, then the configurations."""
    spaces = dict.fromkeys(r.space for r in rows)
    return "\n\n".join(_format(space, [r for r in rows if r.space == space]) for space in spaces)


def _format(space: str, rows: Sequence[Best]) -> str:
    width = max([6, *(len(r.method) for r in rows)])
    head = f"{'method':{width}s} latency_ms  found at  evaluations  speedup  sooner"
    lines = [f"{space}: medians over seeds; speedup and sooner: times as fast, and as soon as fast, as {BASELINE}"]
    lines.append(head)
    for r in rows:
        lines.append(
            f"{r.method:{width}s} {_number(r.latency_ms, 10, '.4g')} {_number(r.reached, 9, 'g')} "
            f"{_number(r.evaluations, 12, 'g')} {_number(r.speedup, 8, '.3f')} {_number(r.sooner, 7, '.2f')}"
        )
    lines.append("best configurations")
    for r in rows:
        config = " ".join(f"{n}={v}" for n, v in r.config.items()) if r.config else "-"
        lines.append(f"{r.method:{width}s} {config}")
    return "\n".join(lines)


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}s}"
