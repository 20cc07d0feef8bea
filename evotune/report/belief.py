"""What a surrogate makes of a run's trials: which parameters matter, and what it predicts of pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evotune.facts import SPACE
from evotune.history import RunHistory
from evotune.proposers.linalg import one_thread
from evotune.report.kept import kept
from evotune.space import ConfigSpace
from evotune.surrogate import PROFILES, Surrogate
from evotune.surrogate.influence import Axis, axes, grid, influence
from evotune.trial import Trial
from evotune.tuner import feedback_of

# Learning from so many trials takes half a second; of more, the best are taken and others evenly.
MOST_TRIALS = 250
BEST_TRIALS = 50
# Every so many-th timed trial is held back at first, to see how well it is predicted.
HELD_BACK = 5
# Over all pairs of parameters; 20000 are 250 kB of page.
MOST_CELLS = 20_000


@dataclass(frozen=True)
class Pair:
    """What is predicted of two parameters, the others as in the best configuration; None is not legal."""

    down: str
    across: str
    latency_ms: Sequence[float | None]
    std: Sequence[float | None]
    """Of log latency."""


@dataclass(frozen=True)
class Belief:
    """What a surrogate says that was told ``told`` of ``known`` trials.

    Args:
        influence: Share of the variance of predicted log latency that a parameter explains alone.
        axes: Parameters and values of which pairs are shown.
        skill: Share of the variance of log latency that it predicted of trials which were held back: 1 is all of
            it, 0 is no better than their mean; None if there were too few to say.
        is_whole_space: Whether the space was recorded with the run; else it is what trials show of it.
    """

    told: int
    known: int
    influence: Mapping[str, float]
    axes: Sequence[Axis]
    pairs: Sequence[Pair]
    skill: float | None
    is_whole_space: bool


def belief(history: RunHistory, space: ConfigSpace) -> Belief | None:
    """What a surrogate like the run's own predicts now; None if too few trials were timed."""
    best = history.best_trial
    if best is None:
        return None
    told = _chosen(history.trials)
    with one_thread():
        surrogate = _taught(history, space, told)
        if surrogate is None:
            return None
        found = influence(surrogate, space)
        shown = axes(space, list(found), MOST_CELLS)
        pairs = [_pair(space, surrogate, best, two) for two in combinations(shown, 2)]
        skill = _skill(history, space, told)
    is_whole = kept(history, SPACE) is not None
    return Belief(len(told), len(history.trials), found, shown, pairs, skill, is_whole)


def _taught(history: RunHistory, space: ConfigSpace, told: Sequence[Trial]) -> Surrogate | None:
    """A surrogate that has learned from trials; None if there are too few."""
    chosen = history.description.get("settings", {}).get("search", {}).get("kernel", "matern52")
    surrogate = Surrogate(space, seed=int(history.description.get("seed", 0)), profile=PROFILES[chosen])
    for trial in told:
        heard = feedback_of(trial)
        surrogate.observe(trial.config, heard.loss, fidelity_rank=heard.fidelity_rank, variance=heard.variance)
    return surrogate if surrogate.look_back() else None


def _skill(history: RunHistory, space: ConfigSpace, told: Sequence[Trial]) -> float | None:
    timed = [t for t in told if t.latency_ms is not None]
    # From the third on: the default and the first steps from it are like nothing else.
    back = timed[2::HELD_BACK]
    surrogate = _taught(history, space, [t for t in told if t not in back]) if len(back) > 1 else None
    if surrogate is None:
        return None
    true = np.log([t.latency_ms or 1.0 for t in back])
    mean, _ = surrogate.predict([t.config for t in back])
    variance = float(((true - true.mean()) ** 2).mean())
    return 1 - float(((mean - true) ** 2).mean()) / variance if variance else None


def _chosen(trials: Sequence[Trial]) -> Sequence[Trial]:
    """All trials, or the best and others evenly spread over the run, in order of completion."""
    if len(trials) <= MOST_TRIALS:
        return trials
    timed = [i for i, t in enumerate(trials) if t.latency_ms is not None]
    best = sorted(timed, key=lambda i: trials[i].latency_ms or 0.0)[:BEST_TRIALS]
    rest = sorted({*range(len(trials))} - {*best})
    left = MOST_TRIALS - len(best)
    spread = [rest[i * (len(rest) - 1) // (left - 1)] for i in range(left)]
    return [trials[i] for i in sorted({*best, *spread})]


def _pair(space: ConfigSpace, surrogate: Surrogate, best: Trial, two: tuple[Axis, Axis]) -> Pair:
    found = grid(space, surrogate, best.config, two)
    return Pair(found.down.name, found.across.name, found.placed(np.exp(found.mean), 4), found.placed(found.std, 2))
