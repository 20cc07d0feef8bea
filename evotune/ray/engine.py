"""Hands jobs to whoever has room: to compile on any node, then to measure on a device; again if a node is lost."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (Ray is optional, and its types are partial.)
from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from evotune.engine import Job, Outcome, ahead
from evotune.evaluator import STATIC, Artifact
from evotune.ray.fleet import Fleet, Member, Place
from evotune.ray.station import Ran
from evotune.supervisor import failed
from evotune.trial import Measurement

LOSSES_TO_QUARANTINE = 2
RUNS = 2  # that a station has at once: one is measured while the next is on its way


@dataclass(frozen=True)
class _Task:
    """A job on its way; ``lost_at`` are the nodes where it was when their actor was lost."""

    job: Job
    artifact: Artifact | None = None
    """None until it is compiled."""
    lost_at: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Flight:
    """A task that an actor has: a station to measure it, or any to compile it."""

    task: _Task
    member: Member
    deadline_s: float

    @property
    def is_run(self) -> bool:
        return self.task.artifact is not None


class RayEngine:
    """Runs jobs on the members of a fleet; see :class:`evotune.engine.Engine`.

    A job whose actor is lost is taken up once more, elsewhere if there is an elsewhere, and there alone, so that
    no other suffers with it; if that is lost too, the job counts as failed. An actor that does not answer in
    time is lost.

    Args:
        fleet: Started; it is not closed here.
        evaluations: The budget of the run.
    """

    def __init__(self, fleet: Fleet, evaluations: int) -> None:
        self._fleet = fleet
        self._evaluations = evaluations
        self._to_compile: deque[_Task] = deque()
        self._to_run: deque[_Task] = deque()
        self._suspects: deque[_Task] = deque()
        self._flights: dict[Any, _Flight] = {}
        self._given_up: list[Outcome] = []

    @property
    def slots(self) -> int:
        """One at least, so that a run waits for nodes instead of ending when all are lost."""
        devices = len(self._fleet.stations)
        cores = sum(m.compile_slots for m in self._fleet.members)
        return devices * (1 + ahead(cores, devices, self._evaluations)) if devices else 1

    def submit(self, job: Job) -> None:
        self._to_compile.append(_Task(job))
        self._dispatch()

    def completed(self, timeout_s: float) -> list[Outcome]:
        until_s = time.monotonic() + timeout_s
        while True:
            self._fleet.refresh()
            self._drop_overdue()
            self._dispatch()
            done = self._collect(max(0.0, until_s - time.monotonic()))
            self._dispatch()
            done += self._given_up
            self._given_up = []
            if done or time.monotonic() >= until_s:
                return done

    def cancel(self) -> None:
        for queue in (self._to_compile, self._to_run, self._suspects):
            queue.clear()
        flying, self._flights = self._flights, {}
        if not flying or not ray.is_initialized():
            return
        for member in self._fleet.members:
            member.actor.stop.remote()
        # Finals on one device must not be disturbed from another of the same node.
        longest_s = max(f.deadline_s for f in flying.values()) - time.monotonic()
        ray.wait(list(flying), num_returns=len(flying), timeout=max(0.0, longest_s))

    # -- to the actors --------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if not (self._suspects or self._to_run or self._to_compile):
            return
        flights = self._flights.values()
        runs = Counter(f.member.place for f in flights if f.is_run)
        compiles = Counter(f.member.place for f in flights if not f.is_run)
        alone = self._dispatch_suspects(runs + compiles)
        free = [m for m in self._fleet.members if m.place not in alone]
        stations = [m for m in free if m.measures]
        self._fill(self._to_run, stations, runs, lambda m: RUNS)
        self._fill(self._to_compile, free, compiles, lambda m: m.compile_slots)

    def _dispatch_suspects(self, load: Counter[Place]) -> set[Place]:
        """Send those whose turn it is; the places that are theirs alone, as soon as they are empty."""
        alone = {f.member.place for f in self._flights.values() if f.task.lost_at}
        for _ in range(len(self._suspects)):
            task = self._suspects.popleft()
            able = self._fleet.stations if task.artifact else self._fleet.members
            rest = [m for m in able if m.place not in alone]
            elsewhere = [m for m in rest if m.node.id not in task.lost_at]
            member = min(elsewhere or rest, key=lambda m: load[m.place], default=None)
            if member is not None:
                alone.add(member.place)
            if member is None or load[member.place]:
                self._suspects.append(task)
            else:
                self._send(task, member)
        return alone

    def _fill(
        self,
        tasks: deque[_Task],
        members: Sequence[Member],
        load: Counter[Place],
        room: Callable[[Member], int],
    ) -> None:
        """Send tasks, in their order, to whoever is least busy, for as long as there is room."""
        while tasks and (able := [m for m in members if load[m.place] < room(m)]):
            # Where nothing is measured, nothing is disturbed.
            member = min(able, key=lambda m: (m.measures, load[m.place] / room(m)))
            load[member.place] += 1
            self._send(tasks.popleft(), member)

    def _send(self, task: _Task, member: Member) -> None:
        if task.artifact is None:
            reference, jobs = member.actor.compile.remote(task.job.config), member.compile_slots
        else:
            reference, jobs = member.actor.run.remote(task.job, task.artifact), RUNS
        deadline_s = time.monotonic() + self._fleet.limit_s(member, jobs)
        self._flights[reference] = _Flight(task, member, deadline_s)

    # -- and back -------------------------------------------------------------------------------

    def _collect(self, timeout_s: float) -> list[Outcome]:
        if not self._flights:
            time.sleep(timeout_s)
            return []
        # The first that is ready, then all others that are.
        if not ray.wait(list(self._flights), num_returns=1, timeout=timeout_s)[0]:
            return []
        ready, _ = ray.wait(list(self._flights), num_returns=len(self._flights), timeout=0)
        found = [self._land(reference) for reference in ready if reference in self._flights]
        return [outcome for outcome in found if outcome is not None]

    def _land(self, reference: Any) -> Outcome | None:
        flight = self._flights[reference]
        member, task = flight.member, flight.task
        try:
            found: Artifact | Measurement | Ran = ray.get(reference)
        except RayError as error:
            self._fleet.blame(member, error)
            self._take_back(member)
            return None
        if isinstance(found, Artifact):
            del self._flights[reference]
            (self._suspects if task.lost_at else self._to_run).append(replace(task, artifact=found))
            return None
        if isinstance(found, Measurement):
            del self._flights[reference]
            return Outcome(task.job.number, None, (found,))
        member.drift = found.drift
        if self._fleet.has_drifted(member):
            self._fleet.lose(
                member,
                f"it has become {found.drift:.2f} times as slow as when it was calibrated, and the others have not",
                for_good=True,
            )
            self._take_back(member)
            return None
        del self._flights[reference]
        return self._compared(found.outcome, member)

    def _compared(self, outcome: Outcome, member: Member) -> Outcome:
        """With the device's speed beside the others': a ratio of latencies of the default configuration."""
        own_ms, middle_ms = member.about.default_ms, self._fleet.median_ms()
        if own_ms is None or middle_ms is None:
            return outcome
        calibration = {"calibration": own_ms / middle_ms}
        measurements = (replace(m, context={**m.context, **calibration}) for m in outcome.measurements)
        return replace(outcome, measurements=tuple(measurements))

    def _drop_overdue(self) -> None:
        now_s = time.monotonic()
        for flight in list(self._flights.values()):
            if now_s > flight.deadline_s:
                self._fleet.lose(flight.member, "no answer before the deadline")
                self._take_back(flight.member)

    def _take_back(self, member: Member) -> None:
        """All tasks that a lost actor had are suspects; those that were so before are given up."""
        theirs = [reference for reference, f in self._flights.items() if f.member is member]
        for reference in reversed(theirs):
            task = self._flights.pop(reference).task
            task = replace(task, lost_at=(*task.lost_at, member.node.id))
            if len(task.lost_at) < LOSSES_TO_QUARANTINE:
                self._suspects.appendleft(task)
                continue
            reason = f"quarantined, not run again: its node or its process was lost {len(task.lost_at)} times"
            self._given_up.append(Outcome(task.job.number, None, (failed(STATIC, "crash", reason),)))
