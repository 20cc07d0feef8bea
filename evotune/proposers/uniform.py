"""Configurations drawn blindly: the baseline, and the guard against a surrogate that is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from evotune.proposers.base import Feedback, Seeds, propose
from evotune.space import ConfigSpace
from evotune.trial import Candidate, Origin


class UniformProposer:
    """Legal configurations, each as likely as any other."""

    origin: Origin = "random"

    def __init__(self, space: ConfigSpace, seed: int) -> None:
        self._space = space
        self._seeds = Seeds(seed, "random")

    def ask(self, n: int) -> list[Candidate]:
        rng = self._seeds.next()
        return propose(self._space, self.origin, lambda: (self._space.sample(rng, 1)[0], None), n, tries=2 * n)

    def tell(self, feedback: Sequence[Feedback]) -> None:
        self._seeds.tell(len(feedback))
