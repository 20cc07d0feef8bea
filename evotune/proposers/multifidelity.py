"""Multi-fidelity Bayesian optimisation: many rough measurements, of which the best become careful."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from evotune.errors import UsageError
from evotune.program import render
from evotune.proposers.base import Feedback
from evotune.proposers.linalg import one_thread
from evotune.proposers.schedule import PRESETS, Phase, Schedule
from evotune.space import Array, Config, ConfigSpace
from evotune.surrogate import Surrogate
from evotune.trial import Candidate, Origin

Key = tuple[int, ...]

RANKS = (1, 2, 3, 4)  # low, medium, high, ultra
# A phase ends early once the surrogate expects less than this of any new configuration, in standard
# deviations of the losses: 0.05 % of latency where configurations differ by half.
LEAST_GAIN = 1e-3
# Half the width of the bounds by which a candidate is ruled out, in standard deviations.
BOUND = 2.0


@dataclass(frozen=True)
class _Known:
    """What the last and most careful trial of a configuration told; ``loss`` is None if it failed."""

    number: int
    rank: int
    loss: float | None
    variance: float


class MultiFidelityBayesianSearch:
    """Measures many configurations roughly, and the best of them ever more carefully.

    A phase for each fidelity: first the best from below are promoted, then new configurations are
    measured. The first phase begins with some that are far apart; all other choices are the
    surrogate's, which fuses the measurements of all fidelities. A candidate that cannot win any more
    is not promoted, and a phase from which little more is to be expected ends early. What is left of
    the budget afterwards, or was saved, goes on in the same way, one at a time: whichever
    configuration looks best is promoted until it is at the top, and where it is there already, a new
    one is measured at the lowest fidelity.

    A promotion is a trial of its own, with the earlier one as its ``parent``. Telling a fresh object
    what a journal holds resumes a run.

    Args:
        space: The legal configurations.
        seed: Fixes everything that is drawn.
        schedule: How many are measured at each fidelity.
        ranks: Fidelities that the evaluator offers, rising.
        surrogate: Predicts and suggests; one of evotune's own with its defaults if None.
    """

    def __init__(
        self,
        space: ConfigSpace,
        seed: int,
        *,
        schedule: Schedule = PRESETS["default"],
        ranks: Sequence[int] = RANKS,
        surrogate: Surrogate | None = None,
    ) -> None:
        if not ranks or list(ranks) != sorted(set(ranks)):
            raise UsageError(f"ranks {list(ranks)} must rise from fidelity to fidelity")
        self._space = space
        self._surrogate = surrogate or Surrogate(space, seed=seed)
        self._ranks = list(ranks)
        self._phases = [p for p in schedule.phases(ranks) if p.promoted + p.random + p.guided]
        self._at = 0
        """Of the phases; this one has begun, and no later one."""
        self._known: dict[Key, _Known] = {}
        self._promoted: Counter[int] = Counter()
        self._new: Counter[int] = Counter()
        first = space.default
        n_random = sum(p.random for p in self._phases)
        self._opening = [first, *self._surrogate.start(n_random - 1, given=[first])] if n_random else []

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        """What to measure next, and at which fidelity; None if there is nothing left, or nothing to
        decide before what is ``pending`` is told."""
        waiting = {self._space.key(c) for c in pending}
        with one_thread():
            for i, phase in enumerate(self._phases[self._at :]):
                # Which are the best of a phase shows when all of it is told.
                if i > 0 and waiting:
                    return None
                if (found := self._promotion(phase, waiting) or self._exploration(phase, pending)) is not None:
                    return found
            return self._afterwards(pending)

    def tell(self, feedback: Sequence[Feedback]) -> None:
        """Learn from trials, in the order in which they ended."""
        for item in feedback:
            key = self._space.key(item.config)
            rank = item.candidate.fidelity_rank or item.fidelity_rank
            (self._promoted if key in self._known else self._new)[rank] += 1
            self._known[key] = _Known(item.number, rank, item.loss, item.variance)
            self._surrogate.observe(
                item.config,
                item.loss,
                fidelity_rank=item.fidelity_rank,
                variance=item.variance,
                cost_s=item.cost_s,
            )
            while self._at < len(self._phases) - 1 and self._phases[self._at + 1].rank <= rank:
                self._at += 1

    # -- what to do next ----------------------------------------------------------------------

    def _promotion(self, phase: Phase, waiting: Set[Key]) -> Candidate | None:
        in_flight = sum(key in self._known for key in waiting)
        if self._promoted[phase.rank] + in_flight >= phase.promoted:
            return None
        found = self._contenders(phase.rank, waiting)
        return self._again(found[0], phase.rank) if found else None

    def _exploration(self, phase: Phase, pending: Sequence[Config]) -> Candidate | None:
        taken = {*self._known, *(self._space.key(c) for c in pending)}
        begun = self._new[phase.rank] + len(taken) - len(self._known)
        if begun >= phase.random + phase.guided:
            return None
        if begun < phase.random:
            fresh = next((c for c in self._opening if self._space.key(c) not in taken), None)
            if fresh is not None:
                return self._candidate(fresh, "default" if fresh == self._space.default else "random", phase.rank)
        if self._surrogate.is_trusted and self._surrogate.best_score < math.log(LEAST_GAIN):
            return None
        return self._suggestion(phase.rank, pending)

    def _afterwards(self, pending: Sequence[Config]) -> Candidate | None:
        """When the schedule is done: the promotion of what looks best, or else something new."""
        waiting = {self._space.key(c) for c in pending}
        rising = self._contenders(self._ranks[-1], waiting)
        if rising and rising[0] == self._ranked()[0][0]:
            return self._climb(rising[0])
        return self._suggestion(self._ranks[0], pending) or (self._climb(rising[0]) if rising else None)

    # -- who could win ------------------------------------------------------------------------

    def _contenders(self, rank: int, waiting: Set[Key]) -> list[Key]:
        """Those measured below a fidelity that could still win, the best first."""
        ranked = self._ranked()
        bar = ranked[0][1] + BOUND * ranked[0][2] if ranked else 0.0
        could_win = [key for key, mean, std in ranked if mean - BOUND * std <= bar]
        return [key for key in could_win if self._known[key].rank < rank and key not in waiting]

    def _ranked(self) -> list[tuple[Key, float, float]]:
        """Timed configurations, the best first, each with the mean and standard deviation of its loss."""
        timed = [key for key, known in self._known.items() if known.loss is not None]
        mean, std = self._estimates(timed)
        return sorted(zip(timed, mean.tolist(), std.tolist(), strict=True), key=lambda found: found[1])

    def _estimates(self, keys: Sequence[Key]) -> tuple[Array, Array]:
        """Mean and standard deviation of the losses of timed configurations at the top fidelity."""
        if keys and self._surrogate.is_trusted:
            return self._surrogate.predict([self._space.from_key(key) for key in keys])
        known = [self._known[key] for key in keys]
        return np.array([k.loss for k in known]), np.sqrt([k.variance for k in known])

    # -- candidates ---------------------------------------------------------------------------

    def _climb(self, key: Key) -> Candidate:
        """A promotion by one fidelity."""
        return self._again(key, next(r for r in self._ranks if r > self._known[key].rank))

    def _again(self, key: Key, rank: int) -> Candidate:
        config = self._space.from_key(key)
        return Candidate(config, render(config, self._space), "surrogate", self._known[key].number, rank)

    def _suggestion(self, rank: int, pending: Sequence[Config]) -> Candidate | None:
        if len(self._known) >= self._space.cardinality:
            return None
        found = self._surrogate.suggest(1, pending)
        return self._candidate(found[0], "surrogate", rank) if found else None

    def _candidate(self, config: Config, origin: Origin, rank: int) -> Candidate:
        return Candidate(config, render(config, self._space), origin, None, rank)
