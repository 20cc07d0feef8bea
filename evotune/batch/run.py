"""The jobs of a batch, one after another: timings must not disturb each other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from evotune.batch.jobs import Job
from evotune.batch.plan import BatchPlan, Known, PlannedJob, known_runs
from evotune.errors import DeviceError, ProviderError, UsageError
from evotune.result import Result
from evotune.session import tune
from evotune.settings import Settings
from evotune.tuner import Observer

State = Literal["found", "nothing found", "failed", "device fault", "interrupted", "not begun"]


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``result`` is what its run reported, here or earlier; ``why`` is set if there is none, or
    it is not all."""

    job: Job
    state: State
    result: Mapping[str, Any] | None = None
    why: str | None = None
    was_done: bool = False
    """Whether an earlier call did it."""

    def to_json(self) -> dict[str, Any]:
        """The object of one job that ``--json`` prints."""
        return {**self.job.to_json(), "state": self.state, "why": self.why, "result": self.result}


def run_batch(
    plan: BatchPlan,
    observe: Callable[[str], AbstractContextManager[Observer]],
    *,
    tune_one: Callable[..., Result] = tune,
) -> list[Outcome]:
    """Run the jobs of a plan; one that fails does not stop the others, Ctrl-C does.

    Args:
        plan: What is to be done.
        observe: Opens what is told of one job, given a line that says which it is and how far the batch has
            come.
        tune_one: As :func:`evotune.session.tune`.
    """
    purse = _Purse(plan)
    outcomes: list[Outcome] = []
    for number, planned in enumerate(plan.jobs, 1):
        outcome = _settled(planned, outcomes)
        if outcome is None and (why := purse.why_not(planned)):
            outcome = _left(planned, why)
        if outcome is None:
            title = f"job {number} of {len(plan.jobs)}: {planned.job}{_so_far(outcomes)}"
            with observe(title) as observer:
                outcome = _run(planned, purse.limited(planned), observer, tune_one)
            purse.pay(planned, outcome)
        outcomes.append(outcome)
    return outcomes


def _settled(planned: PlannedJob, before: Sequence[Outcome]) -> Outcome | None:
    """What is clear without a run."""
    if planned.is_done:
        assert planned.known is not None
        assert planned.known.result is not None
        return _reported(planned.job, planned.known.result, was_done=True)
    if planned.trouble is not None:
        return Outcome(planned.job, "device fault", why=planned.trouble)
    if before and any(outcome.state == "interrupted" for outcome in before):
        return Outcome(planned.job, "not begun", why="interrupted before it")
    return None


def _left(planned: PlannedJob, why: str) -> Outcome:
    """Not gone on with; what an earlier call has found stays."""
    if planned.known is None or planned.known.result is None:
        return Outcome(planned.job, "not begun", why=why)
    return replace(_reported(planned.job, planned.known.result, was_done=True), why=why)


def _run(planned: PlannedJob, settings: Settings, observer: Observer, tune_one: Callable[..., Result]) -> Outcome:
    job = planned.job
    try:
        result = tune_one(job.kernel, settings, observer=observer)
    except KeyboardInterrupt:
        return Outcome(job, "interrupted", why="before it could end its run")
    except DeviceError as error:
        return Outcome(job, "device fault", why=str(error))
    except (UsageError, ProviderError) as error:
        return Outcome(job, "failed", why=str(error))
    outcome = _reported(job, result.to_json())
    if (
        outcome.why is None
        and result.stopped == "evaluations"
        and result.evaluations < job.settings.run.max_evaluations
    ):
        spent = f"{result.evaluations} of {job.settings.run.max_evaluations} evaluations"
        return replace(outcome, why=f"{spent}: those of the batch are spent")
    return outcome


def _reported(job: Job, result: Mapping[str, Any], *, was_done: bool = False) -> Outcome:
    if result["stopped"] == "interrupted":
        return Outcome(job, "interrupted", result, "what it found so far")
    if result["best"] is None:
        return Outcome(job, "nothing found", result, "no configuration was valid", was_done)
    return Outcome(job, "found", result, was_done=was_done)


def _so_far(outcomes: Sequence[Outcome]) -> str:
    counts = {state: sum(o.state == state for o in outcomes) for state in ("found", "nothing found", "failed")}
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    return f" (so far {said})" if said else ""


class _Purse:
    """What all jobs may still cost together. Runs of earlier calls count, but their time does not."""

    def __init__(self, plan: BatchPlan) -> None:
        self._may, self._journal = plan.in_all, Path(plan.journal)
        self._spent = {known.run_id: known for planned in plan.jobs if (known := planned.known)}
        self._started_s = time.monotonic()

    def why_not(self, planned: PlannedJob) -> str | None:
        """Which limit of the batch is reached, if one is; what a job may do itself, its run knows."""
        may, settings, spent = self._may, self.limited(planned), self._of(planned)
        # A run that was cut off in its finals has made all its evaluations, and has them yet to hold.
        if settings.run.max_evaluations <= spent.evaluations < planned.job.settings.run.max_evaluations:
            return f"all {may.max_evaluations} evaluations of the batch are spent"
        if may.max_seconds is not None and (settings.run.max_seconds or 0) <= 0:
            return f"all {may.max_seconds} s of the batch are spent"
        if may.max_usd is not None and (settings.llm.max_usd or 0) <= spent.usd:
            return f"all ${may.max_usd} of the batch are spent"
        return None

    def limited(self, planned: PlannedJob) -> Settings:
        """The settings of a job, with no more than is left of everything; what its run has spent is part of it."""
        settings, may, spent = planned.job.settings, self._may, self._of(planned)
        run: dict[str, Any] = {}
        llm: dict[str, Any] = {}
        if may.max_evaluations is not None:
            others = sum(known.evaluations for known in self._spent.values()) - spent.evaluations
            run["max_evaluations"] = min(settings.run.max_evaluations, may.max_evaluations - others)
        if may.max_seconds is not None:
            left_s = may.max_seconds - (time.monotonic() - self._started_s)
            run["max_seconds"] = min(settings.run.max_seconds or math.inf, left_s)
        if may.max_usd is not None:
            others_usd = sum(known.usd for known in self._spent.values()) - spent.usd
            llm["max_usd"] = min(settings.llm.max_usd or math.inf, may.max_usd - others_usd)
        return settings.model_copy(
            update={"run": settings.run.model_copy(update=run), "llm": settings.llm.model_copy(update=llm)}
        )

    def pay(self, planned: PlannedJob, outcome: Outcome) -> None:
        """Count what a run has cost, also of one that failed: the journal knows."""
        reported = outcome.result["run_id"] if outcome.result else None
        for key, known in known_runs(self._journal).items():
            if reported == known.run_id or (reported is None and key == planned.key):
                self._spent[known.run_id] = known

    def _of(self, planned: PlannedJob) -> Known:
        known = planned.known
        return self._spent[known.run_id] if known else Known("", 0, 0.0, None)
