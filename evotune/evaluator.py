"""The seam to whatever measures, and the ladder of fidelities that it climbs."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from evotune.errors import UsageError
from evotune.space import Config
from evotune.trial import SECONDS, Fidelity, Measurement, Provenance, Static

STATIC = Fidelity(0, "static", 0)


@dataclass(frozen=True)
class Device:
    """What measures. ``name`` and ``versions`` are part of a journal's key; ``facts`` are shown."""

    kind: str
    name: str
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    facts: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])


class Evaluator(Protocol):
    """Compiles, checks and times configurations on one device, or on several of one model.

    ``compile`` may be called from several threads at once, ``measure`` from as many as there are
    devices, ``interleave`` while nothing else is measured.
    """

    @property
    def fidelities(self) -> Sequence[Fidelity]:
        """Those a trial climbs, rising; finalists are interleaved at a higher one."""
        ...

    @property
    def device(self) -> Device:
        """What measures."""
        ...

    @property
    def provenance(self) -> Provenance:
        """Where its timings come from."""
        ...

    def compile(self, config: Config) -> Static:
        """Static facts of a configuration; raises :class:`~evotune.errors.Rejected`."""
        ...

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        """Timings of a compiled configuration whose results are right, or the stage that failed.

        Raises:
            DeviceError: Nothing can be measured on this machine any more.
        """
        ...

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """Timings of several configurations in alternating rounds: ``samples_ms[i]`` of each
        belong to the same round, so that ratios of them cancel drift."""
        ...

    def close(self) -> None:
        """Free processes and files; safe to call twice."""
        ...


@dataclass(frozen=True)
class Artifact:
    """A compiled configuration, as it travels to where it is measured."""

    static: Static
    files: Mapping[str, bytes]


class Compiler(Protocol):
    """Compiles configurations for a device that may be elsewhere, in several threads at once."""

    @property
    def device(self) -> Device:
        """What it compiles for, and all that its results depend on."""
        ...

    def pack(self, config: Config) -> Artifact:
        """Compile a configuration for who is to :meth:`~Portable.accept` it; raises
        :class:`~evotune.errors.Rejected`."""
        ...

    def close(self) -> None:
        """Free processes and files; safe to call twice."""
        ...


@runtime_checkable
class Portable(Evaluator, Compiler, Protocol):
    """An evaluator that measures what was compiled elsewhere."""

    def accept(self, config: Config, artifact: Artifact) -> None:
        """Take a configuration as compiled, of a compiler for the same device and with the same versions."""
        ...


# How much slower than the incumbent a configuration may look and still climb to the next rung, in
# units of its own relative standard error on top of a floor for differences between runs.
PROMOTE_FLOOR = 0.03
PROMOTE_SIGMAS = 3.0


def climb(
    evaluator: Evaluator, config: Config, incumbent_ms: float | None, only_rank: int | None = None
) -> list[Measurement]:
    """Measure a compiled configuration at rising fidelities for as long as it could win, or at one only.

    Raises:
        UsageError: The evaluator does not offer that one.
    """
    done: list[Measurement] = []
    for fidelity in _rungs(evaluator, only_rank):
        started_s = time.monotonic()
        measured = evaluator.measure(config, fidelity)
        took_s = {SECONDS: time.monotonic() - started_s}
        # What a recording says of its own day wins.
        done.append(replace(measured, context={**took_s, **measured.context}))
        if not done[-1].ok or not _could_win(done[-1], incumbent_ms):
            break
    return done


def _rungs(evaluator: Evaluator, only_rank: int | None) -> Sequence[Fidelity]:
    offered = evaluator.fidelities
    wanted = [f for f in offered if only_rank in (None, f.rank)]
    if not wanted:
        known = ", ".join(f"{f.rank} ({f.name})" for f in offered)
        raise UsageError(f"a trial is to be measured at fidelity {only_rank}; the target offers {known}")
    return wanted


def _could_win(measurement: Measurement, incumbent_ms: float | None) -> bool:
    if incumbent_ms is None:
        return True
    slack = PROMOTE_FLOOR + PROMOTE_SIGMAS * measurement.relative_error
    return math.log(measurement.latency_ms / incumbent_ms) <= slack


def installed_version(package: str) -> str:
    """The version of a package, for :attr:`Device.versions`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a source tree
