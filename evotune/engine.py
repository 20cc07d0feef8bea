"""Where trials run: several compile at once, and on each device one at a time is measured.

An engine is the seam between the search and its workers. The search submits jobs and collects
outcomes in whatever order they come; it never waits for one in particular.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from evotune.errors import Rejected
from evotune.evaluator import STATIC, Evaluator, climb
from evotune.space import Config
from evotune.trial import Measurement, Static

# Configurations that compile ahead of the one that is measured, for each device. Each is proposed without knowing
# what comes of those before it: with 64 ahead nothing is learned in 60 evaluations. Of 0, 1, 2, 4, 8, 16 and 64 on
# recorded spaces, 8 find less, and 2 find as much later; see benchmarks/results/scale.md.
AHEAD = 4
IN_FLIGHT = 0.1  # of all evaluations, at most: of 20, 4 ahead find less than 1


@dataclass(frozen=True)
class Job:
    """One configuration to evaluate; ``incumbent_ms`` is what it has to beat to be looked at closely,
    ``fidelity_rank`` the one fidelity to measure at, if it is not to climb."""

    number: int
    config: Config
    incumbent_ms: float | None
    fidelity_rank: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    number: int
    static: Static | None
    measurements: tuple[Measurement, ...]


def ahead(cores: int, devices: int, evaluations: int) -> int:
    """How many configurations are to compile ahead of each device's: one at least, :data:`AHEAD` at most.

    Args:
        cores: Where they compile.
        devices: That measure at once.
        evaluations: The budget of the run.
    """
    return max(1, min(AHEAD, cores // devices, int(IN_FLIGHT * evaluations) // devices - 1))


class Engine(Protocol):
    """Runs jobs somewhere."""

    @property
    def slots(self) -> int:
        """How many jobs keep it busy; it may change while it runs."""
        ...

    def submit(self, job: Job) -> None:
        """Take a job; returns at once."""
        ...

    def completed(self, timeout_s: float) -> list[Outcome]:
        """Outcomes since the last call, waiting for the first up to ``timeout_s``.

        Raises:
            DeviceError: The device can no longer be trusted.
        """
        ...

    def cancel(self) -> None:
        """Forget all jobs and stop; safe to call twice."""
        ...


class InlineEngine:
    """Runs each job in the caller's thread when its outcome is asked for: no threads, one order."""

    slots = 1

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def completed(self, timeout_s: float) -> list[Outcome]:
        done = [run_job(self._evaluator, job, compile_job(self._evaluator, job)) for job in self._jobs]
        self._jobs = []
        return done

    def cancel(self) -> None:
        self._jobs = []


class LocalEngine:
    """Compiles on threads that each drive a killable process, and measures on other threads.

    Timings swing with what else the process and the device are doing, so no more configurations are
    being measured at any time than there are devices.

    Args:
        evaluator: Compiles and measures.
        compile_jobs: Compilations at once.
        measure_jobs: Devices on which the evaluator measures.
    """

    def __init__(self, evaluator: Evaluator, compile_jobs: int, measure_jobs: int = 1) -> None:
        self.slots = compile_jobs + measure_jobs
        self._evaluator = evaluator
        self._compilers = ThreadPoolExecutor(compile_jobs, thread_name_prefix="evotune-compile")
        self._ready: queue.Queue[tuple[Job, Static | Measurement] | None] = queue.Queue()
        self._done: queue.Queue[Outcome | BaseException] = queue.Queue()
        self._cancelled = threading.Event()
        self._measurers = [
            threading.Thread(target=self._measure_all, name=f"evotune-measure-{i}", daemon=True)
            for i in range(measure_jobs)
        ]
        for measurer in self._measurers:
            measurer.start()

    def submit(self, job: Job) -> None:
        self._compilers.submit(self._compile_one, job)

    def completed(self, timeout_s: float) -> list[Outcome]:
        out: list[Outcome] = []
        try:
            found = self._done.get(timeout=timeout_s)
            while True:
                if isinstance(found, BaseException):
                    raise found
                out.append(found)
                found = self._done.get_nowait()
        except queue.Empty:
            return out

    def cancel(self) -> None:
        self._cancelled.set()
        self._compilers.shutdown(wait=False, cancel_futures=True)
        # The evaluator may be closed once this returns, so the jobs in hand end first; their own
        # deadlines bound the wait.
        for _ in self._measurers:
            self._ready.put(None)
        for measurer in self._measurers:
            measurer.join()
        self._compilers.shutdown(wait=True)

    def _compile_one(self, job: Job) -> None:
        if self._cancelled.is_set():
            return
        try:
            self._ready.put((job, compile_job(self._evaluator, job)))
        except BaseException as error:  # whatever it is, the main thread must hear of it
            self._done.put(error)

    def _measure_all(self) -> None:
        while (item := self._ready.get()) is not None:
            if self._cancelled.is_set():
                continue
            job, compiled = item
            try:
                self._done.put(run_job(self._evaluator, job, compiled))
            except BaseException as error:  # whatever it is, the main thread must hear of it
                self._done.put(error)


def compile_job(evaluator: Evaluator, job: Job) -> Static | Measurement:
    """What compiling told, or where it failed."""
    try:
        return evaluator.compile(job.config)
    except Rejected as rejected:
        reason = rejected.reason
        return Measurement(STATIC, evaluator.provenance, failed_stage=rejected.stage, reason=reason)


def run_job(evaluator: Evaluator, job: Job, compiled: Static | Measurement) -> Outcome:
    """Measure a job that was compiled."""
    if isinstance(compiled, Measurement):
        return Outcome(job.number, None, (compiled,))
    rungs: Sequence[Measurement] = climb(evaluator, job.config, job.incumbent_ms, job.fidelity_rank)
    return Outcome(job.number, compiled, tuple(rungs))
