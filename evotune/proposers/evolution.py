"""Children of the islands' elites: one parent changed a little, or two crossed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from evotune.proposers.base import Feedback, Seeds, propose
from evotune.proposers.islands import Islands
from evotune.space import Config, ConfigSpace, Value
from evotune.trial import Candidate, Origin


class MutationProposer:
    """An elite with one or a few parameters moved, ordered ones mostly to a near value."""

    origin: Origin = "mutation"

    def __init__(self, space: ConfigSpace, islands: Islands, seed: int) -> None:
        self._space = space
        self._islands = islands
        self._seeds = Seeds(seed, "mutation")
        self._turn = 0

    def ask(self, n: int) -> list[Candidate]:
        rng = self._seeds.next()
        family = self._islands.sample(self._turn % self._islands.count)
        if not family:
            return []
        number, parent = family[0]
        return propose(self._space, self.origin, lambda: (mutate(self._space, parent, rng), number), n, tries=4 * n)

    def tell(self, feedback: Sequence[Feedback]) -> None:
        self._seeds.tell(len(feedback))
        self._turn += len(feedback)


class CrossoverProposer:
    """Each parameter from one of two elites of an island."""

    origin: Origin = "crossover"

    def __init__(self, space: ConfigSpace, islands: Islands, seed: int) -> None:
        self._space = space
        self._islands = islands
        self._seeds = Seeds(seed, "crossover")
        self._turn = 0

    def ask(self, n: int) -> list[Candidate]:
        rng = self._seeds.next()
        family = self._islands.sample(self._turn % self._islands.count, 3)
        if len(family) < 2:
            return []
        number, parent = family[0]

        def child() -> tuple[Config, int] | None:
            other = rng.choice(family[1:])[1]
            mixed: Config = {name: (parent if rng.random() < 0.5 else other)[name] for name in self._space.names}
            return None if self._space.violations(mixed) else (mixed, number)

        return propose(self._space, self.origin, child, n, tries=6 * n)

    def tell(self, feedback: Sequence[Feedback]) -> None:
        self._seeds.tell(len(feedback))
        self._turn += len(feedback)


def mutate(space: ConfigSpace, parent: Config, rng: Random, width: float = 0.3) -> Config:
    """A legal configuration near ``parent``: 1 + Binomial(d - 1, width / 2) parameters change, an
    ordered one to a neighbouring value with probability 1 - width. The parent if none is found."""
    tunable = [n for n, p in space.parameters.items() if len(p.values) > 1]
    for _ in range(20):
        child: dict[str, Value] = dict(parent)
        first = rng.choice(tunable) if tunable else None
        for name in tunable:
            if name == first or rng.random() < width / 2:
                child[name] = _moved(space, name, parent[name], rng, width)
        if not space.violations(child):
            return child
    return parent


def _moved(space: ConfigSpace, name: str, value: Value, rng: Random, width: float) -> Value:
    parameter = space.parameters[name]
    here = parameter.index(value) or 0
    others = [i for i in range(len(parameter.values)) if i != here]
    if parameter.ordered and rng.random() >= width:
        others = [i for i in others if abs(i - here) == 1]
    return parameter.values[rng.choice(others)]
