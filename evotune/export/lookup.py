"""The table that :func:`evotune.lookup` reads: what was found for each kernel, problem and device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evotune import __version__
from evotune.export.found import Export, Found, Winner, day, winners
from evotune.history import RunHistory
from evotune.lookup_table import SCHEMA


def find(runs: Sequence[RunHistory]) -> Found:
    """What runs found that have ended, of whatever kernels and devices, the latest first."""
    latest_first = sorted(runs, key=lambda run: run.summary.last_s, reverse=True)
    return Found(tuple(runs), tuple(w for run in latest_first if run.result is not None for w in winners(run)))


def why_not(found: Found) -> str | None:
    """Why there is nothing that production code could look up."""
    if not any(map(_is_sure, found.winners)):
        return "nothing of it was measured for a problem of known sizes, in a run that has ended"
    return None


def write(found: Found) -> Export:
    """One object; its entries have the latest runs first."""
    fastest: dict[str, Winner] = {}
    for winner in filter(_is_sure, found.winners):
        key = json.dumps([*_whose(winner), sorted(winner.problem.items())])
        if key not in fastest or winner.latency_ms < fastest[key].latency_ms:
            fastest[key] = winner
    unsure = sum(not _is_sure(w) for w in found.winners) + sum(run.result is None for run in found.runs)
    slower = len(found.winners) - sum(not _is_sure(w) for w in found.winners) - len(fastest)
    notes = [f"{slower} results are left out: others are faster at the same problem"] * bool(slower)
    notes += [f"{unsure} results are left out: not measured, or of runs that have not ended"] * bool(unsure)
    entries = [_entry(winner) for winner in fastest.values()]
    text = json.dumps({"schema": SCHEMA, "evotune": __version__, "entries": entries}, indent=1)
    return Export(text + "\n", "lookup_table.json", tuple(notes))


def _is_sure(winner: Winner) -> bool:
    """Whether it was timed, through the finals, for a problem that can be asked for."""
    run = winner.run
    has_ended = run.summary.stopped not in (None, "interrupted")
    return bool(winner.problem) and run.provenance == "measured" and has_ended


def _whose(winner: Winner) -> tuple[str, str, str]:
    return winner.run.kernel, winner.run.summary.device, winner.run.source_hash


def _entry(winner: Winner) -> dict[str, Any]:
    kernel, device, source_hash = _whose(winner)
    return {
        "kernel": kernel,
        "device": device,
        "problem": dict(winner.problem),
        "config": dict(winner.config),
        "latency_ms": winner.latency_ms,
        "ci95_ms": list(winner.ci95_ms),
        "speedup": winner.speedup,
        "speedup_ci95": None if winner.speedup_ci95 is None else list(winner.speedup_ci95),
        "source_hash": source_hash,
        "target": winner.run.summary.target,
        "versions": dict(winner.run.description.get("versions", {})),
        "run_id": winner.run.summary.run_id,
        "date": day(winner.run.summary.created_s),
    }
