"""The configurations that the surrogate itself would measure next."""

from __future__ import annotations

from collections.abc import Sequence

from evotune.program import render
from evotune.proposers.base import Feedback
from evotune.space import Config, ConfigSpace
from evotune.surrogate import Surrogate
from evotune.trial import Candidate, Origin


class SurrogateProposer:
    """The acquisition's favourites from the pool of legal configurations."""

    origin: Origin = "surrogate"

    def __init__(self, space: ConfigSpace, surrogate: Surrogate) -> None:
        self._space = space
        self._surrogate = surrogate
        self._pending: Sequence[Config] = ()

    def expect(self, pending: Sequence[Config]) -> None:
        """Configurations in flight, whose results the next question should not ask for again."""
        self._pending = pending

    def ask(self, n: int) -> list[Candidate]:
        found = self._surrogate.suggest(n, pending=self._pending)
        return [Candidate(c, render(c, self._space), self.origin) for c in found]

    def tell(self, feedback: Sequence[Feedback]) -> None:
        for item in feedback:
            self._surrogate.observe(
                item.config,
                item.loss,
                fidelity_rank=item.fidelity_rank,
                variance=item.variance,
                cost_s=item.cost_s,
            )
