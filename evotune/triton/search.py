"""Which configurations are timed, one after the other, and which of them wins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evotune.interval import ratio_ci95
from evotune.proposers import Feedback, Searcher
from evotune.space import Config
from evotune.trial import Candidate, Fidelity, Measurement
from evotune.triton.choices import Choices, TritonConfig

FINALISTS = 4
# Timings of one configuration in a row swing by so much with clocks; what is further behind cannot win.
WITHIN = 1.1
ROUNDS = Fidelity(1, "finals", 8)  # the fewest that `ratio_ci95` takes for paired ones


@dataclass(frozen=True)
class Budget:
    """Configurations to time, and seconds in which to do so; the finals come on top."""

    max_evaluations: int
    max_seconds: float


@dataclass(frozen=True)
class Timed:
    """A configuration and its time, or the stage at which it failed and why."""

    config: TritonConfig
    quantiles_ms: tuple[float, ...] = ()
    stage: str | None = None
    reason: str = ""
    error: Exception | None = None

    @property
    def latency_ms(self) -> float:
        """The median, which comes first."""
        return self.quantiles_ms[0]

    @property
    def ok(self) -> bool:
        return self.stage is None


Attempt = Callable[[TritonConfig], Timed]


class Exhaustive:
    """Proposes every configuration once, the default first."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self._left = [Candidate(config, "", "random") for config in configs]

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        return self._left.pop(0) if self._left else None

    def tell(self, feedback: Sequence[Feedback]) -> None:
        pass


def search(choices: Choices, attempt: Attempt, budget: Budget, found: list[Timed]) -> None:
    """Time configurations until all are known or the budget is spent; the default is the first.

    Args:
        choices: What there is; all of it is timed if it is no more than the budget.
        attempt: Times one.
        budget: When to stop.
        found: Gets what was timed at once, so that it is there if ``attempt`` raises.
    """
    searcher = _searcher(choices, budget)
    deadline = time.monotonic() + budget.max_seconds
    while len(found) < budget.max_evaluations and (not found or time.monotonic() < deadline):
        candidate = searcher.ask(())
        if candidate is None:
            return
        timed = attempt(choices.pick(candidate.config))
        found.append(timed)
        loss = math.log(timed.latency_ms) if timed.ok else None
        searcher.tell([Feedback(len(found), candidate, loss, failure=timed.reason or None)])


def _searcher(choices: Choices, budget: Budget) -> Searcher:
    if choices.count <= budget.max_evaluations:
        return Exhaustive(choices.all())
    # They take seconds to import, which a short list need not wait for.
    from evotune.session import searcher
    from evotune.settings import load

    return searcher(choices.space, load(None, {"run.max_evaluations": budget.max_evaluations}, {}))


def decide(found: Sequence[Timed], attempt: Attempt) -> Timed:
    """The fastest of some that were timed. Those that are close are timed again in alternating rounds; of those
    that tie with the fastest there, the earliest wins.

    Raises:
        ValueError: None of them has a time.
    """
    ok = [t for t in found if t.ok]
    best = min(ok, key=_latency_ms)
    bound_ms = WITHIN * best.latency_ms
    closest = sorted((t for t in ok if t.latency_ms <= bound_ms), key=_latency_ms)[:FINALISTS]
    if len(closest) == 1:
        return best
    rounds = _rounds([t for t in ok if t in closest], attempt)
    if not rounds:  # none ran a second time
        return best
    fastest = min((measured for _, measured in rounds), key=lambda m: m.latency_ms)
    return next(t for t, measured in rounds if measured is fastest or ratio_ci95(measured, fastest)[1][0] <= 1)


def _latency_ms(timed: Timed) -> float:
    return timed.latency_ms


def _rounds(finalists: Sequence[Timed], attempt: Attempt) -> list[tuple[Timed, Measurement]]:
    """Those that ran in every round, with a time for each round."""
    samples: dict[int, list[float]] = {i: [] for i in range(len(finalists))}
    for turn in range(ROUNDS.reps):
        for i in list(samples) if turn % 2 == 0 else list(reversed(samples)):
            timed = attempt(finalists[i].config)
            if timed.ok:
                samples[i].append(timed.latency_ms)
            else:
                del samples[i]
    return [(finalists[i], Measurement(ROUNDS, "measured", tuple(ms))) for i, ms in samples.items()]
