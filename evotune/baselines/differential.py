"""Differential evolution, DE/rand/1/bin (Storn & Price 1997), on positions of values."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from evotune.baselines.base import Baseline, Key, Move
from evotune.proposers.base import Feedback
from evotune.space import ConfigSpace


@dataclass(frozen=True)
class _Member:
    key: Key
    loss: float
    number: int


class DifferentialEvolution(Baseline):
    """Adds the difference of two members to a third, crosses it with a target, keeps the better.

    Members are replaced as soon as a child is told, so several may be in flight; a child says by its
    ``parent`` whose place it competes for.

    Args:
        space: The legal configurations.
        seed: Fixes everything that is drawn.
        population: Helion's at quick effort, meant for 160 trials; at 40, that of full effort, 200
            trials are too few to learn anything. Random trials are made until as many have worked.
        crossover: Probability that a parameter comes from the mutant; Helion's default.
        weight: Factor of the difference, F of the paper, which recommends 0.5 to 1.
    """

    def __init__(
        self,
        space: ConfigSpace,
        seed: int,
        *,
        population: int = 20,
        crossover: float = 0.8,
        weight: float = 0.8,
    ) -> None:
        super().__init__(space, seed)
        self._size = max(4, population)
        self._crossover = crossover
        self._weight = weight
        self._members: list[_Member] = []
        self._place: dict[int, int] = {}
        self._parameters = list(space.parameters.values())

    def _propose(self, rng: Random, in_flight: int) -> Move | None:
        if len(self._members) < self._size:
            return None
        at = (self._told + in_flight) % self._size
        target = self._members[at]
        others = [m.key for m in self._members[:at] + self._members[at + 1 :]]
        key = self._fresh(lambda: self._child(target.key, rng.sample(others, 3), rng))
        return None if key is None else (key, "crossover", target.number)

    def _learn(self, key: Key, item: Feedback) -> None:
        if item.loss is None:
            return
        member = _Member(key, item.loss, item.number)
        parent = item.candidate.parent
        at = None if parent is None else self._place.get(parent)
        if at is None and len(self._members) < self._size:
            self._place[item.number] = len(self._members)
            self._members.append(member)
        elif at is not None:
            self._place[item.number] = at
            if member.loss < self._members[at].loss:
                self._members[at] = member

    def _child(self, target: Key, others: list[Key], rng: Random) -> Key:
        """Mutation and binomial crossover; at least one parameter comes from the mutant."""
        sure = rng.randrange(len(target))
        return tuple(
            self._mutant(j, [o[j] for o in others], rng) if j == sure or rng.random() < self._crossover else i
            for j, i in enumerate(target)
        )

    def _mutant(self, j: int, members: list[int], rng: Random) -> int:
        """``a + F (b - c)``; a value without order has no difference, and becomes one of the two."""
        a, b, c = members
        parameter = self._parameters[j]
        if not parameter.ordered:
            return a if b == c else rng.choice((b, c))
        last = len(parameter.values) - 1
        moved = round(a + self._weight * (b - c))
        # Reflected at the ends: clipping would pile members up there.
        return min(abs(moved), last) if moved <= last else max(0, 2 * last - moved)
