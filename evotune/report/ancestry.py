"""Where the best program comes from: the trials that it was derived from, and what each step changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evotune.history import RunHistory
from evotune.report.course import changes
from evotune.trial import Trial


@dataclass(frozen=True)
class Ancestor:
    """A trial, what it changed of its parent, and others that were derived from the same parent.

    One without a parent has the ``nearest`` timed trial that ended before it, and how they are ``apart``.
    """

    trial: Trial
    changed: Mapping[str, tuple[object, object]]
    siblings: tuple[Trial, ...]
    nearest: Trial | None
    apart: Mapping[str, tuple[object, object]]


def ancestry(history: RunHistory) -> list[Ancestor]:
    """From the first ancestor to the best program; empty while nothing valid was found."""
    known = {t.number: t for t in history.trials}
    trial = history.best_trial
    line: list[Trial] = []
    while trial is not None and trial not in line:
        line.append(trial)
        parent = trial.candidate.parent
        trial = None if parent is None else known.get(parent)
    return [_ancestor(history, mine, known) for mine in reversed(line)]


def _ancestor(history: RunHistory, trial: Trial, known: Mapping[int, Trial]) -> Ancestor:
    number = trial.candidate.parent
    parent = known.get(number) if number is not None else None
    if parent is None:
        nearest = _nearest(history, trial)
        return Ancestor(trial, {}, (), nearest, changes(nearest.config, trial.config) if nearest else {})
    same = [t for t in history.trials if t.candidate.parent == number and t is not trial]
    return Ancestor(trial, changes(parent.config, trial.config), tuple(same), None, {})


def _nearest(history: RunHistory, trial: Trial) -> Trial | None:
    """The one with the fewest other values, the fastest of several."""
    before = history.trials[: history.trials.index(trial)]
    timed = [t for t in before if t.latency_ms is not None and t.config != trial.config]
    return min(timed, key=lambda t: (len(changes(t.config, trial.config)), t.latency_ms), default=None)
