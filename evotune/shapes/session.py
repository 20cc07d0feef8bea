"""From a kernel, names of its shapes and settings to a run over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from evotune import content, facts
from evotune.asking import LEFT_OUT, Line, choose_model, open_line, usage
from evotune.budget import Budget
from evotune.errors import UsageError, nearest
from evotune.evaluator import Evaluator
from evotune.journal import Journal, Run
from evotune.kernel import load_checked
from evotune.program import Sandbox
from evotune.session import make_surrogate, measured_with, start_points
from evotune.settings import Settings
from evotune.shapes.evaluator import ShapesEvaluator
from evotune.shapes.model import ProgramModel, configs_of
from evotune.shapes.search import ProgramSearch
from evotune.shapes.table import Shape, Table
from evotune.shapes.tuner import ShapesResult, ShapesTuner
from evotune.space import Config
from evotune.subject import Subject, find_subject, gpus_here
from evotune.trial import Origin
from evotune.tuner import Finals, Observer

# The best rule is found among all sets of shapes that tests can cut out: 4096 at most.
MAX_SHAPES = 12


def find_shapes(name: str, settings: Settings) -> dict[str, Subject]:
    """A kernel at each of ``run.shapes``, checked, with nothing built yet.

    Raises:
        UsageError: Something about the shapes cannot be used; all that is wrong with their names is said.
        DeviceError: A target was named whose device is not here.
    """
    names = [part.strip() for part in (settings.run.shapes or "").split(",")]
    _check_settings(settings, names)
    path = content.find(name, content.KERNELS, content.RECORDINGS)
    if path.is_dir():
        raise UsageError(f"{path} is a recording, of one problem; --shapes needs a kernel file")
    load, gpus = cache(load_checked), cache(gpus_here)
    known = list(load(path).definition.shapes)
    wrong = [f"no shape {n!r}{nearest(n, known)}" for n in dict.fromkeys(names) if n not in known]
    wrong += [f"shape {n!r} is given twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    if wrong:
        raise UsageError(f"--shapes of {path}: {'; '.join(wrong)}; it has {known}")

    def at(shape: str) -> Subject:
        run = settings.run.model_copy(update={"shape": shape, "shapes": None})
        return find_subject(str(path), settings.model_copy(update={"run": run}), load=load, gpus=gpus)

    return {shape: at(shape) for shape in names}


def _check_settings(settings: Settings, names: Sequence[str]) -> None:
    run = settings.run
    wrong = [f"found {len(names)}; give 2 to {MAX_SHAPES} names"] if not 2 <= len(names) <= MAX_SHAPES else []
    if run.max_evaluations < len(names):
        wrong.append(f"--max-evaluations {run.max_evaluations} is not one for each; give 30 times as many")
    if run.gpus != 1:
        wrong.append(f"--gpus {run.gpus} is for one shape: here each has a process on the same GPU; leave it out")
    if run.engine != "local":
        wrong.append(f"--engine {run.engine} is for one shape; leave it out")
    if run.shape is not None:
        wrong.append("--shape is given too; give one of the two")
    if run.search != "evotune":
        wrong.append(f"search {run.search!r} knows one shape; leave --search out")
    if run.warm_start is not None:
        wrong.append("it takes no --warm-start: the shapes teach each other")
    one_shape = {
        "--target-latency-ms": run.target_latency_ms,
        "--roofline-share": run.roofline_share,
        "--no-progress": run.no_progress,
    }
    wrong += [f"{flag} is for one shape; leave it out" for flag, value in one_shape.items() if value is not None]
    if settings.prompt.folder is not None:
        wrong.append("--prompts replaces the prompts for one shape; leave it out")
    if wrong:
        raise UsageError(f"--shapes {run.shapes}: {'; '.join(wrong)}")


def tune_shapes(
    name: str, subjects: Mapping[str, Subject], settings: Settings, *, observer: Observer, fresh: bool = False
) -> ShapesResult:
    """Look for one program for several shapes of a kernel, as ``evotune run --shapes`` does.

    ``run.max_evaluations`` counts measured pairs of a shape and a configuration.

    Args:
        name: Of the kernel, as the user gave it.
        subjects: By shape, of one kernel on one target.
        settings: Of the run; ``islands``, and all of ``prompt`` but its budget, are for single shapes.
        observer: Hears what happens.
        fresh: Do not resume.

    Raises:
        UsageError: Something that was given cannot be used.
        DeviceError: A device is missing or failed.
        Fatal: The model refuses its key, its name, or the request, and ``llm.on_error`` is ``fail``.
    """
    first = next(iter(subjects.values()))
    table = Table([Shape(name, s.story.problem, s.space) for name, s in subjects.items()], first.name)
    choice = choose_model(settings, os.environ)
    with ExitStack() as stack:
        evaluator = _open(subjects, stack)
        observer.on_note(f"target {first.target}: {first.why}; one program for {', '.join(subjects)}")
        observer.on_note(f"device {evaluator.device.name}")
        observer.on_note(f"model {choice.reason}")
        journal = stack.enter_context(Journal(Path(settings.run.journal)))
        description = {**describe(subjects, settings), **measured_with(evaluator)}
        run = journal.open_run(known_as(subjects), first.source_hash, description, fresh=fresh)
        if run.is_new:
            facts.keep_given(run, name, settings)
        if run.replaces_edited:
            observer.on_note(f"{first.name} has changed since its last run in this journal: a new run begins")
        engine = first.open_engine(evaluator)
        stack.callback(engine.cancel)
        line = open_line(settings, choice, run=run, stack=stack, on_note=observer.on_note)
        search = ProgramSearch(
            table,
            seed=settings.run.seed,
            start_points=min(start_points(s.space, settings) for s in subjects.values()),
            make_surrogate=lambda space: make_surrogate(space, settings),
            read=_reader(table, settings, line, stack),
            screens=settings.search.screen,
            author=None if line is None else _author(table, settings, choice.origin, line, run, first.story.source),
        )
        tuner = ShapesTuner(
            search,
            engine,
            evaluator,
            run,
            budget=Budget.of(settings.run, None, first.target),
            finals=Finals(settings.measure.finalists, first.finals),
            names={"kernel": first.name, "target": first.target},
            llm=lambda: usage(run, choice),
            observers=[observer],
        )
        result = tuner.tune()
        assert isinstance(result, ShapesResult)
        return result


def _open(subjects: Mapping[str, Subject], stack: ExitStack) -> ShapesEvaluator:
    """Evaluators of all shapes; those that are open are closed if a later one cannot be."""
    opened: dict[str, Evaluator] = {}
    for name, subject in subjects.items():
        opened[name] = subject.open_evaluator()
        stack.callback(opened[name].close)
    return ShapesEvaluator(opened)


def _author(table: Table, settings: Settings, origin: Origin, line: Line, run: Run, source: str) -> ProgramModel:
    model = ProgramModel(
        table,
        origin,
        line,
        content.root() / content.PROMPTS.folder / "shapes",
        source=source,
        programs_per_call=settings.llm.configs_per_call,
        concurrency=settings.llm.concurrency if line.is_background else 1,
        budget_tokens=settings.prompt.budget_tokens,
        offers=[pair for pair, _ in run.offers()],
    )
    if run.notes(LEFT_OUT):
        model.retire()
    return model


def _reader(
    table: Table, settings: Settings, line: Line | None, stack: ExitStack
) -> Callable[[str], Sequence[Config]]:
    """Runs a program of the journal, in the model's sandbox or, without a model, in one for the occasion."""

    @cache
    def sandbox() -> Sandbox:
        return line.sandbox if line else stack.enter_context(Sandbox(settings.run.isolation))

    return lambda text: configs_of(text, table.shapes, sandbox())


def known_as(subjects: Mapping[str, Subject]) -> str:
    """The name of a run in the journal: its trials are no trials of the kernel at one shape."""
    return f"{next(iter(subjects.values())).name} ({', '.join(subjects)})"


def describe(subjects: Mapping[str, Subject], settings: Settings) -> dict[str, Any]:
    """As :func:`evotune.session.describe`, of several shapes."""
    return {
        "shapes": {name: dict(subject.story.problem) for name, subject in subjects.items()},
        "target": next(iter(subjects.values())).target,
        "search": settings.run.search,
        "seed": settings.run.seed,
        "settings": settings.changed(),
    }
