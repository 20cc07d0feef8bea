"""What a batch would do: nothing is built, started, measured or asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from evotune import content, recipe
from evotune.asking import name_model, open_prompts
from evotune.batch.jobs import Batch, InAll, Job
from evotune.budget import Budget
from evotune.errors import DeviceError, UsageError
from evotune.facts import GIVEN
from evotune.gpu.detect import Gpu
from evotune.gpu.target import FACTS
from evotune.journal import Journal
from evotune.kernel import LoadedKernel, Problem, load_checked
from evotune.reading import read
from evotune.rows import result_of
from evotune.session import describe
from evotune.settings import Settings
from evotune.subject import find_subject, gpus_here
from evotune.transfer import WARM_START

# What only the device itself tells of a run, and the source of a warm start only when it is read.
NOT_PLANNED = ("device", "versions", WARM_START)


@dataclass(frozen=True)
class Known:
    """The run of the journal that a job goes on with. ``usd`` is what models have cost it so far."""

    run_id: str
    evaluations: int
    usd: float
    result: Mapping[str, Any] | None
    """None if it has not ended, or has gone on since."""


@dataclass(frozen=True)
class PlannedJob:
    """A job, and the run that it goes on with; ``trouble`` says why nothing can be run for it here."""

    job: Job
    key: str
    """Tells its run in :func:`known_runs`, and whether two jobs are one."""
    known: Known | None = None
    trouble: str | None = None

    @property
    def evaluations_left(self) -> int:
        """At most."""
        if self.is_done or self.trouble:
            return 0
        return max(0, self.job.settings.run.max_evaluations - (self.known.evaluations if self.known else 0))

    @property
    def is_done(self) -> bool:
        """Whether the run has ended and its budgets allow no more: then it is not even looked at again.

        What was good enough before is left to the tuner, which ends at once if it still is.
        """
        if self.known is None or self.known.result is None:
            return False
        run, result = self.job.settings.run, self.known.result
        if result["stopped"] == "seconds":
            return run.max_seconds is not None and result["seconds"] >= run.max_seconds
        if result["stopped"] == "exhausted":
            return True
        return result["stopped"] != "interrupted" and self.known.evaluations >= run.max_evaluations

    @property
    def state(self) -> str:
        """``new``, ``goes on``, ``done``, or ``cannot run``."""
        if self.is_done:
            return "done"
        return "cannot run" if self.trouble else "goes on" if self.known else "new"

    def to_json(self) -> dict[str, Any]:
        """The object of one job that ``--dry-run --json`` prints."""
        run = self.job.settings.run
        return {
            **self.job.to_json(),
            "state": self.state,
            "why": None if self.is_done else self.trouble,
            "run_id": self.known.run_id if self.known else None,
            "max_evaluations": run.max_evaluations,
            "evaluations_left": self.evaluations_left,
            "max_seconds": run.max_seconds,
            "max_usd": self.job.settings.llm.max_usd,
        }


@dataclass(frozen=True)
class BatchPlan:
    """All jobs in the order in which they are run, and what they may cost together."""

    jobs: Sequence[PlannedJob]
    in_all: InAll
    journal: str

    @property
    def evaluations_left(self) -> int:
        """At most, of all jobs."""
        left = sum(planned.evaluations_left for planned in self.jobs)
        if self.in_all.max_evaluations is not None:
            spent = sum(planned.known.evaluations for planned in self.jobs if planned.known)
            left = min(left, max(0, self.in_all.max_evaluations - spent))
        return left

    def to_json(self) -> dict[str, Any]:
        """The object that ``--dry-run --json`` prints."""
        return {
            "dry_run": True,
            "jobs": [planned.to_json() for planned in self.jobs],
            "in_all": self.in_all.model_dump(),
            "evaluations_left": self.evaluations_left,
            "journal": self.journal,
        }


def plan_batch(batch: Batch, settings: Settings, environ: Mapping[str, str]) -> BatchPlan:
    """Look at every job: whether it can be run, and what the journal knows of it.

    Raises:
        UsageError: Some cannot be used as they are; all are told.
    """
    # Each file is loaded once, and devices are looked for once, however many shapes there are.
    load, gpus = cache(load_checked), cache(gpus_here)
    looked: list[PlannedJob] = []
    wrong: list[str] = []
    models: set[object] = set()
    for job in batch.jobs:
        try:
            looked.append(_look(job, load, gpus))
            asked = (job.settings.llm, job.settings.prompt, job.settings.run.search)
            if asked not in models:
                name_model(job.settings, environ)
                open_prompts(job.settings)
                models.add(asked)
        except UsageError as error:
            wrong.append(f"{job.where}: {job}: {error}")
    if wrong := [*dict.fromkeys(wrong), *_twice(looked)]:
        raise UsageError("\n".join(wrong))
    path = Path(settings.run.journal)
    runs = known_runs(path)
    return BatchPlan([replace(planned, known=runs.get(planned.key)) for planned in looked], batch.in_all, str(path))


def _look(job: Job, load: Callable[[Path], LoadedKernel], gpus: Callable[[], Sequence[Gpu]]) -> PlannedJob:
    """A job, whatever the journal knows of it."""
    run, trouble = job.settings.run, None
    if run.engine == "local" or run.target == "cpu":  # the GPUs of a cluster are known to the cluster alone
        try:
            subject = find_subject(job.kernel, job.settings, load=load, gpus=gpus)
        except DeviceError as error:
            trouble = str(error)
        else:
            Budget.of(run, subject.roofline.bound_ms if subject.roofline else None, subject.target)
            described = describe(subject.story.problem, subject.target, job.settings)
            return PlannedJob(job, _key(subject.name, subject.source_hash, described, run.warm_start))
    kernel = load(content.find(job.kernel, content.KERNELS))
    key = _key(kernel.name, kernel.source_hash, _described_elsewhere(kernel, job.settings), run.warm_start)
    return PlannedJob(job, key, trouble=trouble)


def _described_elsewhere(kernel: LoadedKernel, settings: Settings) -> Mapping[str, Any]:
    """What is known of a run on a device that is not here, as :func:`_less_device` has it.

    Where the target fits any device it has an entry that no run of a journal has: only the device tells the run.
    """
    wanted, shape = settings.run.target, settings.run.shape
    plan = None if wanted == "auto" else recipe.load(wanted)
    problem: Problem = {}
    if plan is not None:
        kernel.backend(plan.backend)
        problem = kernel.problem(shape, plan.backend)
    elif shape is not None:
        problem = kernel.problem(shape, "any")
    described = describe(problem, wanted, settings)
    return described if plan is not None and plan.device_name else {**described, "fits_any_device": True}


def _less_device(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """A description of a run less what the device adds to the problem."""
    problem = description.get("problem", {})  # a run over several shapes has none
    return {**description, "problem": {name: value for name, value in problem.items() if name not in FACTS}}


def _twice(planned: Sequence[PlannedJob]) -> list[str]:
    """Jobs that would be one run, however they are spelt: budgets do not tell runs apart."""
    first: dict[str, Job] = {}
    out: list[str] = []
    for job, key in ((p.job, p.key) for p in planned):
        same = first.setdefault(key, job)
        if same is not job:
            out.append(
                f"{job.where}: {job} would be the same run as {same.where}: {same}; leave one out, or give it "
                "another seed"
            )
    return out


def known_runs(journal: Path) -> dict[str, Known]:
    """Runs of a journal by what can be known of them beforehand; of equal ones the latest.

    By what is known without their device too, if that can only be one: runs on two devices, or with two versions
    of what measures, are not told apart by it.
    """
    return read(journal, _known_runs) if journal.exists() else {}


def _known_runs(journal: Journal) -> dict[str, Known]:
    rows = journal.read(
        "SELECT id, kernel, source_hash, description, result, "
        "(SELECT COUNT(*) FROM trial WHERE run=run.id AND done_order IS NOT NULL), "
        "(SELECT COALESCE(SUM(spent_usd), 0) FROM llm_call WHERE run=run.id) FROM run ORDER BY rowid"
    )
    notes = journal.read("SELECT run, text FROM note WHERE kind=?", GIVEN)
    given = {run_id: json.loads(text).get("run", {}).get("warm_start") for run_id, text in notes}
    here: dict[str, Known] = {}
    elsewhere: dict[str, dict[str, Known]] = {}
    for run_id, kernel, source_hash, text, result, evaluations, usd in rows:
        known = Known(run_id, evaluations, usd, result_of(result, evaluations))
        description = json.loads(text)
        # As it was given, or else by its content, as which none is given.
        source = (given.get(run_id) or description[WARM_START]) if WARM_START in description else None
        here[_key(kernel, source_hash, description, source)] = known
        elsewhere.setdefault(_key(kernel, source_hash, _less_device(description), source), {})[text] = known
    return {key: next(iter(known.values())) for key, known in elsewhere.items() if len(known) == 1} | here


def _key(kernel: str, source_hash: str, description: Mapping[str, Any], source: str | None) -> str:
    described = {name: value for name, value in description.items() if name not in NOT_PLANNED}
    return json.dumps([kernel, source_hash, described, source], sort_keys=True)
