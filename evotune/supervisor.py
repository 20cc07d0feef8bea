"""Measures in worker processes, finds out whose fault a death is, and keeps the guilty away."""

from __future__ import annotations

import logging
import queue
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from evotune.errors import DeviceError, UsageError
from evotune.process import Reply, Worker
from evotune.trial import Fidelity, Measurement, Provenance

_log = logging.getLogger(__name__)

KILLS_TO_QUARANTINE = 2
SETUP_TIMEOUT_S = 900.0  # a reference on the CPU at the size of a GPU's problem, for each set of inputs
PROVENANCE: Provenance = "measured"
# What a worker tells of a run: why it failed, what it took, or nothing, where another one tainted the worker.
KINDS_OF_RUNS = {frozenset(("stage", "reason")), frozenset(("samples_ms", "context")), frozenset[str]()}


@dataclass(frozen=True)
class Subject:
    """One candidate: ``key`` names it among all, ``payload`` is what a worker is told of it."""

    key: str
    payload: Any


class Supervisor:
    """Sends candidates to workers and judges what comes back.

    A worker takes ``{"runs": [payload, …], "reps", "limit_s", **extra}`` and answers ``{"runs": […],
    "tainted"}``: for each run ``samples_ms`` and ``context``, or ``stage`` and ``reason``. It is
    replaced when it dies, passes its deadline, or says that a candidate has tainted it.

    Args:
        workers: One for each device that measures; started on demand. As many threads may measure at once.
        timeout_s: For one candidate, with its checks; half of it bounds the timing.
    """

    def __init__(self, workers: Sequence[Worker], timeout_s: float) -> None:
        self._workers = tuple(workers)
        self._timeout_s = timeout_s
        self._idle: queue.Queue[Worker] = queue.Queue()
        for worker in self._workers:
            self._idle.put(worker)
        self._kills: Counter[str] = Counter()
        self._deaths: dict[str, tuple[str, str]] = {}
        self._is_closed = False

    def close(self) -> None:
        """Kill the workers, and wait until nobody uses them any more; safe to call twice."""
        self._is_closed = True
        ended: list[Worker] = []
        while len(ended) < len(self._workers):
            for worker in self._workers:
                worker.interrupt()
            with suppress(queue.Empty):
                ended.append(self._idle.get(timeout=0.1))
        for worker in ended:
            worker.stop()
            self._idle.put(worker)  # for who still waits for one, and finds this closed

    def measure(self, subject: Subject, fidelity: Fidelity) -> Measurement:
        """Samples of one candidate on whichever device is free, or the stage that failed.

        Raises:
            DeviceError: A worker does not start again, or a known result is wrong in it.
            UsageError: The kernel's ``inputs`` or ``reference`` failed.
        """
        with self._free() as worker:
            return self._measure(worker, subject, fidelity)

    def interleave(
        self, subjects: Sequence[Subject], fidelity: Fidelity, extra: Mapping[str, float] | None = None
    ) -> list[Measurement]:
        """Samples in alternating rounds, all on the first device, while nothing else is measured.
        Candidates that fail are left out of them.

        Raises:
            DeviceError: As in :meth:`measure`, or candidates that run alone fail together.
            UsageError: As in :meth:`measure`.
        """
        worker = self._workers[0]
        refused = {i: m for i, s in enumerate(subjects) if (m := self._quarantined(s, fidelity))}
        results: dict[int, Measurement] = refused
        alive: dict[int, Subject] = {i: s for i, s in enumerate(subjects) if i not in refused}
        for _ in range(2):
            if not alive:
                break
            reply = self._request(worker, list(alive.values()), fidelity, extra or {})
            if not _is_death(reply):
                runs = zip(alive, reply.value["runs"], strict=True)
                results |= {i: _measurement(fidelity, run) for i, run in runs}
                break
            # Whose fault it was shows only one by one.
            alone = {i: self._measure(worker, subject, fidelity) for i, subject in alive.items()}
            results |= {i: m for i, m in alone.items() if not m.ok}
            alive = {i: subject for i, subject in alive.items() if alone[i].ok}
        else:
            raise DeviceError("configurations that run alone fail in alternation; see the log for how")
        return [results[i] for i in range(len(subjects))]

    @contextmanager
    def _free(self) -> Generator[Worker, None, None]:
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def _quarantined(self, subject: Subject, fidelity: Fidelity) -> Measurement | None:
        if self._kills[subject.key] < KILLS_TO_QUARANTINE:
            return None
        stage, reason = self._deaths[subject.key]
        return failed(fidelity, stage, f"quarantined, not run again: {reason}")

    def _measure(self, worker: Worker, subject: Subject, fidelity: Fidelity) -> Measurement:
        if refusal := self._quarantined(subject, fidelity):
            return refusal
        was_used = worker.pid is not None
        reply = self._request(worker, [subject], fidelity, {})
        deaths = int(_is_death(reply))
        if deaths and _cause(reply)[0] == "crash" and was_used:
            # An earlier candidate may have corrupted the process; in a new one the blame is certain.
            reply = self._request(worker, [subject], fidelity, {})
            deaths += _is_death(reply)
        if not _is_death(reply):
            return _measurement(fidelity, reply.value["runs"][0])
        self._kills[subject.key] += deaths
        self._deaths[subject.key] = _cause(reply)
        return failed(fidelity, *_cause(reply))

    def _request(
        self, worker: Worker, subjects: Sequence[Subject], fidelity: Fidelity, extra: Mapping[str, float]
    ) -> Reply:
        if self._is_closed:
            raise DeviceError("the evaluator is closed")
        request = {
            "runs": [s.payload for s in subjects],
            "reps": fidelity.reps,
            "limit_s": len(subjects) * min(fidelity.limit_s, self._timeout_s / 2),
            **extra,
        }
        # Those in alternation are checked once more in each block.
        each_s = self._timeout_s if len(subjects) == 1 else 2 * self._timeout_s
        reply = worker.call(request, len(subjects) * each_s + extra.get("settle_s", 0.0))
        if reply.ok and not _is_sound(reply.value, len(subjects)):
            reply = Reply("protocol", message="wrote a reply that is no measurement")
        if reply.kind == "error":
            raise (UsageError if reply.error == "UsageError" else DeviceError)(reply.message)
        if _is_death(reply):
            _log.warning("a worker is replaced: %s", reply.message or "a kernel left something behind")
            worker.stop()
        return reply


def failed(fidelity: Fidelity, stage: str, reason: str) -> Measurement:
    """A measurement that came to nothing at a stage."""
    return Measurement(fidelity, PROVENANCE, failed_stage=stage, reason=reason)


def _is_sound(value: Any, runs: int) -> bool:
    """Whether a reply has the shape that a worker gives it: a candidate's code may have written it."""
    try:
        told = [frozenset(run) for run in value["runs"]]
        return isinstance(value["tainted"], bool) and len(told) == runs and set(told) <= KINDS_OF_RUNS
    except (TypeError, KeyError):
        return False


def _is_death(reply: Reply) -> bool:
    return reply.killed or bool(reply.value["tainted"])


def _cause(reply: Reply) -> tuple[str, str]:
    if reply.killed:
        return "timeout" if reply.kind == "timeout" else "crash", reply.message
    return next((r["stage"], r["reason"]) for r in reply.value["runs"] if "stage" in r)


def _measurement(fidelity: Fidelity, run: Mapping[str, Any]) -> Measurement:
    if "stage" in run:
        return failed(fidelity, run["stage"], run["reason"])
    return Measurement(fidelity, PROVENANCE, tuple(run["samples_ms"]), context=run["context"])
