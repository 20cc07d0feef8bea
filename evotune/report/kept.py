"""What a run kept of its subject, or what its trials show of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evotune import history
from evotune.errors import UsageError
from evotune.facts import GIVEN, ROOFLINE, SPACE, space_from_json
from evotune.history import RunHistory
from evotune.llm import Roofline
from evotune.space import ConfigSpace, Value

# Notes that are for programs to read.
KINDS = {GIVEN, SPACE, ROOFLINE}


def load(journal: Path, run_id: str | None) -> RunHistory:
    """A run that there can be a page of, the latest if none is named.

    Raises:
        UsageError: There is no such run, or it has scores and no timings.
    """
    found = history.load(journal, run_id)
    if any(not t.measurements for t in found.trials):
        raise UsageError(
            f"run {found.summary.run_id} has the scores of a Python function, and pages are about timings; name "
            f"another run, or look at it with: evotune show {found.summary.run_id} --journal {journal}"
        )
    return found


def kept(run: RunHistory, kind: str) -> Any:
    """What was kept of a kind when the run began; None if it was made before such things were kept."""
    return next((json.loads(note.text) for note in run.notes if note.kind == kind), None)


def roofline_of(run: RunHistory) -> Roofline | None:
    """Work of the problem and peaks of the device; None if that was not kept, as for a recording."""
    found = kept(run, ROOFLINE)
    return None if found is None else Roofline(**found)


def space_of(run: RunHistory) -> ConfigSpace | None:
    """The run's space, or, where that was not kept, all combinations of values that were tried; None
    before there is a trial, and over several shapes."""
    described = kept(run, SPACE)
    if described is not None:
        return space_from_json(described)
    if run.shapes or not run.trials:
        return None
    # By text: True is not 1.
    seen: dict[str, dict[str, Value]] = {name: {} for name in run.trials[0].config}
    for trial in run.trials:
        for name, value in trial.config.items():
            seen.setdefault(name, {})[repr(value)] = value
    return ConfigSpace.from_dict({name: sorted(values.values(), key=_order) for name, values in seen.items()})


def _order(value: Value) -> tuple[bool, float, str]:
    """Numbers by size, before words."""
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value), "")
