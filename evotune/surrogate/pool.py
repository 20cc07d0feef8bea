"""The legal configurations among which the surrogate looks for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from random import Random

import numpy as np

from evotune.space import Array, ConfigSpace

Key = tuple[int, ...]

# Largest pool: 20 000 rows and 200 observations are 16 MB per view, and 1 ms per observation.
POOL_ROWS = 20_000
# Pools of spaces too large to enumerate, where a sample costs 0.1-0.5 ms: drawn once, and anew each time.
LASTING_SAMPLES = 1500
FRESH_SAMPLES = 250


class Pool:
    """Distinct rows of value positions (m, d) and where each is."""

    def __init__(self, keys: Array) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> Key:
        """The configuration in a row."""
        key: list[int] = self.keys[row].tolist()
        return tuple(key)

    def row(self, key: Key) -> int | None:
        """Where a configuration is, or None if it is not in this pool."""
        return self._rows.get(key)

    @cached_property
    def _rows(self) -> dict[Key, int]:
        listed: list[list[int]] = self.keys.tolist()
        return {tuple(key): i for i, key in enumerate(listed)}


class PoolSource:
    """Draws pools: everything legal if that is not too much, else a sample and what is near the best.

    A pool depends on the seed and on what is passed to :meth:`draw`, not on earlier draws.
    """

    def __init__(self, space: ConfigSpace, seed: int) -> None:
        self._space, self._seed = space, seed

    @cached_property
    def _everything(self) -> Pool | None:
        is_small = self._space.is_enumerable and self._space.cardinality <= POOL_ROWS
        return Pool(self._space.keys) if is_small else None

    @cached_property
    def _lasting(self) -> Array:
        return self._sample(LASTING_SAMPLES, "lasting")

    def draw(self, round_number: int, best: Sequence[Key]) -> Pool:
        """The pool for one round: with the ``best`` known configurations and their neighbors."""
        if self._everything is not None:
            return self._everything
        if self._space.is_enumerable:
            rng = np.random.default_rng([self._seed, round_number])
            rows = rng.choice(self._space.cardinality, POOL_ROWS, replace=False, shuffle=False)
            parts = [self._space.keys[rows]]
        else:
            parts = [self._lasting, self._sample(FRESH_SAMPLES, str(round_number))]
        for key in best:
            near = [self._space.key(c) for c in self._space.neighbors(self._space.from_key(key))]
            parts.append(np.array([key, *near]))
        return Pool(np.unique(np.concatenate(parts), axis=0))

    def _sample(self, n: int, name: str) -> Array:
        found = self._space.sample(Random(f"{self._seed}:pool:{name}"), n)
        return np.array([self._space.key(c) for c in found])
