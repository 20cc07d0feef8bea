"""JSON with the configuration and all that makes it believable."""

from __future__ import annotations

import json
from typing import Any

from evotune import __version__
from evotune.export.found import Export, Found, Winner, day

SCHEMA = 1
"""Of the file; a new meaning of a field is a new number."""


def why_not(found: Found) -> str | None:
    """It fits everything."""
    return None


def write(found: Found) -> Export:
    """One object; ``configs`` has one entry, or one for each shape."""
    run, summary = found.run, found.run.summary
    out: dict[str, Any] = {
        "schema": SCHEMA,
        "evotune": __version__,
        "kernel": run.kernel,
        "target": summary.target,
        "device": summary.device,
        "provenance": run.provenance,
        "versions": dict(run.description.get("versions", {})),
        "source_hash": run.source_hash,
        "configs": [_config(w) for w in found.winners],
        "program": found.program,
    }
    return Export(json.dumps(out, indent=2) + "\n", "config.json")


def _config(winner: Winner) -> dict[str, Any]:
    summary = winner.run.summary
    return {
        "run_id": summary.run_id,
        "date": day(summary.created_s),
        "state": summary.state,
        "evaluations": summary.evaluations,
        "shape": winner.shape,
        "problem": dict(winner.problem),
        "config": dict(winner.config),
        "latency_ms": winner.latency_ms,
        "ci95_ms": list(winner.ci95_ms),
        "default_ms": winner.default_ms,
        "speedup": winner.speedup,
        "speedup_ci95": None if winner.speedup_ci95 is None else list(winner.speedup_ci95),
    }
