"""What Helion repairs, found by trying, as constraints of a space.

A search that does not know them offers the same kernel under many names: of random configurations of
a matrix product 40 % are repaired for an H100, and 74 % for a B200.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from evotune.constraint import Constraint
from evotune.space import Config, ConfigSpace, Value

# Configurations that are tried; each costs Helion a millisecond.
TRIED = 300
# A parameter with more values is not tried as a condition: each needs enough of the configurations.
MOST_CONDITIONS = 3
# So many were repaired, and none was left alone: of those that are repaired in 3 of 4 cases only, 1 in
# 1000 passes for a rule.
LEAST_REPAIRED = 24


def find_rules(
    space: ConfigSpace,
    canonical: Callable[[Config], Config | None],
    given: Sequence[str],
    legal: Sequence[Config],
) -> tuple[list[str], list[str]]:
    """Parameters, those first that others depend on, and constraints.

    Args:
        space: All configurations.
        canonical: What becomes of one; None if it is refused.
        given: Constraints to begin with.
        legal: Configurations that break no constraint: one that they break is left out.
    """
    rng = Random(0)
    drawn = [{name: rng.choice(p.values) for name, p in space.parameters.items()} for _ in range(TRIED)]
    tried = [(before, after) for before in drawn if (after := canonical(before)) is not None]
    found: dict[str, list[str]] = {}
    for name, parameter in space.parameters.items():
        if parameter.ordered or not 1 < len(parameter.values) <= MOST_CONDITIONS:
            continue
        for value in parameter.values:
            same = [(b, a) for b, a in tried if b[name] == value and a[name] == value]
            for other in space.names:
                if other != name and (only := _only(other, same)) is not None:
                    found.setdefault(name, []).append(f"{name} != {value!r} or {other} == {only!r}")
    conditions = sorted(found, key=lambda name: -len(found[name]))
    rules = [*given, *(rule for name in conditions for rule in found[name])]
    kept = [text for text in rules if all(Constraint(text, space.names, {}).holds(c) for c in legal)]
    # Sampling chooses in this order. What depends on a condition would seldom hold if it was chosen before, and
    # a product that cannot hold any more is found out early.
    bounded = [name for text in given for name in space.names if name in Constraint(text, space.names, {}).names]
    return list(dict.fromkeys([*conditions, *bounded, *space.names])), kept


def _only(name: str, tried: Sequence[tuple[Config, Config]]) -> Value | None:
    """The value that a parameter always ends with, if it is often another before."""
    left = {(type(after[name]), after[name]) for _, after in tried}
    if len(left) != 1:
        return None
    only = next(iter(left))[1]
    return only if sum(before[name] != only for before, _ in tried) >= LEAST_REPAIRED else None
