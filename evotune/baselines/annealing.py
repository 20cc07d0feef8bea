"""Simulated annealing over Hamming neighbours (Kirkpatrick, Gelatt & Vecchi 1983)."""

from __future__ import annotations

import math
from random import Random

from evotune.baselines.base import Baseline, Key, Move
from evotune.proposers.base import Feedback
from evotune.space import ConfigSpace


class SimulatedAnnealing(Baseline):
    """Walks to a neighbour if it is better, and with probability exp(-worsening / temperature) if not.

    The loss is a log latency, so the temperature is a relative slowdown: at 0.1 one that is 10 %
    slower is accepted with probability 1/e. Where all neighbours are known the walk starts anew.

    Args:
        space: The legal configurations.
        seed: Fixes everything that is drawn.
        start_temperature: Default of Kernel Tuner 1.5.
        end_temperature: Default of Kernel Tuner 1.5.
        evaluations: Trials over which the temperature falls geometrically from one to the other,
            the budget if it is known; Kernel Tuner stretches its schedule likewise.
    """

    def __init__(
        self,
        space: ConfigSpace,
        seed: int,
        *,
        start_temperature: float = 0.1,
        end_temperature: float = 0.0001,
        evaluations: int = 200,
    ) -> None:
        super().__init__(space, seed)
        self._start = start_temperature
        self._end = end_temperature
        self._evaluations = evaluations
        self._here: tuple[Key, int, float] | None = None

    @property
    def temperature(self) -> float:
        """The present one, as a relative slowdown."""
        progress = min(1.0, self._told / self._evaluations)
        return self._start * (self._end / self._start) ** progress

    def _propose(self, rng: Random, in_flight: int) -> Move | None:
        if self._here is None:
            return None
        key, number, _ = self._here
        around = [self._space.key(c) for c in self._space.neighbors(self._space.from_key(key))]
        unseen = [k for k in around if k not in self._seen]
        return (rng.choice(unseen), "mutation", number) if unseen else None

    def _learn(self, key: Key, item: Feedback) -> None:
        # A random candidate is proposed only to start a walk.
        if item.loss is not None and (item.candidate.origin == "random" or self._accepts(item.loss)):
            self._here = key, item.number, item.loss

    def _accepts(self, loss: float) -> bool:
        if self._here is None or loss <= self._here[2]:
            return True
        return self._rng("accept").random() < math.exp((self._here[2] - loss) / self.temperature)
