"""Many searches on many recorded spaces, replayed on the same terms."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from evotune import files
from evotune.compare import methods
from evotune.compare.parallel import Plan, Progress, marks, run_all
from evotune.compare.runs import SYNTHETIC, SearchRun, open_space
from evotune.errors import UsageError
from evotune.replay import Recording

# Of the study that evotune began with: its searches and its seeds. It used the synthetic landscape.
STUDY_METHODS = ("evotune", "mfbo", "pattern", "de", "random", "genetic", "annealing")
STUDY_SEEDS = (42, 123, 456, 789, 1011)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What was run on what."""

    runs: Sequence[SearchRun]
    recordings: Sequence[Recording]
    budget: int
    skipped: Mapping[str, str]
    """Methods that cannot run here, with the reason."""
    digest: str = ""
    """Of all that the runs depend on; a file of another one is not overwritten."""

    def to_json(self) -> dict[str, Any]:
        """The object of ``evotune compare --json``."""
        return {"runs": [run.to_json() for run in self.runs], "digest": self.digest}


def compare(
    spaces: Sequence[str],
    method_names: Sequence[str],
    seeds: Sequence[int],
    budget: int,
    *,
    jobs: int = 2,
    out: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = _log.info,
) -> Comparison:
    """Run every method on every space with every seed, and write the runs as JSON.

    Args:
        spaces: Folders or shipped names of recordings, or ``synthetic``.
        method_names: See :func:`evotune.compare.methods.factory`. One whose package is not installed
            is skipped, and ``evotune+SOURCE`` on its source.
        seeds: One run each.
        budget: Evaluations of a run, one at a time.
        jobs: Runs at once, each in a process with one BLAS thread.
        out: The JSON file. Finished runs are kept in :func:`partial_of` it until it is written, so that
            the same call goes on where it was cut off. If the file is of this very comparison, its runs
            are taken from there.
        on_progress: Called after each run.
        on_note: Hears what was found done already.

    Raises:
        UsageError: Unknown spaces or methods, two spaces of one name, nothing to run, a search
            that raised, or an ``out`` that cannot be written or holds something else.
        DeviceError: A run died or ran out of time.
    """
    if not (spaces and method_names and seeds) or budget < 1 or jobs < 1:
        raise UsageError("a comparison needs a space, a method, a seed, a budget and a job at least")
    wanted = list(dict.fromkeys(method_names))
    for method in wanted:
        methods.factory(method)
    skipped = {m: why for m in wanted if (why := methods.unavailable(m))}
    if len(skipped) == len(wanted):
        raise UsageError("no method can run here: " + "; ".join(f"{m} {why}" for m, why in skipped.items()))
    recordings = _open(spaces)
    marked = _plan(recordings, [m for m in wanted if m not in skipped], seeds, budget)
    name = sha256(json.dumps(sorted(marked.values())).encode()).hexdigest()[:16]
    runs = None if out is None else _finished(out, name)
    if runs is not None:
        on_note(f"{out} is of this very comparison: nothing was run again")
        return Comparison(runs, list(recordings.values()), budget, skipped, name)
    partial = None if out is None else partial_of(out)
    runs = run_all(marked, jobs=jobs, partial=partial, on_progress=on_progress, on_note=on_note)
    found = Comparison(runs, list(recordings.values()), budget, skipped, name)
    if out is not None and partial is not None:
        # Under its name only when complete: whoever was cut off here finds the runs in the partial file.
        files.replace(out, json.dumps(found.to_json()) + "\n")
        partial.unlink(missing_ok=True)
    return found


def _plan(
    recordings: Mapping[str, Recording], wanted: Sequence[str], seeds: Sequence[int], budget: int
) -> dict[Plan, str]:
    """The runs to make, and what each is known by."""
    plans = [
        Plan(space, method, seed, budget)
        for space, method, seed in product(recordings, wanted, dict.fromkeys(seeds))
        if not methods.knows_already(method, recordings[space])
    ]
    if not plans:
        raise UsageError("every method is warmed by the very space that it would be compared on; name others")
    return marks(plans, recordings)


def default_methods(spaces: Sequence[str]) -> Sequence[str]:
    """What to compare if nothing is said: the study's searches. On recordings without ``mfbo``: they
    have one fidelity, on which it has nothing to climb."""
    return STUDY_METHODS if SYNTHETIC in spaces else [m for m in STUDY_METHODS if m != "mfbo"]


def default_seeds(spaces: Sequence[str]) -> Sequence[int]:
    """The study's on its landscape, and ten on recordings."""
    return STUDY_SEEDS if SYNTHETIC in spaces else range(10)


def partial_of(out: Path) -> Path:
    """Where the finished runs of a comparison are until ``out`` is written."""
    return out.with_name(out.name + ".partial")


def _finished(out: Path, name: str) -> list[SearchRun] | None:
    """The runs of a finished comparison; None if its file is still to be written.

    Raises:
        UsageError: It cannot be written, or would replace something else.
    """
    files.check_writable(out)
    if not out.exists():
        return None
    try:
        recorded = json.loads(out.read_text(encoding="utf-8"))
        if recorded["digest"] == name:
            return [SearchRun.from_json(run) for run in recorded["runs"]]
    except (ValueError, KeyError, TypeError):
        pass  # something else, which is not ours to replace
    raise UsageError(
        f"{out} exists, and is not of this comparison (spaces, methods, seeds, budget and code); "
        "move it away, or choose another name"
    )


def _open(spaces: Sequence[str]) -> dict[str, Recording]:
    """Recordings by what a child process finds them by."""
    out: dict[str, Recording] = {}
    for space in spaces:
        recording = open_space(str(space))
        out[SYNTHETIC if recording.folder == Path(SYNTHETIC) else str(recording.folder)] = recording
    names = [r.name for r in out.values()]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(f"several spaces are called {twice}; rename their folders")
    return out
