"""All trials in the T4 format, in which auto-tuners exchange results.

Hellsten, Odgaard et al., "FAIR Sharing of Data in Autotuning Research" (doi:10.1145/3629527.3651429); the
schema is kept by the AutoTuningAssociation (autotuning_methodology, ``schemas/T4.json``). Of ``times`` the
names are Kernel Tuner's, ``compilation`` and ``benchmark``. What was not measured is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from evotune import __version__
from evotune.export.found import Export, Found, sizes
from evotune.history import SHAPE, RunHistory
from evotune.trial import SECONDS, Trial

SCHEMA_VERSION = "1.1.0"
# Stages of evotune in the words of T4; a stage that is not here failed while it ran.
INVALIDITY: Mapping[str, str] = {
    "timeout": "timeout",
    "build": "compile",
    "compile": "compile",
    "limits": "compile",
    "incorrect": "correctness",
    "validate": "constraints",
}


def why_not(found: Found) -> str | None:
    """Why what was found is no one set of results."""
    return "several runs are several files; give one run" if len(found.runs) > 1 else None


def write(found: Found) -> Export:
    """One object with an entry for each trial, in order of completion."""
    run, summary = found.run, found.run.summary
    metadata = {
        "autotuner": "evotune",
        "autotuner_version": __version__,
        "device": summary.device,
        "timestamp": _moment(summary.created_s),
        "timeunit": "milliseconds",
        # Beyond the schema, which allows for more.
        "kernel": run.kernel,
        "target": summary.target,
        "problem": {name: sizes(problem) for name, problem in run.shapes.items()} or sizes(run.problem),
        "provenance": run.provenance,
        "versions": dict(run.description.get("versions", {})),
        "run_id": summary.run_id,
    }
    results = [_result(run, trial) for trial in run.trials]
    out = {"schema_version": SCHEMA_VERSION, "metadata": metadata, "results": results}
    return Export(json.dumps(out, indent=1) + "\n", "t4_results.json")


def _result(run: RunHistory, trial: Trial) -> dict[str, Any]:
    failure, best = trial.failure, trial.best
    stage = (failure.failed_stage or "") if failure else None
    measurements: list[dict[str, Any]] = []
    if best is not None:
        measurements.append({"name": "time", "value": best.latency_ms, "unit": "ms"})
    if failure is not None:
        measurements.append({"name": "reason", "value": f"{stage}: {failure.reason}", "unit": ""})
    if SHAPE in trial.config:
        measurements.append({"name": "shape", "value": str(trial.config[SHAPE]), "unit": ""})
    measurements += [{"name": name, "value": value, "unit": ""} for name, value in trial.facts.items()]
    return {
        "timestamp": _moment(run.done_s[trial.number]),
        "configuration": {name: value for name, value in trial.config.items() if name != SHAPE},
        "times": _times(trial),
        "invalidity": "correct" if stage is None else INVALIDITY.get(stage, "runtime"),
        "correctness": int(stage is None),
        "measurements": measurements,
        "objectives": ["time"],
    }


def _times(trial: Trial) -> dict[str, Any]:
    """Milliseconds. ``runtimes`` are those of the most careful measurement."""
    times: dict[str, Any] = {"runtimes": list(trial.best.samples_ms) if trial.best else []}
    if trial.static is not None:
        times["compilation"] = trial.static.compile_s * 1e3
    if took_s := [float(m.context[SECONDS]) for m in trial.measurements if SECONDS in m.context]:
        times["benchmark"] = sum(took_s) * 1e3
    return times


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, timezone.utc).isoformat(timespec="milliseconds")
