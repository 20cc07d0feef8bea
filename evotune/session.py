"""From a name and settings to a tuner that is ready to run, and a run of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from evotune import facts
from evotune.asking import choose_model, open_model, open_prompts, usage
from evotune.baselines import BASELINES, SimulatedAnnealing
from evotune.budget import Budget
from evotune.errors import UsageError
from evotune.evaluator import Evaluator
from evotune.gpu.detect import Gpu
from evotune.journal import Journal, Run
from evotune.kernel import Problem
from evotune.process import usable_cores
from evotune.proposers import Searcher
from evotune.proposers.evolution import CrossoverProposer, MutationProposer
from evotune.proposers.islands import Islands
from evotune.proposers.model import ModelProposer
from evotune.proposers.multifidelity import RANKS, MultiFidelityBayesianSearch
from evotune.proposers.portfolio import Portfolio
from evotune.proposers.schedule import Schedule
from evotune.proposers.uniform import UniformProposer
from evotune.record import record
from evotune.result import Result
from evotune.settings import Settings
from evotune.space import ConfigSpace
from evotune.subject import Subject, find_subject, gpus_here
from evotune.surrogate import ACQUISITIONS, PROFILES, Source, Surrogate
from evotune.track import Tracker, Tracking
from evotune.transfer import WARM_START, WarmStart, warm_start
from evotune.tuner import Finals, Observer, Tuner

log = logging.getLogger(__name__)

# A small space is opened with fewer points than `search.start_points`, or they would be all of it.
MIN_START, CONFIGS_PER_START = 3, 8


def tune(
    name: str, settings: Settings, *, observer: Observer, fresh: bool = False, tracker: Tracker | None = None
) -> Result:
    """Tune a kernel or replay a recording, as ``evotune run`` does.

    Raises:
        UsageError: Something that was given cannot be used.
        DeviceError: A device is missing or failed.
        Fatal: The model refuses its key, its name, or the request, and ``llm.on_error`` is ``fail``.
    """
    with ExitStack() as stack:
        subject = _find(name, settings, stack, observer.on_note)
        budget = Budget.of(settings.run, subject.roofline.bound_ms if subject.roofline else None, subject.target)
        prompts = open_prompts(settings)
        choice = choose_model(settings, os.environ, subject.space)
        evaluator = subject.open_evaluator()
        stack.callback(evaluator.close)
        observer.on_note(f"target {subject.target}: {subject.why}")
        observer.on_note(f"device {evaluator.device.name}")
        observer.on_note(f"model {choice.reason}")
        journal = stack.enter_context(Journal(Path(settings.run.journal)))
        description = {**describe(subject.story.problem, subject.target, settings), **measured_with(evaluator)}
        warm = open_warm_start(subject, settings, description)
        if warm is not None:
            observer.on_note(str(warm))
            description[WARM_START] = warm.hash
        run = _open_run(journal, subject, description, observer, fresh=fresh)
        if run.is_new:
            facts.keep(run, name, settings, subject.space, subject.roofline)
        tracking = Tracking(tracker, f"{subject.name} {run.id}", description) if tracker else None
        engine = subject.open_engine(evaluator)
        stack.callback(engine.cancel)
        make_model = partial(
            open_model,
            settings,
            choice,
            replace(subject.story, device={"name": evaluator.device.name, **subject.story.device}),
            space=subject.space,
            prompts=prompts,
            run=run,
            stack=stack,
            on_note=observer.on_note,
        )
        ranks, source = [f.rank for f in evaluator.fidelities], warm.source if warm else None
        tuner = Tuner(
            searcher(subject.space, settings, make_model, observer.on_note, ranks, source),
            engine,
            evaluator,
            run,
            budget=budget,
            finals=Finals(settings.measure.finalists, subject.finals),
            names={"kernel": subject.name, "target": subject.target},
            llm=lambda: usage(run, choice),
            observers=[observer, *([tracking] if tracking else [])],
        )
        result = tuner.tune()
        if tracking is not None:
            tracking.end(result.to_json())
        return result


def find_gpus(settings: Settings) -> Sequence[Gpu]:
    """Those that a run could measure on, on this machine or on a cluster.

    Raises:
        UsageError: The cluster cannot be reached.
        DeviceError: A node of it does not answer.
    """
    if settings.run.engine == "local":
        return gpus_here()
    return _ray().find_gpus(settings.run.ray_address)


def _find(name: str, settings: Settings, stack: ExitStack, on_note: Callable[[str], None]) -> Subject:
    """What is tuned, on this machine or on a cluster, the connection to which the stack then keeps."""
    if settings.run.engine == "local":
        return find_subject(name, settings)
    return _ray().find_subject(name, settings, stack, on_note)


def _ray() -> Any:
    try:
        from evotune import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError("engine ray needs Ray, which is not installed; pip install 'evotune[ray]'") from None
    return ray


def _open_run(
    journal: Journal, subject: Subject, description: Mapping[str, Any], observer: Observer, *, fresh: bool
) -> Run:
    """The run to go on with, or a new one and why it is new."""
    run = journal.open_run(subject.name, subject.source_hash, description, fresh=fresh)
    if run.replaces_edited:
        observer.on_note(f"{subject.name} has changed since its last run in this journal: a new run begins")
    is_warm = WARM_START in description
    if is_warm and run.is_new and journal.has_runs_with(WARM_START, subject.name, run.id):
        observer.on_note("the source has changed since an earlier warm start in this journal: a new run begins")
    return run


def record_space(
    name: str,
    settings: Settings,
    folder: Path,
    *,
    samples: int | None,
    passes: int,
    on_note: Callable[[str], None],
    on_progress: Callable[[int, int], None],
) -> None:
    """Measure the configurations of a kernel and keep them as a recording, as ``evotune record`` does."""
    if settings.run.engine != "local":
        raise UsageError(f"a recording is made on one machine; leave run.engine {settings.run.engine} out")
    subject = find_subject(name, settings)
    if subject.target == "replay":
        raise UsageError(f"{name} is a recording already; give a kernel file")
    if subject.devices > 1:
        raise UsageError(f"a recording is made on one GPU; leave run.gpus {settings.run.gpus} out")
    if samples is None and not subject.space.is_enumerable:
        raise UsageError(f"{subject.space.cartesian:.1e} configurations cannot all be measured; give --samples N")
    evaluator = subject.open_evaluator()
    try:
        device = evaluator.device
        on_note(f"target {subject.target}: {subject.why}")
        on_note(f"device {device.name}")
        meta = {
            "kernel": subject.name,
            "device": device.name,
            "versions": dict(device.versions),
            "problem": dict(subject.story.problem),
            "source_hash": subject.source_hash,
            "recorded": datetime.now(timezone.utc).date().isoformat(),
            "passes": passes,
            "licence": "Apache-2.0",
        }
        fidelity = next((f for f in evaluator.fidelities if f.name == "medium"), evaluator.fidelities[-1])
        record(
            subject.space,
            evaluator,
            folder,
            meta,
            fidelity=fidelity,
            passes=passes,
            samples=samples,
            seed=settings.run.seed,
            compile_jobs=usable_cores(),
            on_progress=on_progress,
        )
    finally:
        evaluator.close()


def describe(problem: Problem, target: str, settings: Settings) -> dict[str, Any]:
    """All that a result depends on beside the kernel's text, the device and versions: another value is
    another run."""
    return {
        "problem": dict(problem),
        "target": target,
        "search": settings.run.search,
        "seed": settings.run.seed,
        "settings": settings.changed(),
    }


def measured_with(evaluator: Evaluator) -> dict[str, Any]:
    """The rest of what a result depends on."""
    return {"device": evaluator.device.name, "versions": dict(evaluator.device.versions)}


def open_warm_start(subject: Subject, settings: Settings, description: Mapping[str, Any]) -> WarmStart | None:
    """What the settings want to be known from elsewhere; None if nothing.

    Raises:
        UsageError: It cannot be used.
    """
    if settings.run.warm_start is None:
        return None
    names = (subject.name, subject.story.kernel)
    return warm_start(settings.run.warm_start, subject.space, names, subject.source_hash, description)


# -- who proposes -------------------------------------------------------------------------------


def searcher(
    space: ConfigSpace,
    settings: Settings,
    make_model: Callable[[Islands], ModelProposer | None] = lambda _: None,
    on_note: Callable[[str], None] = log.info,
    ranks: Sequence[int] = RANKS,
    source: Source | None = None,
) -> Searcher:
    """The search that the settings name, over a space, with an evaluator of fidelities ``ranks``.

    ``on_note`` hears when it changes its ways; ``source`` tells what was measured elsewhere.

    Raises:
        UsageError: The search cannot learn from a source.
    """
    seed, chosen = settings.run.seed, settings.islands
    if settings.run.search in BASELINES:
        if source is not None:
            raise UsageError(f"search {settings.run.search!r} takes no warm start; evotune and mfbo do")
        if settings.run.search == "annealing":  # it cools over the budget
            return SimulatedAnnealing(space, seed, evaluations=settings.run.max_evaluations)
        return BASELINES[settings.run.search](space, seed)
    surrogate = make_surrogate(space, settings, source)
    if settings.run.search == "mfbo":
        schedule = Schedule.of(**settings.mfbo.model_dump()).fitted(settings.run.max_evaluations)
        return MultiFidelityBayesianSearch(space, seed, schedule=schedule, ranks=ranks, surrogate=surrogate)
    islands = Islands(
        space,
        seed,
        count=chosen.count,
        population_size=chosen.population_size,
        archive_size=chosen.archive_size,
        migration_interval=chosen.migration_interval,
        exploration_ratio=chosen.exploration_ratio,
        exploitation_ratio=chosen.exploitation_ratio,
    )
    breeders = [MutationProposer(space, islands, seed), CrossoverProposer(space, islands, seed)]
    return Portfolio(
        space,
        surrogate,
        islands,
        [UniformProposer(space, seed), *breeders],
        make_model(islands),
        seed=seed,
        screens=settings.search.screen,
        on_note=on_note,
        start_points=start_points(space, settings),
    )


def make_surrogate(space: ConfigSpace, settings: Settings, source: Source | None = None) -> Surrogate:
    """The surrogate that the settings describe, over a space."""
    return Surrogate(
        space,
        seed=settings.run.seed,
        acquisition=ACQUISITIONS[settings.search.acquisition],
        profile=PROFILES[settings.search.kernel],
        is_cost_aware=settings.search.cost_aware,
        source=source,
    )


def start_points(space: ConfigSpace, settings: Settings) -> int:
    """Trials in the opening after the default."""
    return min(settings.search.start_points, max(MIN_START, space.cardinality // CONFIGS_PER_START))
