"""Many searches on many recorded spaces, replayed on the same terms."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from evotune.compare import methods
from evotune.compare.parallel import Plan, Progress, run_all
from evotune.compare.runs import SYNTHETIC, SearchRun, open_space
from evotune.errors import UsageError
from evotune.replay import Recording


@dataclass(frozen=True)
class Comparison:
    """What was run on what."""

    runs: Sequence[SearchRun]
    recordings: Sequence[Recording]
    budget: int
    skipped: Mapping[str, str]
    """Methods that cannot run here, with the reason."""

    def to_json(self) -> dict[str, Any]:
        """The object of ``evotune compare --json``."""
        return {"runs": [run.to_json() for run in self.runs]}


def compare(
    spaces: Sequence[str],
    method_names: Sequence[str],
    seeds: Sequence[int],
    budget: int,
    *,
    jobs: int = 2,
    out: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Run every method on every space with every seed, and write the runs as JSON.

    Args:
        spaces: Folders or shipped names of recordings, or ``synthetic``.
        method_names: See :func:`evotune.compare.methods.names`. One whose package is not installed
            is skipped.
        seeds: One run each.
        budget: Evaluations of a run, one at a time.
        jobs: Runs at once, each in a process with one BLAS thread.
        out: The JSON file. Finished runs are kept in ``<out>.partial`` until it is written, so that
            the same call goes on where it was cut off.
        on_progress: Called after each run.

    Raises:
        UsageError: Unknown spaces or methods, two spaces of one name, nothing to run, or a search
            that raised.
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
    present = [m for m in wanted if m not in skipped]
    plans = [Plan(s, m, seed, budget) for s, m, seed in product(recordings, present, dict.fromkeys(seeds))]
    partial = None if out is None else out.with_name(out.name + ".partial")
    runs = run_all(plans, recordings, jobs=jobs, partial=partial, on_progress=on_progress)
    found = Comparison(runs, list(recordings.values()), budget, skipped)
    if out is not None and partial is not None:
        out.write_text(json.dumps(found.to_json()) + "\n", encoding="utf-8")
        partial.unlink(missing_ok=True)
    return found


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
