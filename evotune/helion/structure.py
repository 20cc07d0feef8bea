"""Structures: choices that are worth little one by one, and between which a search gets stuck.

With loads by tensor descriptors the best tile is another than with pointers, and half of each is worse than
both (pytorch/helion#3519: one search in three ended 15 to 30 % off, in the wrong one). So what is good in one
structure is tried in all of them, before anything else is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

from evotune.space import Config, Value

if TYPE_CHECKING:
    from evotune.helion.space import HelionSpace

# Helion's names. Elements of a list change together.
STRUCTURAL = ("indexing", "pid_type")


def structures(space: HelionSpace) -> list[dict[str, Value]]:
    """Values of the structural parameters, in all combinations."""
    groups: list[list[dict[str, Value]]] = []
    for key in STRUCTURAL:
        names = space.names_of(key)
        values = space.space.parameters[names[0]].values if names else ()
        groups.append([dict.fromkeys(names, value) for value in values] or [{}])
    return [{name: value for part in parts for name, value in part.items()} for parts in product(*groups)]


def transplants(space: HelionSpace, best: Sequence[Config]) -> Iterator[Config]:
    """The best in every structure, then the second best, and so on."""
    for config in best:
        for structure in structures(space):
            moved = {**config, **structure}
            if not space.space.violations(moved):
                yield moved
