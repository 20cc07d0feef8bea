"""Scores of a Python function, of which more is better: how they are read, kept, and learned from."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, SupportsFloat

from evotune.space import Value
from evotune.trial import Fidelity, Measurement, Static, Trial

CALLED = Fidelity(1, "low", 1)
# The entry of a trial's facts that is its score: a score is a fact, not a time.
SCORE = "score"


def call(objective: Callable[[dict[str, Value]], Any], config: dict[str, Value]) -> tuple[float | None, str | None]:
    """A score and no failure, or no score and why."""
    try:
        score = objective(dict(config))
    except Exception as error:  # the caller's code may raise anything; that fails one configuration
        return None, f"{type(error).__name__}: {error}"
    # Not only float: scores come as numpy scalars and as tensors of one element.
    if isinstance(score, bool) or not isinstance(score, SupportsFloat):
        return None, f"the objective returned a {type(score).__name__}, not a number"
    try:
        value = float(score)
    except Exception as error:  # the caller's type may raise anything
        return None, f"the objective's {type(score).__name__} is not a number: {type(error).__name__}: {error}"
    if value == 0.0 or math.isnan(value) or math.isinf(value):
        return None, f"the objective returned {value}"
    return value, None


def scored(trial: Trial, score: float | None, failure: str | None) -> Trial:
    """A trial as a journal keeps it."""
    if score is not None:
        return replace(trial, static=Static(0.0, {SCORE: score}))
    failed = Measurement(CALLED, "measured", failed_stage="objective", reason=failure)
    return replace(trial, measurements=(failed,))


def score_of(trial: Trial) -> float | None:
    """The score that was kept; None if the trial failed."""
    return float(trial.facts[SCORE]) if SCORE in trial.facts else None


def losses_of_all(trials: Sequence[Trial]) -> list[float | None]:
    """The losses of trials that were recorded with a score."""
    scores = [score_of(t) for t in trials]
    losses = iter(losses_of([s for s in scores if s is not None]))
    return [None if s is None else next(losses) for s in scores]


def losses_of(scores: Sequence[float]) -> list[float]:
    """Scores as losses: minus their logarithm while all are positive, else minus the normal
    quantile of their rank, since ratios of scores of both signs mean nothing."""
    if all(s > 0 for s in scores):
        return [-math.log(s) for s in scores]
    ordered = sorted(scores)
    n = len(scores)
    middle = [(bisect_left(ordered, s) + bisect_right(ordered, s)) / 2 for s in scores]
    return [-NormalDist().inv_cdf(min(max(m, 0.5), n - 0.5) / n) for m in middle]
