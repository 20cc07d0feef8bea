"""What was measured at which shape, and the best programs that it supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from evotune.errors import UsageError
from evotune.shapes.rule import Problem, Rule, fit, leaves, render
from evotune.space import Config, ConfigSpace, Value

# What a branch has to save in the sum of log latencies: two runs of one configuration differ by 1 %, and
# a branch that was chosen for less is likely to be one for noise.
PRICE = 0.02
ONE_LEAF = math.inf
# Not a Python identifier, so no parameter has this name.
SHAPE = "@shape"


@dataclass(frozen=True)
class Shape:
    """One of the problems that a program is for, and what is legal there."""

    name: str
    problem: Problem
    space: ConfigSpace

    def pair(self, config: Config) -> Config:
        """A configuration at this shape, as engines, journals and evaluators know it."""
        return {SHAPE: self.name, **config}


def split(pair: Config) -> tuple[str, dict[str, Value]]:
    """Name of the shape, and configuration, of a pair."""
    return str(pair[SHAPE]), {name: value for name, value in pair.items() if name != SHAPE}


def ident(config: Config) -> str:
    """A name for the values of a configuration, whatever their order; True is not 1."""
    return repr(sorted(config.items()))


class Program:
    """One configuration for each shape, and the smallest rule that gives them.

    Args:
        shapes: In a fixed order.
        configs: Legal, one for each shape.
        kernel: Its name, for the text.
    """

    def __init__(self, shapes: Sequence[Shape], configs: Sequence[Config], kernel: str) -> None:
        self.configs = tuple(configs)
        self._shapes, self._kernel = shapes, kernel

    @cached_property
    def rule(self) -> Rule:
        """Fewest leaves; there is always one, as no two problems are equal."""
        names = [ident(c) for c in self.configs]

        def choose(members: frozenset[int]) -> tuple[float, Config] | None:
            first = min(members)
            return (0.0, self.configs[first]) if len({names[i] for i in members}) == 1 else None

        found = fit([s.problem for s in self._shapes], choose, 1.0)
        assert found is not None
        return found

    @cached_property
    def leaf_count(self) -> int:
        """Configurations that its text returns."""
        return sum(1 for _ in leaves(self.rule))

    @cached_property
    def text(self) -> str:
        """Python, the same for the same configurations."""
        names = [s.name for s in self._shapes]
        return render(
            self.rule, names, f"Configuration of {self._kernel} for a problem; tuned for {', '.join(names)}."
        )

    def with_config(self, config: Config, members: Sequence[int]) -> Program:
        """The same but for the shapes of these positions."""
        configs = [config if i in members else c for i, c in enumerate(self.configs)]
        return Program(self._shapes, configs, self._kernel)


class Table:
    """Losses (log latencies) by shape and configuration; a failure is remembered, and never a number.

    Raises:
        UsageError: Two shapes are the same problem.
    """

    def __init__(self, shapes: Sequence[Shape], kernel: str) -> None:
        self.shapes = tuple(shapes)
        self.kernel = kernel
        self._at = {s.name: i for i, s in enumerate(shapes)}
        self._losses: list[dict[str, float | None]] = [{} for _ in shapes]
        self._configs: dict[str, Config] = {}
        self.failures: list[str] = []
        """Shape, configuration and reason of each, oldest first."""
        for i, shape in enumerate(shapes):
            twins = [s.name for s in shapes[:i] if s.problem == shape.problem]
            if twins:
                raise UsageError(f"shapes {twins[0]!r} and {shape.name!r} are the same problem; give one of them")

    def split(self, pair: Config) -> tuple[int, dict[str, Value]]:
        """Position of the shape, and configuration, of a pair."""
        name, config = split(pair)
        return self._at[name], config

    def program(self, configs: Sequence[Config]) -> Program:
        """A program over the shapes of this table."""
        return Program(self.shapes, configs, self.kernel)

    def add(self, shape: int, config: Config, loss: float | None, failure: str | None = None) -> None:
        """A measured pair; None if it failed, and why."""
        self._configs[ident(config)] = config
        self._losses[shape][ident(config)] = loss
        if failure is not None:
            self.failures.append(f"{self.shapes[shape].name}, {dict(config)}: {failure}")

    def knows(self, shape: int, config: Config) -> bool:
        """Whether a pair was measured, or failed."""
        return ident(config) in self._losses[shape]

    def count(self, shape: int) -> int:
        """Pairs of one shape that were measured, or failed."""
        return len(self._losses[shape])

    def loss(self, shape: int, config: Config) -> float | None:
        """Of a pair; None if it failed or was not measured."""
        return self._losses[shape].get(ident(config))

    def first_loss(self, shape: int) -> float | None:
        """Of the pair that succeeded first: the scale of the shape."""
        return next((loss for loss in self._losses[shape].values() if loss is not None), None)

    def best(self, shape: int, n: int = 1) -> list[Config]:
        """The fastest ``n`` of a shape, the best first."""
        timed = [(loss, name) for name, loss in self._losses[shape].items() if loss is not None]
        return [self._configs[name] for _, name in sorted(timed)[:n]]

    def cost(self, program: Program, price: float) -> float | None:
        """Sum of its losses and the price of its branches; None if one failed or is not known."""
        losses = [self.loss(i, c) for i, c in enumerate(program.configs)]
        if any(loss is None for loss in losses):
            return None
        branches = program.leaf_count - 1
        total = sum(loss for loss in losses if loss is not None)
        return total + branches * price if branches else total

    def share(self, shape: int, config: Config) -> float | None:
        """Best known / its latency, with what is best known by now."""
        loss, best = self.loss(shape, config), self.best(shape)
        return None if loss is None else math.exp((self.loss(shape, best[0]) or 0.0) - loss)

    def score(self, program: Program) -> float | None:
        """Geometric mean of :meth:`share` over the shapes."""
        shares = [self.share(i, c) for i, c in enumerate(program.configs)]
        known = [s for s in shares if s is not None]
        return math.exp(sum(map(math.log, known)) / len(shares)) if len(known) == len(shares) else None

    def shared(self) -> int:
        """Configurations that were timed at every shape."""
        return sum(all(table.get(name) is not None for table in self._losses) for name in self._losses[0])

    def elite(self, price: float = PRICE) -> Program | None:
        """The best program of all that the measurements support, at this price of a branch.

        A leaf takes only what was measured at all of its shapes. None while there is no program.
        """

        def choose(members: frozenset[int]) -> tuple[float, Config] | None:
            tables = [self._losses[i] for i in sorted(members)]
            costs = [
                (sum(table[name] or 0.0 for table in tables), name)
                for name in tables[0]
                if all(table.get(name) is not None for table in tables)
            ]
            if not costs:
                return None
            cost, name = min(costs)
            return cost, self._configs[name]

        rule = fit([s.problem for s in self.shapes], choose, price)
        if rule is None:
            return None
        by_shape = {i: leaf.config for leaf in leaves(rule) for i in leaf.members}
        return self.program([by_shape[i] for i in range(len(self.shapes))])
