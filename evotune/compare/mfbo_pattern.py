"""The multi-fidelity search's schedule, then pattern search from the best that it found."""

from __future__ import annotations

from collections.abc import Sequence

from evotune.baselines import PatternSearch
from evotune.proposers.base import Feedback
from evotune.proposers.multifidelity import MultiFidelityBayesianSearch
from evotune.proposers.schedule import PRESETS
from evotune.space import Config, ConfigSpace
from evotune.trial import Candidate


class MfboPatternSearch(MultiFidelityBayesianSearch):
    """Hands over when its schedule is done: its configurations are the population of a pattern search.

    Args:
        space: The legal configurations.
        seed: Fixes everything that is drawn.
        ranks: Fidelities that the evaluator offers, rising. Pattern search climbs all of them.
        evaluations: The budget; a schedule that is too large for it is made smaller.
    """

    def __init__(self, space: ConfigSpace, seed: int, *, ranks: Sequence[int], evaluations: int) -> None:
        super().__init__(space, seed, schedule=PRESETS["default"].fitted(evaluations), ranks=ranks)
        self._seed = seed
        self._careful: dict[tuple[int, ...], Feedback] = {}
        self._pattern: PatternSearch | None = None

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        return self._pattern.ask(pending) if self._pattern else super().ask(pending)

    def tell(self, feedback: Sequence[Feedback]) -> None:
        if self._pattern:
            self._pattern.tell(feedback)
            return
        super().tell(feedback)
        self._careful.update({self._space.key(item.config): item for item in feedback})

    def _afterwards(self, pending: Sequence[Config]) -> Candidate | None:
        if pending:
            return None  # whoever is told last is one of the population
        self._pattern = PatternSearch(self._space, self._seed, start=list(self._careful.values()))
        return self._pattern.ask(pending)
