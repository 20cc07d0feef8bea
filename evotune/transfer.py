"""What earlier runs or recordings of a kernel tell of it on another device, shape or version."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from evotune import content
from evotune.errors import JournalError, UsageError
from evotune.journal import Journal
from evotune.reading import is_empty, read
from evotune.replay import Recording, load_recording
from evotune.space import Config, ConfigSpace
from evotune.surrogate import Source
from evotune.trial import Trial

# The entry of a run's description that names its warm start: another source, another run.
WARM_START = "warm_start"

Losses = Callable[[Sequence[Trial]], Sequence[float | None]]
Tried = Sequence[tuple[Config, float | None]]


@dataclass(frozen=True)
class WarmStart:
    """A source as it was given, with a hash of its trials."""

    name: str
    source: Source
    hash: str

    def __str__(self) -> str:
        return f"warm start from {self.name}: {len(self.source.loss)} configurations"


def log_latencies(trials: Sequence[Trial]) -> list[float | None]:
    """The losses of trials that were timed."""
    return [None if t.latency_ms is None else math.log(t.latency_ms) for t in trials]


def warm_start(
    given: str,
    space: ConfigSpace,
    kernels: Sequence[str],
    source_hash: str,
    description: Mapping[str, Any],
    losses: Losses = log_latencies,
) -> WarmStart:
    """What a journal file, or a recording by its folder or shipped name, tells of a space.

    Args:
        given: The file, folder or name.
        space: What is to be tuned.
        kernels: Names under which the kernel is known.
        source_hash: Of the kernel; with the description it tells the run that is to be started, which
            is no source if it is in the journal itself.
        description: Of the run that is to be started.
        losses: Of the trials of a run in a journal.

    Raises:
        UsageError: It cannot be read, is of another kernel, or has too little in common.
    """
    path = Path(given).expanduser()
    if path.is_file():
        tried = _of_journal(path, kernels, (source_hash, description), losses)
    else:
        tried = _of_recording(given, kernels)
    try:
        source = Source.of(space, tried)
    except UsageError as error:
        raise UsageError(f"{given} is no warm start for this space: {error}") from None
    listed = sorted(json.dumps([sorted(config.items()), loss]) for config, loss in tried)
    return WarmStart(given, source, sha256("\n".join(listed).encode()).hexdigest()[:16])


def kernel_of(recording: Recording) -> str:
    """The kernel's name, which recordings on several devices share."""
    return str(recording.meta.get("kernel", recording.name))


def _of_recording(given: str, kernels: Sequence[str]) -> Tried:
    recording = load_recording(content.find(given, content.RECORDINGS))
    if kernel_of(recording) not in kernels:
        raise UsageError(
            f"{given} is a recording of {kernel_of(recording)!r}; a warm start for {_listed(kernels)} is wanted"
        )
    rows = recording.rows.items()
    return [(recording.space.from_key(k), None if r.time_ms is None else math.log(r.time_ms)) for k, r in rows]


def _of_journal(path: Path, kernels: Sequence[str], itself: tuple[str, Mapping[str, Any]], losses: Losses) -> Tried:
    if is_empty(path):
        raise UsageError(f"{path} is empty; a journal or a recording of {_listed(kernels)} is wanted")

    def look(journal: Journal) -> tuple[Sequence[tuple[Any, ...]], Sequence[Sequence[Trial]]]:
        runs = journal.read("SELECT id, kernel, source_hash, description FROM run ORDER BY created_s, id")
        fitting = [run for run, kernel, *described in runs if kernel in kernels and not _is(itself, *described)]
        return runs, [list(journal.run(run)) for run in fitting]

    try:
        runs, trials = read(path, look)
    except JournalError as error:
        raise UsageError(
            f"{path} is no warm start: {error.found}; give another journal, or a recording, with --warm-start PATH"
        ) from None
    found = [pair for run in trials for pair in _relative(run, losses(run))]
    if not found:
        if any(kernel in kernels and _is(itself, *described) for _, kernel, *described in runs):
            raise UsageError(
                f"all that {path} has of {_listed(kernels)} is the run that is to be started: the same device, "
                "problem, search and seed; give a run of another one"
            )
        others = sorted({str(kernel) for _, kernel, *_ in runs})
        raise UsageError(
            f"journal {path} has no finished trials of {_listed(kernels)}; it has runs of {_listed(others)}"
        )
    return found


def _relative(trials: Sequence[Trial], losses: Sequence[float | None]) -> Tried:
    """Losses less that of the default, which runs on all devices have in common, or else their median."""
    timed = [loss for loss in losses if loss is not None]
    defaults = [
        loss for t, loss in zip(trials, losses, strict=True) if t.candidate.origin == "default" and loss is not None
    ]
    level = defaults[0] if defaults else median(timed or [0.0])
    return [(t.config, None if x is None else x - level) for t, x in zip(trials, losses, strict=True)]


def _is(itself: tuple[str, Mapping[str, Any]], source_hash: str, text: str) -> bool:
    """Whether a run in the journal is the one to be started, whatever it is warmed by."""
    recorded = json.loads(text)
    recorded.pop(WARM_START, None)
    return (source_hash, recorded) == (itself[0], json.loads(json.dumps(itself[1])))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in dict.fromkeys(names)) or "nothing"
