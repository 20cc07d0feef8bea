"""Pattern search as Helion does it: descend from the best of a random population, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from random import Random

import numpy as np

from evotune.baselines.base import Baseline, Key, Move
from evotune.proposers.base import Feedback
from evotune.space import ConfigSpace

# A step must be this much faster to be taken; Helion's min_improvement_delta.
MIN_IMPROVEMENT = 0.001


@dataclass(frozen=True)
class _Point:
    """Where a copy stands, or a trial that could be its next place."""

    key: Key
    loss: float
    number: int


class PatternSearch(Baseline):
    """Measures all steps from each copy's place, then moves each copy to its best one.

    A step changes one parameter, to a neighbouring value if it is ordered and to any if not, or two
    block sizes at once. A copy stops where no step is better; when all have, a new population is drawn.

    Args:
        space: The legal configurations.
        seed: Fixes everything that is drawn.
        population: Random configurations to start from; Helion's default at full effort.
        copies: How many of the best are descended from; Helion's default.
        generations: Steps that a copy takes at most; Helion's default.
        start: Trials of different configurations in place of the first population.
    """

    def __init__(
        self,
        space: ConfigSpace,
        seed: int,
        *,
        population: int = 100,
        copies: int = 5,
        generations: int = 20,
        start: Sequence[Feedback] = (),
    ) -> None:
        super().__init__(space, seed)
        self._size = population
        self._copies = copies
        self._generations = generations
        self._parameters = list(space.parameters.values())
        self._blocks = [j for j, n in enumerate(space.names) if "block" in n.lower()]
        self._generation = 0
        self._places: list[_Point] = []
        """Of the copies that still descend; empty while a population is measured."""
        self._owner: dict[Key, int] = {}
        """Of what the present generation measures: the index of the copy that it is a step of."""
        self._done: dict[Key, _Point | None] = {}
        self.populations = 0
        """Drawn so far: at the second one, all copies have come to their end."""
        if start:
            self._owner = {space.key(item.config): -1 for item in start}
            self.tell(start)
        else:
            self._populate()

    def _propose(self, rng: Random, in_flight: int) -> Move | None:
        for key, owner in self._owner.items():
            if key not in self._seen:
                return (key, "mutation", self._places[owner].number) if self._places else (key, "random", None)
        return None

    def _learn(self, key: Key, item: Feedback) -> None:
        if key in self._owner:
            self._done[key] = None if item.loss is None else _Point(key, item.loss, item.number)
        if len(self._done) == len(self._owner):
            self._advance()

    def _advance(self) -> None:
        """Start the next generation, now that all of the present one is known."""
        self._generation += 1
        timed = sorted((p for p in self._done.values() if p is not None), key=lambda p: (p.loss, p.number))
        if self._places:
            best: dict[int, _Point] = {}
            for point in timed:
                best.setdefault(self._owner[point.key], point)
            self._places = [
                best[i]
                for i, place in enumerate(self._places)
                if i in best and best[i].loss < place.loss - MIN_IMPROVEMENT
            ]
        else:
            self._places = timed[: self._copies]
        self._done = {}
        self._owner = {}
        if self._generation <= self._generations:
            for i, place in enumerate(self._places):
                for key in self._steps(place.key):
                    self._owner.setdefault(key, i)
        if not self._owner:
            self._populate()

    def _populate(self) -> None:
        """Draw a population; it stays empty once everything has been seen."""
        rng = self._rng("population")
        self.populations += 1
        self._generation = 0
        self._places = []
        first = self._space.key(self._space.default)
        self._owner = {} if first in self._seen else {first: -1}
        for _ in range(5 * self._size):
            if len(self._owner) == self._size:
                break
            key = self._space.key(self._space.sample(rng, 1)[0])
            if key not in self._seen:
                self._owner[key] = -1

    def _steps(self, key: Key) -> list[Key]:
        """Legal steps from a place that were never proposed."""
        moves = {j: self._near(j, key[j]) for j in range(len(key))}
        steps = [{j: i} for j, near in moves.items() for i in near]
        for a, b in combinations(self._blocks, 2):
            steps += [{a: i, b: k} for i, k in product(moves[a], moves[b])]
        keys = [tuple(step.get(j, i) for j, i in enumerate(key)) for step in steps]
        fresh = [k for k in keys if k not in self._seen]
        if not fresh:
            return []
        legal = self._space.holds(np.array(fresh))
        return [k for k, ok in zip(fresh, legal, strict=True) if ok]

    def _near(self, j: int, here: int) -> list[int]:
        parameter = self._parameters[j]
        others = [i for i in range(len(parameter.values)) if i != here]
        return [i for i in others if abs(i - here) == 1] if parameter.ordered else others
