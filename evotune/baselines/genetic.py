"""A genetic algorithm with overlapping generations (Goldberg & Deb 1991)."""

from __future__ import annotations

from bisect import insort
from random import Random

from evotune.baselines.base import Baseline, Key, Move
from evotune.proposers.base import Feedback
from evotune.space import ConfigSpace


class GeneticAlgorithm(Baseline):
    """Crosses two of the best trials so far, preferring better ones, and mutates the child.

    Since nothing is measured twice, parents live on without cost: the population is the best of all
    trials, and a child joins it as soon as it is told, however many are in flight.

    Args:
        space: The legal configurations.
        seed: Fixes everything that is drawn.
        population: Parents; default of Kernel Tuner 1.5. The first as many trials are random.
        mutation: Probability that a parameter of a child is redrawn: about 1 / parameters
            (Mühlenbein 1992) for the 4 to 10 that kernels have.
    """

    def __init__(self, space: ConfigSpace, seed: int, *, population: int = 26, mutation: float = 0.1) -> None:
        super().__init__(space, seed)
        self._size = population
        self._mutation = mutation
        self._parents: list[tuple[float, int, Key]] = []
        self._widths = [len(p.values) for p in space.parameters.values()]

    def _propose(self, rng: Random, in_flight: int) -> Move | None:
        if self._told < self._size or len(self._parents) < 2:
            return None
        # Linear ranking: the best of n parents weighs n times as much as the worst.
        n = len(self._parents)
        first, second = rng.choices(self._parents, range(n, 0, -1), k=2)
        key = self._fresh(lambda: self._child(first[2], second[2], rng))
        return None if key is None else (key, "crossover", first[1])

    def _learn(self, key: Key, item: Feedback) -> None:
        if item.loss is not None:
            insort(self._parents, (item.loss, item.number, key))
            del self._parents[self._size :]

    def _child(self, a: Key, b: Key, rng: Random) -> Key:
        """Uniform crossover (Syswerda 1989), then mutation."""
        mixed = [rng.choice(pair) for pair in zip(a, b, strict=True)]
        return tuple(
            rng.randrange(width) if rng.random() < self._mutation else i
            for i, width in zip(mixed, self._widths, strict=True)
        )
