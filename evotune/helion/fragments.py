"""Parameters as Helion's config-spec fragments, and configurations there and back.

A fragment decides what Helion's searches draw at random, which neighbours they try, how they mutate, and
what their forests see:

==================================  ====================================  ==============================
parameter                           fragment                              neighbours; inputs of a forest
==================================  ====================================  ==============================
not ordered                         ``EnumFragment`` over positions       all others; one for each value
booleans, False by default          ``BooleanFragment``                   the other; one
ordered, in steps: each power of    ``PowerOfTwoFragment(low, high)``     half and double; log2
two from the first to the last
ordered, in steps: all else         ``IntegerFragment`` over positions    the next on each side; rank
ordered, not in steps               ``EnumFragment`` over positions       all others; one for each value
==================================  ====================================  ==============================

Helion has no fragment for ordered numbers with gaps (16, 32, 48, …). Positions keep their order; an
``EnumFragment``, which is what Helion's users have for such numbers, loses it, but reaches any value in
one step. Which is better depends on the search. Mean score over ten recordings at 200 evaluations, in
steps and not: PatternSearch 0.39 and 0.36 (6 seeds), LFBOTreeSearch 0.35 (3 seeds) and 0.53 (5),
LFBOPatternSearch 0.20 (3) and 0.52 (5). Stepping by one, the two last ended themselves before 200 in every
run. So each search is shown what serves it better.

A search starts from the default of each fragment, and that is the default of the space: an
``EnumFragment`` has it as its first choice, and a boolean that is True by default is one, because a
``BooleanFragment`` always starts at False. Positions of unordered values tell ``True`` from ``1``,
which Python's ``==`` does not. No parameter is a ``BlockSizeFragment`` or ``NumWarpsFragment``: a space
does not say which parameters tile a tensor.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false
# (helion is optional, and of what it has of types nothing here depends on.)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from helion.autotuner.config_fragment import (
    BooleanFragment,
    EnumFragment,
    IntegerFragment,
    PowerOfTwoFragment,
)

from evotune.baselines.base import Key
from evotune.space import ConfigSpace, Parameter, Value


@dataclass(frozen=True)
class Tunable:
    """A parameter as Helion has it."""

    fragment: Any
    values: tuple[Value, ...]
    """What Helion sees for each position of the parameter's values."""

    @classmethod
    def of(cls, parameter: Parameter, default: int, *, in_steps: bool) -> Tunable:
        """The fragment of a parameter, starting at position ``default``."""
        values, positions = parameter.values, tuple(range(len(parameter.values)))
        if in_steps and _doubles(parameter):
            return cls(PowerOfTwoFragment(values[0], values[-1], values[default]), values)
        if in_steps and parameter.ordered:
            return cls(IntegerFragment(0, positions[-1], default), positions)
        if all(type(v) is bool for v in values) and len(values) == 2 and not values[default]:
            return cls(BooleanFragment(), values)
        return cls(EnumFragment((default, *(i for i in positions if i != default))), positions)


def _doubles(parameter: Parameter) -> bool:
    """Whether the values are all powers of two from the first to the last, as integers."""
    first = parameter.values[0]
    return parameter.is_log and all(type(v) is int and v == first * 2**i for i, v in enumerate(parameter.values))


class Fragments:
    """A space as Helion has it, and its configurations, by their keys, there and back."""

    def __init__(self, space: ConfigSpace, *, in_steps: bool) -> None:
        start = space.key(space.default)
        self.tunables: Mapping[str, Tunable] = {
            name: Tunable.of(parameter, i, in_steps=in_steps)
            for (name, parameter), i in zip(space.parameters.items(), start, strict=True)
        }

    def from_key(self, key: Key) -> dict[str, Value]:
        """What Helion's ``Config`` holds for a configuration."""
        return {n: t.values[i] for (n, t), i in zip(self.tunables.items(), key, strict=True)}

    def key(self, config: Mapping[str, Any]) -> Key:
        """The configuration that :meth:`from_key` named."""
        return tuple(t.values.index(config[n]) for n, t in self.tunables.items())
