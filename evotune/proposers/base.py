"""The seam between the search and whoever proposes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from evotune.program import render
from evotune.space import Config, ConfigSpace
from evotune.trial import Candidate, Origin


@dataclass(frozen=True)
class Feedback:
    """What the search learns from one trial.

    ``loss`` is lower for better, on a scale where differences mean something: log latency, say. It
    is None for a failed trial. ``variance`` is that of the loss. ``cost_s`` are the seconds that
    compiling and measuring took, None if they are not known. ``facts`` are what compiling told.
    """

    number: int
    candidate: Candidate
    loss: float | None
    variance: float = 0.0
    fidelity_rank: int = 0
    failure: str | None = None
    cost_s: float | None = None
    facts: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])

    @property
    def config(self) -> Config:
        return self.candidate.config


class Proposer(Protocol):
    """Proposes configurations of one origin and hears of every trial, whoever proposed it."""

    origin: Origin

    def ask(self, n: int) -> list[Candidate]:
        """Up to ``n`` candidates; fewer, or none, if there is nothing to propose."""
        ...

    def tell(self, feedback: Sequence[Feedback]) -> None:
        """Learn from trials, in the order in which they ended."""
        ...


class Searcher(Protocol):
    """Decides what to evaluate next. :class:`~evotune.proposers.portfolio.Portfolio` is evotune's."""

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        """A legal candidate that was never asked for before; None if there is none left.

        Args:
            pending: Configurations asked for whose results have not been told.
        """
        ...

    def tell(self, feedback: Sequence[Feedback]) -> None:
        """Learn from trials, in the order in which they ended."""
        ...


class Seeds:
    """A fresh random generator per question, fixed by the seed and by what has been learned.

    A stream would make a resumed run differ from one that was never interrupted: it would have to
    be rewound to where it stood. Instead the generator depends on how many trials were told, and on
    how many questions were asked since.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._prefix = f"{seed}:{name}"
        self._told = 0
        self._asked = 0

    def tell(self, n: int) -> None:
        """Count ``n`` more trials."""
        self._told += n
        self._asked = 0

    def next(self) -> Random:
        """The generator for the next question."""
        self._asked += 1
        return Random(f"{self._prefix}:{self._told}:{self._asked}")


def propose(
    space: ConfigSpace, origin: Origin, make: Callable[[], tuple[Config, int | None] | None], n: int, tries: int
) -> list[Candidate]:
    """Up to ``n`` different candidates from a maker of (config, parent) that may fail or repeat."""
    found: dict[tuple[int, ...], Candidate] = {}
    for _ in range(tries):
        if len(found) == n:
            break
        if (made := make()) is not None:
            config, parent = made
            found.setdefault(space.key(config), Candidate(config, render(config, space), origin, parent))
    return list(found.values())
