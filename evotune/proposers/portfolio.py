"""All proposers as one: an opening, then turns shared by the bandit, every candidate screened."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evotune.program import render
from evotune.proposers.acquisition import SurrogateProposer
from evotune.proposers.bandit import Bandit
from evotune.proposers.base import Feedback, Proposer, Seeds
from evotune.proposers.islands import Islands
from evotune.proposers.linalg import one_thread
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
# Of a turn in the opening, for a model to have one: 0.5 is expected of it at first, and 0.33 once an idea
# was worse than everything. With 3 turns in any case, a model that knows only bad configurations cost 0.04
# of the score of 100 evaluations; see benchmarks/results/models.md.
OPENING_EARNINGS = 0.4
# Expected rank correlation with a source below which the search opens as if there were none; 0.4 gave
# up on sources that were of use, see benchmarks/results/transfer.md.
LEAST_AGREEMENT = 0.25
SET_ASIDE = (
    "the surrogate is set aside: of late it has predicted no better than the mean; "
    "the search goes on near the best and by chance"
)
# A model that has been at the bandit's floor for so many turns is not asked any more: a question costs
# money and, at that share, its answer would hardly be heard. In 100 evaluations of recorded spaces that
# ends four of five models that know nothing, and one that knows a region in a third of runs, as when
# that is used up (benchmarks/results/models.md).
RETIRE_AFTER = 20
RETIRED = f"the model has earned nothing in the last {RETIRE_AFTER} turns and is not asked any more in this run"
HEARD_AGAIN = "the surrogate predicts better than the mean again and is heard"


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
        on_note: Told once whenever the surrogate is set aside, and when it is heard again.
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
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._space = space
        self._surrogate = surrogate
        self._screens = screens
        self._on_note = on_note
        self._is_set_aside = False
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
        self._elsewhere = [
            Candidate(config, render(config, space), "surrogate")
            for config in surrogate.favourites_elsewhere(start_points)
        ]
        self._start_points = start_points
        self._seen: set[tuple[int, ...]] = set()

    @property
    def is_exhausted(self) -> bool:
        """Whether every legal configuration has been proposed."""
        return len(self._seen) >= self._space.cardinality

    @property
    def model_state(self) -> str:
        """What the model is doing; empty without one."""
        return self._model.state if self._model else ""

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        """The next candidate to evaluate, or None if there is nothing left.

        Args:
            pending: Configurations in flight.
        """
        with one_thread():
            return self._next(pending)

    def _next(self, pending: Sequence[Config]) -> Candidate | None:
        self._seen.update(self._space.key(c) for c in pending)  # those of a resumed run were not proposed here
        if self.is_exhausted:
            return None
        self._mind_model()
        while points := self._opening_points():
            turn = self._offer_of(self._model) if self._model and self._joins_opening(self._model) else None
            candidate = turn or next(iter(self._fresh([points.pop(0)])), None)
            if candidate is not None:
                return self._take(candidate)
        self._say_if_set_aside()
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

    def _opening_points(self) -> list[Candidate]:
        """What is left of the opening. With a source, its best until something is measured, then
        nothing while the two agree: the surrogate knows enough. Else it is the opening of a search
        without a source, less what the source has cost."""
        agreement = self._surrogate.agreement
        if agreement is None:
            return self._elsewhere if self._seen and self._elsewhere else self._opening
        is_over = len(self._seen) > self._start_points
        return [] if is_over or agreement >= LEAST_AGREEMENT else self._opening

    def _say_if_set_aside(self) -> None:
        """Here and not where trials are told: a resumed run is told all of them at once."""
        if self._surrogate.is_set_aside != self._is_set_aside:
            self._is_set_aside = not self._is_set_aside
            self._on_note(SET_ASIDE if self._is_set_aside else HEARD_AGAIN)

    def _offer_of(self, proposer: Proposer) -> Candidate | None:
        """The best of what an origin brings to its turn, if it is good enough."""
        candidates = self._fresh(proposer.ask(1 if proposer is self._favourites else PER_TURN))
        best = self._screen(candidates)
        if best is None and self._model is not None and proposer is self._model:
            self._model.drop()
        return best

    def _joins_opening(self, model: ModelProposer) -> bool:
        """A model knows things before anything is measured: its first idea joins the opening, and others
        while they are good. The mock knows nothing."""
        is_turn = len(self._seen) % 3 == 1
        return is_turn and model.origin == "llm" and self._bandit.expected("llm") >= OPENING_EARNINGS

    def _mind_model(self) -> None:
        """Have it write its next answer, unless it has stopped earning.

        Answers that came to nothing are turns that earned nothing. Here and not where trials are told:
        a resumed run is told all of them at once, and has nothing to ask before.
        """
        if self._model is None:
            return
        self._model.prepare()
        for _ in range(self._model.fruitless()):
            self._bandit.tell(self._model.origin, None)
        if self._bandit.at_floor(self._model.origin) >= RETIRE_AFTER:
            self._model.retire(RETIRED)

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
