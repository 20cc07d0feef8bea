"""What stands on a device of the cluster: an ordinary evaluator with its worker process, and its calibration.

Nothing here knows Ray: the fleet makes an actor of a station, in a process of its own on the device's node.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evotune.engine import Job, Outcome, compile_job, run_job
from evotune.errors import Rejected
from evotune.evaluator import Device, Evaluator
from evotune.process import Scratch
from evotune.space import Config
from evotune.trial import Fidelity, Measurement, Provenance, Static

# For which a failure is kept back: a node that goes down kills compilers and workers a moment before the station
# itself, and what they died of is not the candidate's fault.
CONFIRM_S = 1.0
RECALIBRATE_S = 60.0  # at most so much of what is measured on a device that drifts goes unnoticed


@dataclass(frozen=True)
class About:
    """What a station tells when it is ready; ``default_ms`` is None where the default configuration fails."""

    device: Device
    fidelities: tuple[Fidelity, ...]
    provenance: Provenance
    default_ms: float | None


@dataclass(frozen=True)
class Ran:
    """What became of a job, and by how much the device is slower than when it was calibrated (1.0: not)."""

    outcome: Outcome
    drift: float


class Station:
    """One device's evaluator: several jobs compile at once, one at a time is measured.

    Args:
        node: Where this is, for ``Measurement.context``.
        open_evaluator: Opens the device's evaluator, given a folder to keep files in.
        default: The configuration that the device is calibrated with.
        recalibrate_s: How long a calibration holds.
    """

    def __init__(
        self,
        node: str,
        open_evaluator: Callable[[Path], Evaluator],
        default: Config,
        recalibrate_s: float = RECALIBRATE_S,
    ) -> None:
        self._node = node
        self._open_evaluator = open_evaluator
        self._default = default
        self._recalibrate_s = recalibrate_s
        self._folder = Scratch("ray")
        self._measuring = threading.Lock()
        self._stopped = threading.Event()

    def open(self) -> About:
        """Start what measures, and calibrate; takes seconds, on a GPU minutes.

        Raises:
            UsageError: The kernel cannot be measured as it is.
            DeviceError: The device cannot be used.
        """
        self._evaluator = self._open_evaluator(self._folder.path)
        self._first_ms, self._drift = self._time_default(), 1.0
        evaluator = self._evaluator
        return About(evaluator.device, tuple(evaluator.fidelities), evaluator.provenance, self._first_ms)

    def compile(self, config: Config) -> Static | Measurement:
        """Static facts of a configuration, or where it failed."""
        return compile_job(self._evaluator, Job(0, config, None))

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        """Timings of a configuration, or where it failed."""
        with self._measuring:
            return self._here(self._evaluator.measure(config, fidelity))

    def run(self, job: Job) -> Ran | None:
        """Compile and measure; None if it came to be this job's turn after :meth:`stop`.

        Raises:
            DeviceError: The device can no longer be trusted.
            UsageError: The kernel's ``inputs`` or ``reference`` failed.
        """
        if self._stopped.is_set():
            return None
        compiled = compile_job(self._evaluator, job)
        with self._measuring:
            if self._stopped.is_set():
                return None
            self._recalibrate()
            outcome = run_job(self._evaluator, job, compiled)
            drift = self._drift
        if not all(m.ok for m in outcome.measurements):
            time.sleep(CONFIRM_S)
        return Ran(replace(outcome, measurements=tuple(self._here(m) for m in outcome.measurements)), drift)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """Timings in alternating rounds, as the evaluator makes them."""
        with self._measuring:
            return [self._here(m) for m in self._evaluator.interleave(configs, fidelity)]

    def stop(self) -> None:
        """Drop the jobs that are not being measured yet."""
        self._stopped.set()

    def close(self) -> None:
        """End all processes and delete all files."""
        self._stopped.set()
        if hasattr(self, "_evaluator"):  # it may not have opened
            self._evaluator.close()
        self._folder.cleanup()

    def _here(self, measurement: Measurement) -> Measurement:
        return replace(measurement, context={**measurement.context, "node": self._node})

    def _recalibrate(self) -> None:
        if self._first_ms is None or time.monotonic() < self._calibrated_s + self._recalibrate_s:
            return
        if (now_ms := self._time_default()) is not None:
            self._drift = now_ms / self._first_ms

    def _time_default(self) -> float | None:
        """Latency (ms) of the default configuration: the better of two, since a burst of other load is no drift."""
        try:
            self._evaluator.compile(self._default)
        except Rejected:
            return None
        fidelity = self._evaluator.fidelities[-1]
        readings = [self._evaluator.measure(self._default, fidelity) for _ in range(2)]
        self._calibrated_s = time.monotonic()
        return min((m.latency_ms for m in readings if m.ok), default=None)
