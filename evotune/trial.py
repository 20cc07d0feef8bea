"""The life of one candidate: what was proposed, what was measured, and how carefully."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from evotune.space import Config

Origin = Literal["default", "random", "surrogate", "mutation", "crossover", "llm", "mock"]
# "synthetic" is what a formula says: it was never timed anywhere, and no kernel is tuned on it.
Provenance = Literal["measured", "replayed", "compiled", "synthetic"]

# The entry of a measurement's context that tells how long making it took.
SECONDS = "seconds"

# The entry that tells into how many blocks, equal and one after the other, its samples fall.
BLOCKS = "blocks"

# 1.4826 turns a median absolute deviation into a standard deviation of a normal; 1.2533 is the
# ratio of the standard error of a median to that of a mean.
MAD_TO_STD = 1.4826
MEDIAN_TO_MEAN_ERROR = 1.2533


@dataclass(frozen=True, slots=True)
class Candidate:
    """A legal configuration that somebody proposes, and the program that returns it.

    ``parent`` is the number of the trial that it was derived from. ``fidelity_rank`` is the one
    fidelity to measure at; None climbs all of them for as long as the configuration could win.
    """

    config: Config
    program: str
    origin: Origin
    parent: int | None = None
    fidelity_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How carefully a configuration is measured; ``rank`` orders them, 0 is without running.

    ``reps`` repetitions are made unless ``limit_s`` seconds have passed before.
    """

    rank: int
    name: str
    reps: int
    limit_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Measurement:
    """Timings at one fidelity, or the stage at which they failed. A failure is never a number.

    ``rel_sem`` is the standard error of the latency as a share of it, where the samples cannot
    tell (a recorded mean). ``context`` keeps what the timing depends on: clocks, load, order; and the
    :data:`SECONDS` that it took.
    """

    fidelity: Fidelity
    provenance: Provenance
    samples_ms: tuple[float, ...] = ()
    failed_stage: str | None = None
    reason: str | None = None
    rel_sem: float | None = None
    context: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])

    def __post_init__(self) -> None:
        if bool(self.samples_ms) == (self.failed_stage is not None):
            raise ValueError("a measurement has either samples or the stage that failed")
        if any(not math.isfinite(s) or s <= 0 for s in self.samples_ms):
            raise ValueError(f"latencies must be positive and finite, found {self.samples_ms}")

    @property
    def ok(self) -> bool:
        return self.failed_stage is None

    @property
    def latency_ms(self) -> float:
        """Median of the samples."""
        return median(self.samples_ms)

    @property
    def relative_error(self) -> float:
        """Standard error of :attr:`latency_ms` as a share of it, from the samples' spread."""
        if self.rel_sem is not None:
            return self.rel_sem
        centre = self.latency_ms
        mad = median(abs(s - centre) for s in self.samples_ms)
        return MEDIAN_TO_MEAN_ERROR * MAD_TO_STD * mad / math.sqrt(len(self.samples_ms)) / centre


@dataclass(frozen=True, slots=True)
class Static:
    """What compiling told: seconds it took and facts such as registers or code bytes."""

    compile_s: float
    facts: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate's numbered life."""

    number: int
    candidate: Candidate
    measurements: tuple[Measurement, ...] = ()
    static: Static | None = None

    @property
    def config(self) -> Config:
        return self.candidate.config

    @property
    def failure(self) -> Measurement | None:
        """The measurement that failed, if one did."""
        return next((m for m in self.measurements if not m.ok), None)

    @property
    def best(self) -> Measurement | None:
        """The most careful timing, or None if the trial failed or has none."""
        if self.failure is not None:
            return None
        return max(self.measurements, key=lambda m: m.fidelity.rank, default=None)

    @property
    def latency_ms(self) -> float | None:
        """Median of the most careful timing, or None if the trial failed."""
        return self.best.latency_ms if self.best else None

    @property
    def facts(self) -> Mapping[str, float | str]:
        """What compiling told; empty if it did not come to that."""
        return self.static.facts if self.static else {}

    @property
    def cost_s(self) -> float | None:
        """Seconds that compiling and the measurements took, or None if either is not known."""
        known = [float(m.context[SECONDS]) for m in self.measurements if SECONDS in m.context]
        if self.static is None or not known:
            return None
        # A recording without these columns reads as zero: nothing takes no time.
        return self.static.compile_s + sum(known) or None


def standing(trial: Trial, top_rank: int) -> tuple[int, float]:
    """Orders timed trials, the best first: the more careful measurement, then the faster one.

    Fidelities above ``top_rank``, those of finals, count as no more careful than it.
    """
    best = trial.best
    assert best is not None
    return -min(best.fidelity.rank, top_rank), best.latency_ms


def ranked(trials: Iterable[Trial], top_rank: int) -> list[Trial]:
    """The most careful trial of each configuration that never failed, the best first.

    Args:
        trials: In order of completion; of equals the first comes first.
        top_rank: As in :func:`standing`.
    """
    known = list(trials)
    failed = {frozenset(t.config.items()) for t in known if t.failure}
    careful: dict[frozenset[Any], Trial] = {}
    for trial in sorted((t for t in known if t.best), key=lambda t: standing(t, top_rank)):
        if (config := frozenset(trial.config.items())) not in failed:
            careful.setdefault(config, trial)
    return list(careful.values())


def incumbent(trials: Iterable[Trial], top_rank: int) -> Trial | None:
    """The best of trials, as :func:`ranked` orders them."""
    return next(iter(ranked(trials, top_rank)), None)
