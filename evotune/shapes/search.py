"""Which pair to measure next: programs are proposed, screened, and measured where they are new.

A surrogate for each shape predicts the pairs of a program that were not measured. What a program is
expected to gain, over the best one at the same price of a branch and per pair that has to be measured,
makes candidates of all origins comparable:

- **default**, then **random**: literals far apart from each other, legal at as many shapes as they can be;
- **surrogate**: the favourite of one shape's surrogate put into the best table of all shapes, the shapes
  in turn;
- **mutation**: a leaf of the best rule, or one shape of it, with a few parameters moved;
- **crossover**: a leaf takes over the configuration of another shape, or some of its parameters: what is
  good at one shape is tried at others, and branches merge;
- **llm**, **mock**: programs of a model.

There are two populations: one where a branch costs nothing, one where it costs its price. Both follow
from what was measured, so a resumed run has them as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Protocol

import numpy as np

from evotune.errors import Rejected, UsageError
from evotune.proposers import Feedback
from evotune.proposers.bandit import Bandit
from evotune.proposers.base import Seeds
from evotune.proposers.evolution import mutate
from evotune.proposers.linalg import one_thread
from evotune.proposers.portfolio import MODEL_MARGIN, MODEL_ORIGINS, RETIRE_AFTER, RETIRED, SCREEN_MARGIN
from evotune.shapes.rule import leaves
from evotune.shapes.table import PRICE, Program, Table
from evotune.space import Config, ConfigSpace, Value
from evotune.surrogate import Surrogate
from evotune.surrogate.acquisition import log_expected_improvement
from evotune.trial import Candidate, Origin

PRICES = (0.0, PRICE)
# Programs that an origin may bring to a turn, and draws to find them.
PER_TURN, DRAWS = 8, 24
# A crossover takes over what is among the best few of the other shape.
DONORS = 3


class Author(Protocol):
    """Writes programs, such as :class:`~evotune.shapes.model.ProgramModel`."""

    origin: Origin

    @property
    def state(self) -> str:
        """What it is doing, for a person."""
        ...

    def ask(self) -> list[Program]:
        """Those that are at hand."""
        ...

    def prepare(self) -> None:
        """Write the next while something is measured; called before every question."""
        ...

    def drop(self) -> None:
        """Forget those at hand: none was wanted."""
        ...

    def retire(self, reason: str) -> None:
        """Write no more."""
        ...


class ProgramSearch:
    """Proposes pairs, each with the program that it belongs to; a program that was begun is finished.

    Args:
        table: Kept up to date with what is told.
        seed: Fixes all that is drawn.
        start_points: Programs in the opening after the default.
        make_surrogate: For the space of one shape.
        read: Configurations of a program by its text, for one that a run before this one began; raises
            :class:`Rejected`.
        screens: Whether a program is dropped that promises less than the surrogate's favourite.
        author: The origin that asks a language model, if there is one.
    """

    def __init__(
        self,
        table: Table,
        *,
        seed: int,
        start_points: int,
        make_surrogate: Callable[[ConfigSpace], Surrogate],
        read: Callable[[str], Sequence[Config]],
        screens: bool = True,
        author: Author | None = None,
    ) -> None:
        self.table = table
        self._surrogates = [make_surrogate(s.space) for s in table.shapes]
        self._read = read
        self._screens = screens
        self._author = author
        self._breeders: dict[Origin, Callable[[Random], Program | None]] = {
            "mutation": self._mutant,
            "crossover": self._child,
            "random": self._stranger,
        }
        self._bandit = Bandit(["surrogate", *self._breeders, *([author.origin] if author else [])])
        self._seeds = Seeds(seed, "shapes")
        self._opening = self._open(start_points)
        self._begun: dict[str, tuple[Program, Origin]] = {}
        self._texts: set[str] = set()
        self._latest: Feedback | None = None

    @property
    def model_state(self) -> str:
        """What the model is doing; empty without one."""
        return self._author.state if self._author else ""

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        """A pair that was never asked for, None if there is none left."""
        with one_thread():
            flying = [self.table.split(pair) for pair in pending]
            self._mind_author()
            self._go_on()
            while (candidate := self._unfinished(flying)) is None:
                found = self._next(flying)
                if found is None:
                    return None
                self._begin(*found)
            return candidate

    def tell(self, feedback: Sequence[Feedback]) -> None:
        """Learn from pairs, in the order in which they were measured."""
        self._seeds.tell(len(feedback))
        for item in feedback:
            shape, config = self.table.split(item.config)
            self.table.add(shape, config, item.loss, item.failure)
            self._surrogates[shape].observe(
                config, item.loss, fidelity_rank=item.fidelity_rank, variance=item.variance, cost_s=item.cost_s
            )
            # Relative to the shape's scale, or whoever proposes for small shapes would earn all.
            earned = None if item.loss is None else item.loss - (self.table.first_loss(shape) or 0.0)
            self._bandit.tell(item.candidate.origin, earned)
            if self._latest is None or item.number > self._latest.number:
                self._latest = item

    # -- programs that were begun -----------------------------------------------------------

    def _begin(self, program: Program, origin: Origin) -> None:
        self._begun[program.text] = (program, origin)
        self._texts.add(program.text)

    def _go_on(self) -> None:
        """Take up the program that a run before this one had begun when it ended: all earlier ones were
        asked for in full, since programs are begun one after the other."""
        candidate = None if self._latest is None else self._latest.candidate
        if candidate is None or candidate.program in self._texts:
            return
        self._texts.add(candidate.program)
        try:
            self._begin(self.table.program(self._read(candidate.program)), candidate.origin)
        except Rejected:  # the interpreter is gone since: its remaining pairs are not measured
            return

    def _unfinished(self, flying: Sequence[tuple[int, Config]]) -> Candidate | None:
        """The next pair of what was begun."""
        for text, (program, origin) in list(self._begun.items()):
            for shape in self._unknown(program, flying):
                pair = self.table.shapes[shape].pair(program.configs[shape])
                return Candidate(pair, program.text, origin)
            del self._begun[text]
        return None

    def _unknown(self, program: Program, flying: Sequence[tuple[int, Config]]) -> list[int]:
        """Shapes at which a program was not measured and is not being measured."""
        return [
            i
            for i, config in enumerate(program.configs)
            if not self.table.knows(i, config) and (i, config) not in flying
        ]

    # -- programs to begin ------------------------------------------------------------------

    def _open(self, start_points: int) -> list[tuple[Program, Origin]]:
        """The defaults; then points far apart, each shape's in turn, for all shapes where they are legal."""
        shapes = self.table.shapes
        starts = [
            surrogate.start(start_points, given=[shape.space.default])
            for surrogate, shape in zip(self._surrogates, shapes, strict=True)
        ]
        opening: list[tuple[Program, Origin]] = [(self.table.program([s.space.default for s in shapes]), "default")]
        for i in range(min(len(s) for s in starts)):
            shared = starts[i % len(shapes)][i]
            configs = [
                start[i] if shape.space.violations(shared) else shared
                for start, shape in zip(starts, shapes, strict=True)
            ]
            opening.append((self.table.program(configs), "random"))
        return opening

    def _next(self, flying: Sequence[tuple[int, Config]]) -> tuple[Program, Origin] | None:
        while self._opening:
            found = self._opening.pop(0)
            if self._unknown(found[0], flying):
                return found
        rng = self._seeds.next()
        favourites = self._favourites(flying)
        bar = max((gain for gain, _ in favourites), default=-math.inf)
        for origin in self._bandit.order(rng):
            offered = favourites if origin == "surrogate" else self._weigh(self._offers(origin, rng), flying)
            margin = MODEL_MARGIN if origin in MODEL_ORIGINS else SCREEN_MARGIN
            best = max(offered, key=lambda o: o[0], default=None)
            if best is not None and (best[0] >= bar - margin or not self._screens):
                return best[1], origin
            if self._author is not None and origin == self._author.origin:
                self._author.drop()
                self._bandit.tell(origin, None)
        # Nothing was good enough, or there was nothing to predict from: whatever is left to measure.
        left = self._weigh(self._offers("random", rng), flying) + favourites
        return (left[0][1], "random") if left else None

    def _mind_author(self) -> None:
        """Have it write its next programs, unless it has stopped earning."""
        if self._author is None:
            return
        self._author.prepare()
        if self._bandit.at_floor(self._author.origin) >= RETIRE_AFTER:
            self._author.retire(RETIRED)

    def _offers(self, origin: Origin, rng: Random) -> Iterable[Program]:
        if self._author is not None and origin == self._author.origin:
            return self._author.ask()
        found: dict[str, Program] = {}
        for _ in range(DRAWS):
            if len(found) < PER_TURN and (program := self._breeders[origin](rng)) is not None:
                found.setdefault(program.text, program)
        return found.values()

    def _favourites(self, flying: Sequence[tuple[int, Config]]) -> list[tuple[float, Program]]:
        """The table of all shapes with the favourite of the shape that was measured least, or of the next
        if all of that one was measured.

        To take the shape with the greatest gain instead starves one whose surrogate is wrong: on the
        synthetic family the worst of five seeds scores 0.90 so, and 0.94 otherwise, with the same mean.
        """
        base = self.table.elite(0.0)
        if base is None:
            return []
        counts = [self.table.count(i) for i in range(len(self._surrogates))]
        for shape in sorted(range(len(counts)), key=counts.__getitem__):
            pending = [config for at, config in flying if at == shape]
            if found := self._surrogates[shape].suggest(1, pending):
                return self._weigh([base.with_config(found[0], [shape])], flying)
        return []

    def _weigh(
        self, programs: Iterable[Program], flying: Sequence[tuple[int, Config]]
    ) -> list[tuple[float, Program]]:
        """Those with something to measure, each with what that promises."""
        bests = [(p, self.table.cost(e, p)) for p in PRICES if (e := self.table.elite(p)) is not None]
        out: list[tuple[float, Program]] = []
        for program in programs:
            if unknown := self._unknown(program, flying):
                gains = [self._gain(program, unknown, price, best) for price, best in bests if best is not None]
                out.append((max(gains, default=-math.inf), program))
        return out

    def _gain(self, program: Program, unknown: Sequence[int], price: float, best: float) -> float:
        """Log of the expected improvement of a program's cost on ``best``, per pair to measure.

        The cost is a sum over shapes, whose surrogates are independent: means and variances add up.
        """
        known = [self.table.loss(i, c) for i, c in enumerate(program.configs) if i not in unknown]
        if any(loss is None for loss in known):  # it has failed, or part of it is in flight
            return -math.inf
        mean = sum(loss for loss in known if loss is not None) + (program.leaf_count - 1) * price
        variance = 0.0
        for i in unknown:
            try:
                at, std = self._surrogates[i].predict([program.configs[i]])
            except UsageError:  # too little has succeeded at this shape to predict from
                return -math.inf
            mean, variance = mean + float(at[0]), variance + float(std[0]) ** 2
        gain = log_expected_improvement(np.array([mean]), np.array([math.sqrt(variance)]), best)
        return float(gain[0]) - math.log(len(unknown))

    # -- breeding ---------------------------------------------------------------------------

    def _mutant(self, rng: Random) -> Program | None:
        base = self.table.elite(rng.choice(PRICES))
        if base is None:
            return None
        members, config = self._leaf(base, rng)
        changed = mutate(self.table.shapes[members[0]].space, config, rng)
        return self._legal(base, changed, members)

    def _child(self, rng: Random) -> Program | None:
        """A leaf with the configuration of another shape, or with some of its parameters."""
        base = self.table.elite(rng.choice(PRICES))
        if base is None:
            return None
        members, config = self._leaf(base, rng)
        donors = self.table.best(rng.randrange(len(self.table.shapes)), DONORS)
        if not donors:
            return None
        donor: Config = rng.choice(donors)
        if rng.random() < 0.5:
            mixed: dict[str, Value] = {n: (v if rng.random() < 0.5 else donor.get(n, v)) for n, v in config.items()}
            donor = mixed
        return self._legal(base, donor, members)

    def _stranger(self, rng: Random) -> Program | None:
        base = self.table.elite(0.0) or self.table.program([s.space.default for s in self.table.shapes])
        shape = rng.randrange(len(self.table.shapes))
        return base.with_config(self.table.shapes[shape].space.sample(rng, 1)[0], [shape])

    def _leaf(self, program: Program, rng: Random) -> tuple[Sequence[int], Config]:
        """A leaf with its shapes, or as often with one of them: then the leaf may split."""
        leaf = rng.choice(list(leaves(program.rule)))
        members = leaf.members if rng.random() < 0.5 else (rng.choice(leaf.members),)
        return members, leaf.config

    def _legal(self, base: Program, config: Config, members: Sequence[int]) -> Program | None:
        """The program with a changed leaf, for those of its shapes at which that is legal."""
        fitting = [i for i in members if not self.table.shapes[i].space.violations(config)]
        return base.with_config(config, fitting) if fitting else None
