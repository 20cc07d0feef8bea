"""All proposers as one: an opening, then turns shared by the bandit, every candidate screened."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from evotune.program import render
from evotune.proposers.acquisition import SurrogateProposer
from evotune.proposers.bandit import Bandit
from evotune.proposers.base import Feedback, Proposer, Seeds
from evotune.proposers.islands import Islands
from evotune.proposers.model import ModelProposer
from evotune.space import Config, ConfigSpace
from evotune.surrogate import Surrogate
from evotune.trial import Candidate, Origin

# Candidates that an origin may bring to a turn; the acquisition picks one of them.
PER_TURN = 4
# How much worse than the surrogate's own favourite a candidate may look and still be measured, in
# units of the acquisition (log expected improvement): nearly as good, so that variety costs nothing.
SCREEN_MARGIN = 0.1
# A model knows what the surrogate cannot: it is heard while its ideas have 5 % of the favourite's
# expected improvement, and the bandit sees to it that it earns its turns.
MODEL_MARGIN = 3.0
MODEL_ORIGINS = ("llm", "mock")


@contextmanager
def _one_thread() -> Generator[None]:
    """Keep linear algebra on the calling thread: the matrices are small, waiting threads would spin
    on the cores that compile, and sums must be added in one order wherever a run is repeated."""
    with _controller().limit(limits=1):
        yield


@cache
def _controller() -> Any:
    import_module("scipy.linalg")  # it has a BLAS of its own, which must be loaded to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class Portfolio:
    """Proposes one candidate at a time: new, legal, and worth measuring as far as anyone can tell.

    Args:
        space: The legal configurations.
        surrogate: Screens all candidates and proposes its own favourites.
        islands: Keep the elites from which other origins breed.
        proposers: The other origins.
        model: The origin that asks a language model, if there is one.
        seed: Fixes the order of turns.
        start_points: Trials in the opening after the default, far apart from each other.
        screens: Whether the surrogate drops what others propose and it does not like.
    """

    def __init__(
        self,
        space: ConfigSpace,
        surrogate: Surrogate,
        islands: Islands,
        proposers: Sequence[Proposer],
        model: ModelProposer | None = None,
        *,
        seed: int,
        start_points: int,
        screens: bool = True,
    ) -> None:
        self._space = space
        self._surrogate = surrogate
        self._screens = screens
        self._favourites = SurrogateProposer(space, surrogate)
        self._islands = islands
        self._model = model
        everyone = [self._favourites, *proposers, *([model] if model else [])]
        self._proposers: dict[Origin, Proposer] = {p.origin: p for p in everyone}
        self._bandit = Bandit(p.origin for p in self._proposers.values())
        self._seeds = Seeds(seed, "portfolio")
        self._opening = [Candidate(space.default, render(space.default, space), "default")]
        for config in surrogate.start(start_points, given=[space.default]):
            self._opening.append(Candidate(config, render(config, space), "random"))
        self._seen: set[tuple[int, ...]] = set()

    @property
    def is_exhausted(self) -> bool:
        """Whether every legal configuration has been proposed."""
        return len(self._seen) >= self._space.cardinality

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        """The next candidate to evaluate, or None if there is nothing left.

        Args:
            pending: Configurations in flight.
        """
        with _one_thread():
            return self._next(pending)

    def _next(self, pending: Sequence[Config]) -> Candidate | None:
        if self.is_exhausted:
            return None
        while self._opening:
            # A model knows things before anything is measured: its first ideas join the opening. The
            # mock knows nothing.
            joins = self._model is not None and self._model.origin == "llm" and len(self._seen) % 3 == 1
            turn = self._offer_of(self._model) if self._model and joins else None
            candidate = turn or next(iter(self._fresh([self._opening.pop(0)])), None)
            if candidate is not None:
                return self._take(candidate)
        self._favourites.expect(pending)
        for origin in self._bandit.order(self._seeds.next()):
            if (best := self._offer_of(self._proposers[origin])) is not None:
                return self._take(best)
        fresh = self._fresh([Candidate(c, render(c, self._space), "random") for c in self._anything()])
        return self._take(fresh[0]) if fresh else None

    def tell(self, feedback: Sequence[Feedback]) -> None:
        """Let every proposer learn from trials, whoever proposed them."""
        self._seeds.tell(len(feedback))
        for item in feedback:
            self._seen.add(self._space.key(item.config))
            self._bandit.tell(item.candidate.origin, item.loss)
        self._islands.tell(feedback)
        for proposer in self._proposers.values():
            proposer.tell(feedback)

    def restate(self, feedback: Sequence[Feedback]) -> None:
        """The losses of all trials told so far, on another scale.

        The islands keep what they have: they only compare, and both scales order alike.
        """
        self._surrogate.restate([item.loss for item in feedback])
        self._bandit = Bandit(self._proposers)
        for item in feedback:
            self._bandit.tell(item.candidate.origin, item.loss)

    def _offer_of(self, proposer: Proposer) -> Candidate | None:
        """The best of what an origin brings to its turn, if it is good enough."""
        candidates = self._fresh(proposer.ask(1 if proposer is self._favourites else PER_TURN))
        best = self._screen(candidates)
        if best is None and self._model is not None and proposer is self._model:
            self._model.drop()
        return best

    def _take(self, candidate: Candidate) -> Candidate:
        self._seen.add(self._key(candidate))
        return candidate

    def _fresh(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those never proposed before."""
        new = {self._key(c): c for c in reversed(candidates) if self._key(c) not in self._seen}
        return list(reversed(new.values()))

    def _key(self, candidate: Candidate) -> tuple[int, ...]:
        return self._space.key(candidate.config)

    def _screen(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The candidate that the surrogate likes best, unless it likes none of them."""
        if not candidates:
            return None
        if not self._screens or candidates[0].origin == "surrogate" or not self._surrogate.is_trusted:
            return candidates[0]
        scores = self._surrogate.score([c.config for c in candidates])
        best = int(scores.argmax())
        margin = MODEL_MARGIN if candidates[best].origin in MODEL_ORIGINS else SCREEN_MARGIN
        return candidates[best] if scores[best] >= self._surrogate.best_score - margin else None

    def _anything(self) -> Sequence[Config]:
        """Configurations not seen yet, for when no proposer has one."""
        if not self._space.is_enumerable:
            return self._space.sample(self._seeds.next(), 10 * PER_TURN)
        rows = list(range(self._space.cardinality))
        self._seeds.next().shuffle(rows)
        unseen = (r for r in rows if tuple(map(int, self._space.keys[r])) not in self._seen)
        return [self._space.config(row) for row in list(unseen)[:1]]
