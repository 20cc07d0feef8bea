"""What evotune's surrogate believed in the course of a run, beside what is true.

A run's evaluations are replayed into a surrogate like the run's own. That is a function of its seed
and of what it was told, so it believes again what it believed then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evotune import settings
from evotune.compare.comparison import Comparison
from evotune.compare.runs import SearchRun, run_search
from evotune.compare.score import MARKS
from evotune.program import render
from evotune.proposers import Feedback, Searcher
from evotune.proposers.acquisition import SurrogateProposer
from evotune.proposers.linalg import one_thread
from evotune.replay import Recording
from evotune.session import make_surrogate
from evotune.space import Config, ConfigSpace
from evotune.surrogate import Surrogate
from evotune.surrogate.influence import Axis, axes, grid, influence, rounded
from evotune.trial import Candidate

METHOD = "evotune"
# Of one space at one moment, over all pairs: 1000 take 125 kB at five moments, so that a page of ten
# spaces stays below 2 MB. Every pair of the shipped recordings fits.
MOST_CELLS = 1000


@dataclass(frozen=True)
class Slice:
    """All combinations of two parameters, the others as in the incumbent.

    The lists go row by row, a row for each value ``down``, and are None where a combination is not legal.
    """

    down: str
    across: str
    latency_ms: Sequence[float | None]
    """Predicted."""
    std: Sequence[float | None]
    """Of log latency."""
    utility: Sequence[float | None]
    """Logarithm of what measuring promised, by the acquisition of the encoding whose turn it was."""
    true_ms: Sequence[float | None]
    """As recorded; None too where nothing was, or it failed."""
    failed: Sequence[int]
    evaluated: Sequence[int]
    """Positions of what had been evaluated."""


@dataclass(frozen=True)
class Moment:
    """The beliefs after so many evaluations."""

    evaluations: int
    is_trusted: bool
    incumbent: Config
    incumbent_ms: float
    slices: Sequence[Slice]


@dataclass(frozen=True)
class Belief:
    """A run's beliefs; the most influential parameter is the first axis."""

    space: str
    seed: int
    axes: Sequence[Axis]
    moments: Sequence[Moment]


def beliefs(comparison: Comparison) -> list[Belief]:
    """Of the first run of :data:`METHOD` on each space, after :data:`~evotune.compare.score.MARKS`
    evaluations; without spaces of a single tunable and runs that ended before the surrogate began."""
    runs: dict[str, SearchRun] = {}
    for run in comparison.runs:
        if run.method == METHOD:
            runs.setdefault(run.space, run)
    with one_thread():
        found = [_belief(runs[r.name], r) for r in comparison.recordings if r.name in runs]
    return [belief for belief in found if belief.moments]


class _Again:
    """Asks what a run asked, and keeps what it is told."""

    def __init__(self, run: SearchRun, space: ConfigSpace) -> None:
        self.told: list[Feedback] = []
        self._left = (Candidate(c, render(c, space), "surrogate") for c, _ in run.evaluations)

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        return next(self._left, None)

    def tell(self, feedback: Sequence[Feedback]) -> None:
        self.told += feedback


def _told(run: SearchRun, recording: Recording) -> list[Feedback]:
    """What the run's search was told, noise included."""
    again = _Again(run, recording.space)

    def make(recording: Recording, seed: int, budget: int) -> Searcher:
        return again

    run_search(recording, run.method, make, run.seed, len(run.evaluations))
    return again.told


def _belief(run: SearchRun, recording: Recording) -> Belief:
    space = recording.space
    told = _told(run, recording)
    # Twice: what was believed in the end decides which parameters are shown from the first moment on.
    last = _surrogate(space, run.seed)
    SurrogateProposer(space, last).tell(told)
    shown = axes(space, list(influence(last, space)), MOST_CELLS) if _is_ready(last) else []
    surrogate = _surrogate(space, run.seed)
    learner = SurrogateProposer(space, surrogate)
    moments: list[Moment] = []
    for made, item in enumerate(told, 1):
        learner.tell([item])
        if made in MARKS and len(shown) > 1 and _is_ready(surrogate):
            moments.append(_moment(recording, surrogate, told[:made], shown))
    return Belief(recording.name, run.seed, shown, moments)


def _surrogate(space: ConfigSpace, seed: int) -> Surrogate:
    return make_surrogate(space, settings.load(None, {"run.seed": seed}, {}))


def _is_ready(surrogate: Surrogate) -> bool:
    return surrogate.is_trusted or surrogate.is_set_aside


def _moment(recording: Recording, surrogate: Surrogate, told: Sequence[Feedback], shown: Sequence[Axis]) -> Moment:
    loss, config = min(
        ((item.loss, item.config) for item in told if item.loss is not None), key=lambda found: found[0]
    )
    evaluated = {recording.space.key(item.config) for item in told}
    slices = [_slice(recording, surrogate, evaluated, config, pair) for pair in combinations(shown, 2)]
    return Moment(len(told), surrogate.is_trusted, config, rounded(math.exp(loss), 4), slices)


def _slice(
    recording: Recording,
    surrogate: Surrogate,
    evaluated: Set[tuple[int, ...]],
    incumbent: Config,
    pair: tuple[Axis, Axis],
) -> Slice:
    found = grid(recording.space, surrogate, incumbent, pair)
    utility = surrogate.score([found.configs[i] for i in found.legal])
    rows = [recording.rows.get(key) for key in found.keys]
    return Slice(
        found.down.name,
        found.across.name,
        found.placed(np.exp(found.mean), 4),
        found.placed(found.std, 2),
        found.placed(utility, 3),
        [None if row is None or row.time_ms is None else rounded(row.time_ms, 4) for row in rows],
        [i for i, row in enumerate(rows) if row is not None and row.time_ms is None],
        [i for i, key in enumerate(found.keys) if key in evaluated],
    )
