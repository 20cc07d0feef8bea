"""When a run stops: what it may spend, what would be good enough, and how far it has come."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evotune.errors import UsageError
from evotune.interval import Z95
from evotune.space import Config
from evotune.trial import Measurement, Trial

if TYPE_CHECKING:
    from evotune.settings import Run

# Standard deviation of log latency between two runs of one configuration, beyond what repetitions
# within a run show. A replay has none: it would give the same number again.
BETWEEN_RUNS = 0.01


@dataclass(frozen=True)
class Budget:
    """When to stop; whichever comes first. Trials of earlier calls of the same run count.

    ``target_ms`` and ``roofline_ms`` are latencies that are good enough, at the search's most careful
    fidelity; ``no_progress`` is a number of evaluations without a new best beyond noise.
    """

    max_evaluations: int
    max_seconds: float = math.inf
    target_ms: float | None = None
    roofline_ms: float | None = None
    no_progress: int | None = None

    @classmethod
    def of(cls, run: Run, bound_ms: float | None, target: str) -> Budget:
        """What the settings of a run ask for.

        Args:
            run: The settings.
            bound_ms: The time that no configuration can beat, if it is known.
            target: Where that would have to be known.

        Raises:
            UsageError: A share of the roofline is asked for where there is none.
        """
        if run.roofline_share is not None and bound_ms is None:
            why = (
                "a recording does not say how much it computes; use --target-latency-ms"
                if target == "replay"
                else f"the recipe of {target} has no peaks, or the kernel no work; copy the recipe, "
                "add `peaks`, and give it with --target, or use --target-latency-ms"
            )
            raise UsageError(f"--roofline-share {run.roofline_share:g} cannot be told: {why}")
        return cls(
            run.max_evaluations,
            math.inf if run.max_seconds is None else run.max_seconds,
            run.target_latency_ms,
            bound_ms / run.roofline_share if bound_ms is not None and run.roofline_share else None,
            run.no_progress,
        )


@dataclass(frozen=True)
class Eta:
    """Seconds until a budget is spent, and which one that is, in the words of ``stopped``."""

    seconds: float
    by: str


class Meter:
    """How much of a budget a run has spent; told of every trial, it says when to stop.

    It goes by what the search measured and leaves finals out, which only a resumed run knows of trials: so a
    run that stopped has the same reason to when it is looked at again.

    Args:
        budget: What may be spent.
        top_rank: The most careful fidelity of the search: a target is reached at that one only.
    """

    def __init__(self, budget: Budget, top_rank: int) -> None:
        self.budget = budget
        self._top_rank = top_rank
        self._started_s = time.monotonic()
        self._done = self._restored = 0
        self._since_progress = 0
        self._reference: _Timed | None = None
        self._best: _Timed | None = None
        self._timed: list[_Timed] = []
        self._failed: set[frozenset[object]] = set()

    @property
    def seconds(self) -> float:
        """Since the search of this call began: what measures had been started by then."""
        return time.monotonic() - self._started_s

    def restored(self) -> None:
        """Everything told so far is of earlier calls, and took none of this one's time."""
        self._restored = self._done

    def tell(self, trial: Trial) -> None:
        """A trial has ended."""
        self._done += 1
        self._since_progress += 1
        key = _key(trial.config)
        searched = [m for m in trial.measurements if m.fidelity.rank <= self._top_rank]
        if trial.failure is not None:
            self._failed.add(key)
            if self._best is not None and self._best.config == trial.config:  # looked at closely, it failed
                self._best = min((t for t in self._timed if _key(t.config) not in self._failed), default=None)
        elif searched and key not in self._failed:
            best = max(searched, key=lambda m: m.fidelity.rank)
            self._timed.append(_Timed(-best.fidelity.rank, best.latency_ms, log_variance(best), trial.config))
            self._best = min(t for t in (self._best, self._timed[-1]) if t is not None)
        self._mind_progress()

    def why_stop(self, in_flight: int) -> str | None:
        """Why nothing more is to be begun, in the words of ``Result.stopped``; None if there is no reason."""
        if (reached := self._reached()) is not None:
            return reached
        if self._done + in_flight >= self.budget.max_evaluations:
            return "evaluations"
        if self.seconds >= self.budget.max_seconds:
            return "seconds"
        return "no progress" if self._is_stuck(in_flight) else None

    def is_answered(self) -> bool:
        """Whether what is known by now is an end that another call need not go beyond."""
        is_spent = self._done >= self.budget.max_evaluations
        return is_spent or self._reached() is not None or self._is_stuck(0)

    def eta(self) -> Eta | None:
        """When the first budget will be spent, as far as the pace so far tells; None at the start."""
        done = self._done - self._restored
        if not done:
            return None
        pace_s = self.seconds / done
        left = [
            Eta((self.budget.max_evaluations - self._done) * pace_s, "evaluations"),
            Eta(self.budget.max_seconds - self.seconds, "seconds"),
        ]
        if self.budget.no_progress is not None:
            left.append(Eta((self.budget.no_progress - self._since_progress) * pace_s, "no progress"))
        first = min(left, key=lambda eta: eta.seconds)
        return Eta(max(0.0, first.seconds), first.by)

    def _reached(self) -> str | None:
        if self._best is None or -self._best.minus_rank < self._top_rank:
            return None
        for name, enough_ms in {"target": self.budget.target_ms, "roofline": self.budget.roofline_ms}.items():
            if enough_ms is not None and self._best.latency_ms <= enough_ms:
                return name
        return None

    def _is_stuck(self, in_flight: int) -> bool:
        patience = self.budget.no_progress
        return patience is not None and self._since_progress + in_flight >= patience

    def _mind_progress(self) -> None:
        """Start counting again if the best is surely faster than when there was progress last, or was measured
        more carefully.

        The reference stays where it was meanwhile, so that many small steps count together.
        """
        best, before = self._best, self._reference
        if best is None:
            return
        if before is None or best.minus_rank < before.minus_rank:
            self._reference, self._since_progress = best, 0
            return
        gain = math.log(before.latency_ms / best.latency_ms)
        if gain > Z95 * math.sqrt(before.variance + best.variance):
            self._reference, self._since_progress = best, 0
        elif gain < 0:
            self._reference = best  # what was the best has failed since


@dataclass(frozen=True, order=True, slots=True)
class _Timed:
    """A trial that was timed; the least is the best: the most careful, then the fastest."""

    minus_rank: int
    latency_ms: float
    variance: float = field(compare=False)
    """Of the log of the latency."""
    config: Config = field(compare=False)


def _key(config: Config) -> frozenset[object]:
    """A configuration for a set; made anew each time, as it is larger than the configuration."""
    return frozenset(config.items())


def log_variance(measurement: Measurement) -> float:
    """Variance of the log of a latency, between runs included."""
    return measurement.relative_error**2 + (BETWEEN_RUNS**2 if measurement.provenance == "measured" else 0.0)
