"""Runs and trials as objects for a script. Trials have the numbers that a run prints, from 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evotune.errors import UsageError
from evotune.export import find, fitting
from evotune.history import SHAPE, RunHistory, RunSummary
from evotune.report.cost import costs
from evotune.report.kept import KINDS
from evotune.report.summary import command
from evotune.showing.page import config_of
from evotune.trial import Measurement, Trial


def runs_json(runs: Iterable[RunSummary]) -> dict[str, Any]:
    """``{"runs": […]}``, in the order given."""
    return {"runs": [{**vars(s)} for s in runs]}


def run_json(run: RunHistory, journal: Path) -> dict[str, Any]:
    """All that is known of a run, its trials without their samples."""
    return {
        **vars(run.summary),
        "journal": str(journal),
        "provenance": run.provenance,
        "source_hash": run.source_hash,
        "description": dict(run.description),
        "best": run.best,
        "best_trial": None if run.best_trial is None else run.best_trial.number + 1,
        "best_by_shape": {shape: _brief(trial) for shape, trial in run.incumbents.items()},
        "default": None if run.default is None or run.shapes else _brief(run.default),
        "result": run.result,
        "proposals": dict(Counter(t.candidate.origin for t in run.trials)),
        "failures": dict(failures_of(run)),
        "llm": [vars(cost) for cost in costs(run)],
        "notes": [n.text for n in run.notes if n.kind not in KINDS],
        "trials": [_brief(t) for t in run.trials],
        "in_flight": [_brief(t) for t in run.in_flight],
        "command": command(run, journal),
        "formats": formats_of(run),
    }


def trial_json(run: RunHistory, trial: Trial) -> dict[str, Any]:
    """All that is known of a trial."""
    default = default_of(run, trial)
    done_s = run.done_s.get(trial.number)
    return {
        "run_id": run.summary.run_id,
        **_brief(trial),
        "default": None if default is None else config_of(default),
        "parents": [t.number + 1 for t in parents_of(run, trial)],
        "compile_s": trial.static.compile_s if trial.static else None,
        "measurements": [_measurement_json(m) for m in trial.measurements],
        "program": trial.candidate.program,
        "begun_s": list(run.attempts.get(trial.number, ())),
        "done_s": done_s,
    }


def trial_of(run: RunHistory, number: int) -> Trial:
    """A trial by the number that a run prints.

    Raises:
        UsageError: The run has no such trial.
    """
    every = {t.number + 1: t for t in (*run.trials, *run.in_flight)}
    if number not in every:
        known = f"trials 1 to {max(every)}" if every else "no trials yet"
        raise UsageError(f"run {run.summary.run_id} has no trial {number}; it has {known}")
    return every[number]


def parents_of(run: RunHistory, trial: Trial) -> list[Trial]:
    """What a trial was derived from, what that was derived from, and so on."""
    every = {t.number: t for t in (*run.trials, *run.in_flight)}
    out: list[Trial] = []
    parent = trial.candidate.parent
    while parent in every and every[parent] not in out:
        out.append(every[parent])
        parent = every[parent].candidate.parent
    return out


def default_of(run: RunHistory, trial: Trial) -> Trial | None:
    """The trial of the default, at the same shape."""
    shape = trial.config.get(SHAPE)
    defaults = (t for t in run.trials if t.candidate.origin == "default" and t.config.get(SHAPE) == shape)
    return next(defaults, None)


def failures_of(run: RunHistory) -> Mapping[str, int]:
    """By stage, as a run reports them: of trials, and of what never became one."""
    counts = Counter(t.failure.failed_stage or "" for t in run.trials if t.failure)
    counts.update(r.stage for r in run.rejections)
    return dict(sorted(counts.items()))


def formats_of(run: RunHistory) -> list[str]:
    """In which the run can be exported; in none over several shapes before its end."""
    try:
        return fitting(find([run]))
    except UsageError:
        return []


def _brief(trial: Trial) -> dict[str, Any]:
    failure, parent = trial.failure, trial.candidate.parent
    return {
        "trial": trial.number + 1,
        "origin": trial.candidate.origin,
        "parent": None if parent is None else parent + 1,
        "shape": trial.config.get(SHAPE),
        "config": config_of(trial),
        "latency_ms": trial.latency_ms,
        "failed_stage": failure.failed_stage if failure else None,
        "reason": failure.reason if failure else None,
        "facts": dict(trial.facts),
    }


def _measurement_json(measurement: Measurement) -> dict[str, Any]:
    return {
        "fidelity": measurement.fidelity.name,
        "reps": measurement.fidelity.reps,
        "provenance": measurement.provenance,
        "latency_ms": measurement.latency_ms if measurement.ok else None,
        "relative_error": measurement.relative_error if measurement.ok else None,
        "samples_ms": list(measurement.samples_ms),
        "failed_stage": measurement.failed_stage,
        "reason": measurement.reason,
        "context": dict(measurement.context),
    }
