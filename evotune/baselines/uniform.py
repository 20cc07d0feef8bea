"""Random search without replacement: what every other method has to beat."""

from __future__ import annotations

from random import Random

from evotune.baselines.base import Baseline, Key, Move
from evotune.proposers.base import Feedback


class RandomSearch(Baseline):
    """Configurations never seen, each as likely as any other."""

    def _propose(self, rng: Random, in_flight: int) -> Move | None:
        key = self._uniform(rng)
        return None if key is None else (key, "random", None)

    def _learn(self, key: Key, item: Feedback) -> None:
        """Blind by definition."""
