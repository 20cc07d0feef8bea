"""What stands on a device of the cluster: an ordinary evaluator with its worker process, and its calibration.

Like a workshop, it knows nothing of Ray.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evotune.engine import Job, Outcome, run_job
from evotune.errors import Rejected
from evotune.evaluator import Artifact, Portable
from evotune.ray.workshop import CONFIRM_S, About, Workshop
from evotune.space import Config
from evotune.trial import Fidelity, Measurement

RECALIBRATE_S = 60.0  # at most so much of what is measured on a device that drifts goes unnoticed


@dataclass(frozen=True)
class Ran:
    """What became of a job, and by how much the device is slower than when it was calibrated (1.0: not)."""

    outcome: Outcome
    drift: float


class Station(Workshop):
    """A workshop that also has one device, on which one job at a time is measured.

    Args:
        node: Where this is, for ``Measurement.context``.
        open_evaluator: Opens the device's evaluator, given a folder to keep files in.
        default: The configuration that the device is calibrated with.
        recalibrate_s: How long a calibration holds.
    """

    def __init__(
        self,
        node: str,
        open_evaluator: Callable[[Path], Portable],
        default: Config,
        recalibrate_s: float = RECALIBRATE_S,
    ) -> None:
        super().__init__(self._open)
        self._node = node
        self._open_evaluator = open_evaluator
        self._default = default
        self._recalibrate_s = recalibrate_s
        self._measuring = threading.Lock()

    def open(self) -> About:
        """Start what measures, and calibrate; takes seconds, on a GPU minutes.

        Raises:
            UsageError: The kernel cannot be measured as it is.
            DeviceError: The device cannot be used.
        """
        about = super().open()
        self._first_ms, self._drift = self._time_default(), 1.0
        return replace(about, fidelities=tuple(self._evaluator.fidelities), default_ms=self._first_ms)

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        """Timings of a configuration, or where it failed."""
        with self._measuring:
            return self._here(self._evaluator.measure(config, fidelity))

    def run(self, job: Job, artifact: Artifact) -> Ran | None:
        """Measure what was compiled here or elsewhere; None if its turn came after :meth:`stop`.

        Raises:
            DeviceError: The device can no longer be trusted.
            UsageError: The kernel's ``inputs`` or ``reference`` failed.
        """
        if self._stopped.is_set():
            return None
        self._evaluator.accept(job.config, artifact)
        with self._measuring:
            if self._stopped.is_set():
                return None
            self._recalibrate()
            outcome = run_job(self._evaluator, job, artifact.static)
            drift = self._drift
        if not all(m.ok for m in outcome.measurements):
            time.sleep(CONFIRM_S)
        return Ran(replace(outcome, measurements=tuple(self._here(m) for m in outcome.measurements)), drift)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """Timings in alternating rounds, as the evaluator makes them."""
        with self._measuring:
            return [self._here(m) for m in self._evaluator.interleave(configs, fidelity)]

    def _open(self, folder: Path) -> Portable:
        self._evaluator = self._open_evaluator(folder)
        return self._evaluator

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
