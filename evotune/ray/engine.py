"""Hands jobs to the stations of a fleet, and those of a lost one to another."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (Ray is optional, and its types are partial.)
from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from evotune.engine import Job, Outcome
from evotune.evaluator import STATIC
from evotune.ray.fleet import Fleet, Member, Place
from evotune.ray.station import Ran
from evotune.supervisor import failed

LOSSES_TO_QUARANTINE = 2


@dataclass(frozen=True)
class _Waiting:
    """A job to be run; ``lost_at`` are the nodes where it was when their station was lost."""

    job: Job
    lost_at: tuple[str, ...] = ()

    def room(self, member: Member) -> int:
        """How many of a station's slots it takes: all if it was lost before, so that no other suffers with it."""
        return member.slots if self.lost_at else 1


@dataclass(frozen=True)
class _Flight:
    """A job that a station has."""

    waiting: _Waiting
    member: Member
    deadline_s: float


class RayEngine:
    """Runs jobs on the stations of a fleet; see :class:`evotune.engine.Engine`.

    A job whose station is lost is run once more, elsewhere if there is an elsewhere; if that is lost too, the
    job counts as failed. A station that does not answer in time is lost.

    Args:
        fleet: Started; it is not closed here.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._waiting: deque[_Waiting] = deque()
        self._flights: dict[Any, _Flight] = {}
        self._given_up: list[Outcome] = []

    @property
    def slots(self) -> int:
        """One at least, so that a run waits for nodes instead of ending when all are lost."""
        return max(1, sum(m.slots for m in self._fleet.members))

    def submit(self, job: Job) -> None:
        self._waiting.append(_Waiting(job))
        self._dispatch()

    def completed(self, timeout_s: float) -> list[Outcome]:
        until_s = time.monotonic() + timeout_s
        while True:
            self._fleet.refresh()
            self._drop_overdue()
            self._dispatch()
            done = self._collect(max(0.0, until_s - time.monotonic()))
            done += self._given_up
            self._given_up = []
            if done or time.monotonic() >= until_s:
                return done

    def cancel(self) -> None:
        self._waiting.clear()
        flying, self._flights = self._flights, {}
        if not flying or not ray.is_initialized():
            return
        for member in self._fleet.members:
            member.actor.stop.remote()
        # Finals on one device must not be disturbed from another of the same node.
        longest_s = max(f.deadline_s for f in flying.values()) - time.monotonic()
        ray.wait(list(flying), num_returns=len(flying), timeout=max(0.0, longest_s))

    def _dispatch(self) -> None:
        load = Counter[Place]()
        for flight in self._flights.values():
            load[flight.member.place] += flight.waiting.room(flight.member)
        for _ in range(len(self._waiting) if self._fleet.members else 0):
            waiting = self._waiting.popleft()
            elsewhere = [m for m in self._fleet.members if m.node.id not in waiting.lost_at]
            member = min(elsewhere or self._fleet.members, key=lambda m: load[m.place])
            # Counted where it has to wait too: others must not overtake it there.
            load[member.place] += waiting.room(member)
            if load[member.place] > member.slots:
                self._waiting.append(waiting)
                continue
            deadline_s = time.monotonic() + self._fleet.limit_s(member, jobs=member.slots)
            self._flights[member.actor.run.remote(waiting.job)] = _Flight(waiting, member, deadline_s)

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
        member = flight.member
        try:
            ran: Ran = ray.get(reference)
        except RayError as error:
            self._fleet.blame(member, error)
            self._take_back(member)
            return None
        member.drift = ran.drift
        if self._fleet.has_drifted(member):
            self._fleet.lose(
                member,
                f"it has become {ran.drift:.2f} times as slow as when it was calibrated, and the others have not",
                for_good=True,
            )
            self._take_back(member)
            return None
        del self._flights[reference]
        return self._compared(ran.outcome, member)

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
        """All jobs that a lost station had wait again; those that were lost before are given up."""
        theirs = [reference for reference, f in self._flights.items() if f.member is member]
        for reference in reversed(theirs):
            waiting = self._flights.pop(reference).waiting
            job, lost_at = waiting.job, (*waiting.lost_at, member.node.id)
            if len(lost_at) < LOSSES_TO_QUARANTINE:
                self._waiting.appendleft(_Waiting(job, lost_at))
                continue
            reason = f"quarantined, not run again: its node or its process was lost {len(lost_at)} times"
            self._given_up.append(Outcome(job.number, None, (failed(STATIC, "crash", reason),)))
