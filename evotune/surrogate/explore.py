"""Where to look without a model: far apart to begin with, or about the incumbent and by chance."""

from __future__ import annotations

from collections.abc import Iterator, Set

import numpy as np

from evotune.space import Array, ConfigSpace
from evotune.surrogate.pool import Key, Pool


def far_apart(x: Array, n: int, placed: Array) -> list[int]:
    """Rows of features (m, d), each as far as can be from those chosen before and from ``placed``
    (k, d); the first row if there is nothing to be far from. Fewer than ``n`` if rows coincide.

    Johnson, Moore & Ylvisaker 1990 (maximin designs), greedily.
    """
    chosen: list[int] = []
    distance = np.full(len(x), np.inf)
    for point in placed:
        distance = np.minimum(distance, ((x - point) ** 2).sum(1))
    while len(chosen) < n and distance.max() > 0:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((x - x[chosen[-1]]) ** 2).sum(1))
    return chosen


def wander(
    space: ConfigSpace, pool: Pool, incumbent: Key | None, taken: Set[Key], rng: np.random.Generator
) -> Iterator[Key]:
    """Different configurations that are not ``taken``, by turns from anywhere in the pool and from
    among the neighbors of the incumbent, if there is one."""
    given = set(taken)
    around = space.neighbors(space.from_key(incumbent)) if incumbent else []
    rows: list[int] = rng.permutation(len(pool)).tolist()
    places: list[int] = rng.permutation(len(around)).tolist()
    anywhere = (pool.key(i) for i in rows)
    nearby = (space.key(around[i]) for i in places)
    sources: list[Iterator[Key]] = [nearby, anywhere] if rng.random() < 0.5 else [anywhere, nearby]
    while sources:
        source = sources.pop(0)
        key = next((k for k in source if k not in given), None)
        if key is not None:
            given.add(key)
            sources.append(source)
            yield key
