"""Between one of our searches, which asks for configurations, and Helion's, which measures its members.

What Helion makes of a configuration may be another one. That one is measured, once; the search is told the
result under both names, so that it does not come back to either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from evotune.program import render
from evotune.proposers.base import Feedback, Searcher
from evotune.space import Config
from evotune.trial import Candidate

if TYPE_CHECKING:
    from evotune.helion.space import HelionSpace

# Proposals for one place in a batch that come to nothing: repaired to what is known, or refused.
FREE_TRIES = 20
# Of a first timing, as a share of it: the median of 1 to 3.5 % over kernels (pytorch/helion#3519).
RELATIVE_ERROR = 0.015

Key = tuple[int, ...]


class Member(Protocol):
    """What is needed of Helion's ``PopulationMember``."""

    perfs: list[float]
    status: str
    config: Any
    compile_time: float | None

    @property
    def perf(self) -> float: ...


@dataclass(eq=False)  # one is in a batch, or another like it
class Asked:
    """A member to be measured, and at which fidelity; ``names`` are what the search calls it."""

    member: Member
    rank: int
    names: list[Candidate] = field(default_factory=list[Candidate])


class Line:
    """Asks a search for batches, and tells it what came of them.

    Args:
        space: Helion's.
        searcher: Ours, over that space.
        make: A member of Helion's for a flat configuration; None if it is not viable.
        variance_share: That of the first timing that is left at each fidelity from 1 on.
    """

    def __init__(
        self,
        space: HelionSpace,
        searcher: Searcher,
        make: Callable[[list[Any]], Member | None],
        variance_share: Sequence[float] = (1.0,),
    ) -> None:
        self._space = space
        self._searcher = searcher
        self._make = make
        self._variance = [RELATIVE_ERROR**2 * share for share in variance_share]
        self._known: dict[Key, Asked] = {}
        self._told = 0

    def first(self, configs: Iterable[Config], n: int) -> list[Asked]:
        """Up to ``n`` members for configurations that no search asked for; none for what is known."""
        found: list[Asked] = []
        for config in configs:
            if len(found) == n:
                break
            asked = self._place(self._candidate(config), found)
            found += [asked] if asked is not None else []
        return found

    def gather(self, n: int) -> list[Asked]:
        """Up to ``n`` members that the search wants measured, or measured again; none if it is at its end."""
        batch: list[Asked] = []
        for _ in range(FREE_TRIES * n):
            if len(batch) == n:
                break
            candidate = self._searcher.ask([name.config for asked in batch for name in asked.names])
            if candidate is None:
                break
            if (asked := self._place(candidate, batch)) is not None:
                batch.append(asked)
        return batch

    @property
    def best(self) -> list[Config]:
        """What ran, the best first."""
        ran = [asked for asked in self._known.values() if math.isfinite(asked.member.perf)]
        return [asked.names[-1].config for asked in sorted(ran, key=lambda asked: asked.member.perf)]

    def tell(self, measured: Sequence[Asked]) -> None:
        """Let the search learn what became of members."""
        told: list[Feedback] = []
        for asked in measured:
            for name in asked.names:
                told.append(self._feedback(name, asked, self._told + len(told)))
        self._told += len(told)
        self._searcher.tell(told)

    def _place(self, candidate: Candidate, batch: list[Asked]) -> Asked | None:
        """What is to be measured for a candidate, if anything."""
        rank = candidate.fidelity_rank or 1
        config = self._space.canonical(candidate.config)
        before = None if config is None else self._known.get(self._space.space.key(config))
        if before is not None:
            if before in batch:
                before.names.append(candidate)
                return None
            if rank > before.rank and math.isfinite(before.member.perf):
                return self._taken(Asked(before.member, rank, [candidate]))
            self.tell([Asked(before.member, before.rank, [candidate])])
            return None
        member = None if config is None else self._make(self._space.flat(config))
        if config is None or member is None:
            self._refuse(candidate)
            return None
        names = [candidate] if config == candidate.config else [candidate, self._candidate(config, candidate)]
        return self._taken(Asked(member, rank, names))

    def _taken(self, asked: Asked) -> Asked:
        self._known[self._space.space.key(self._space.from_config(asked.member.config))] = asked
        return asked

    def _refuse(self, candidate: Candidate) -> None:
        reason = "Helion refuses it"
        self._searcher.tell([Feedback(self._told, candidate, None, failure=reason)])
        self._told += 1

    def _candidate(self, config: Config, like: Candidate | None = None) -> Candidate:
        program = render(config, self._space.space)
        return replace(like, config=config, program=program) if like else Candidate(config, program, "default")

    def _feedback(self, name: Candidate, asked: Asked, number: int) -> Feedback:
        member, cost_s = asked.member, asked.member.compile_time or None
        if not math.isfinite(member.perf):
            return Feedback(number, name, None, fidelity_rank=asked.rank, failure=member.status, cost_s=cost_s)
        variance = self._variance[asked.rank - 1]
        return Feedback(number, name, math.log(member.perf), variance, asked.rank, cost_s=cost_s)
