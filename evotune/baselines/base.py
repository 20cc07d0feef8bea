"""What all baselines share: the opening, no repeats, no illegal moves, and resuming."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from evotune.program import render
from evotune.proposers.base import Feedback, Seeds
from evotune.space import Config, ConfigSpace
from evotune.trial import Candidate, Origin

Key = tuple[int, ...]
"""A configuration as :meth:`ConfigSpace.key` names it: the position of each value."""
Move = tuple[Key, Origin, int | None]
"""A configuration to propose, where it comes from, and the trial that it was derived from."""

# Draws before a place is taken to hold nothing new. Of Hamming neighbours, 5 % legal and unseen are
# then missed once in 170 times.
TRIES = 100


class Baseline(ABC):
    """A search that is a function of its seed and of the trials that it was told.

    Telling a fresh object what a journal holds therefore resumes a run.

    Args:
        space: The legal configurations.
        seed: Fixes everything that is drawn.
    """

    def __init__(self, space: ConfigSpace, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._seeds = Seeds(seed, type(self).__name__)
        self._seen: set[Key] = set()
        self._told = 0

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        """The next candidate: legal and never proposed before, or None if there is none.

        Args:
            pending: Configurations in flight.
        """
        self._seen.update(self._space.key(c) for c in pending)
        if len(self._seen) >= self._space.cardinality:
            return None
        move = self._opening() or self._propose(self._seeds.next(), len(pending)) or self._anything()
        if move is None:
            return None
        key, origin, parent = move
        self._seen.add(key)
        config = self._space.from_key(key)
        return Candidate(config, render(config, self._space), origin, parent)

    def tell(self, feedback: Sequence[Feedback]) -> None:
        """Learn from trials, whoever proposed them."""
        for item in feedback:
            key = self._space.key(item.config)
            self._seen.add(key)
            self._told += 1
            self._seeds.tell(1)
            self._learn(key, item)

    @abstractmethod
    def _propose(self, rng: Random, in_flight: int) -> Move | None:
        """A legal configuration never seen, or None for any of those."""

    @abstractmethod
    def _learn(self, key: Key, item: Feedback) -> None:
        """Take in one trial."""

    def _rng(self, purpose: str) -> Random:
        """A generator for decisions that follow from what was told, not from what was asked."""
        return Random(f"{self._seed}:{purpose}:{self._told}")

    def _fresh(self, draw: Callable[[], Key]) -> Key | None:
        """The first key drawn that is legal and was never seen; None after :data:`TRIES` draws."""
        for _ in range(TRIES):
            key = draw()
            if key not in self._seen and self._space.holds(np.array([key]))[0]:
                return key
        return None

    def _uniform(self, rng: Random) -> Key | None:
        """A configuration never seen, each as likely as any other; None if none is found."""
        found = self._fresh(lambda: self._space.key(self._space.sample(rng, 1)[0]))
        if found is not None or not self._space.is_enumerable:
            return found
        keys = [tuple(map(int, row)) for row in self._space.keys]
        unseen = [key for key in keys if key not in self._seen]
        return rng.choice(unseen) if unseen else None

    def _opening(self) -> Move | None:
        key = self._space.key(self._space.default)
        return None if key in self._seen else (key, "default", None)

    def _anything(self) -> Move | None:
        key = self._uniform(self._seeds.next())
        return None if key is None else (key, "random", None)
