"""What a run found, how sure that is, and how to get it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from evotune.facts import GIVEN, PYTHON
from evotune.history import RunHistory
from evotune.interval import ratio_ci95, verdict
from evotune.report.kept import kept
from evotune.result import NOTHING_FASTER, why_ended

# What a person should know of timings before they are believed.
PROVENANCE: Mapping[str, str] = {
    "measured": "timed on this device, during this run",
    "replayed": "looked up in a recording that was made on the named device another day; nothing was timed",
    "synthetic": "values of a formula; nothing was timed, on any device",
    "compiled": "compiled only; nothing was timed",
}
VERDICTS = {
    "faster": "faster than the default",
    "slower": "slower than the default",
    "tie": "no different from the default, as far as the measurements can tell",
}


@dataclass(frozen=True)
class Summary:
    """The head of the page. ``is_final`` says whether the ratio comes from finals; else the best so far was
    chosen and judged by the same timings, which flatters it."""

    title: str
    best: Mapping[str, Any] | None
    default: Mapping[str, Any] | None
    default_ms: float | None
    default_failure: str | None
    speedup: float | None
    speedup_ci95: Sequence[float] | None
    verdict: str | None
    is_final: bool
    provenance: str | None
    ended: str
    created: str

    @property
    def is_default(self) -> bool:
        """Whether the best is the default itself."""
        return self.best is not None and self.best["config"] == self.default


def summary(history: RunHistory) -> Summary:
    """The head of the page, of a finished run or of one that has not come so far."""
    result, best = history.result, history.best
    default = history.default
    speedup: float | None = None
    interval: Sequence[float] | None = None
    if result is not None:
        speedup, interval = result["speedup"], result["speedup_ci95"]
        default_ms = result["default"]["latency_ms"]
    else:
        default_ms = default.latency_ms if default and not history.shapes else None
        if default and default.best and history.incumbent and history.incumbent.best:
            same = history.incumbent.config == default.config
            speedup, interval = (1.0, None) if same else ratio_ci95(default.best, history.incumbent.best)
    return Summary(
        title=history.summary.kernel,
        best=best,
        default=_default_config(history),
        default_ms=default_ms,
        default_failure=_failure(history),
        speedup=speedup,
        speedup_ci95=interval,
        verdict=_verdict(history, interval),
        is_final=result is not None and result["stopped"] != "interrupted" and not (speedup and interval is None),
        provenance=history.provenance,
        ended=why_ended(history.summary.state),
        created=_moment(history.summary.created_s),
    )


# Options of settings, beside those of `run`, which are called like them. What has none is given by the environment.
OPTIONS = {
    ("llm", "provider"): "provider",
    ("llm", "model"): "model",
    ("llm", "base_url"): "base-url",
    ("llm", "on_error"): "on-llm-error",
    ("llm", "max_usd"): "max-usd",
    ("prompt", "folder"): "prompts",
}


def command(history: RunHistory, journal: Path) -> str:
    """The command that makes a run like this one, without the secrets it was given; of a run that was made before
    its settings were kept, without these. A search of a Python function has none."""
    if history.summary.target == PYTHON:
        return "the same call in Python"
    said: Mapping[str, Any] = kept(history, GIVEN) or {}
    described = history.description
    named = history.summary.kernel
    words: list[str] = ["evotune", "run", said.get("kernel", named.partition(" (")[0] if history.shapes else named)]
    if history.shapes:
        # In the order that was given, which the run is known by; the description is sorted.
        words += ["--shapes", history.summary.kernel.rpartition(" (")[2].removesuffix(")").replace(", ", ",")]
    if described.get("target", "replay") != "replay":
        words += ["--target", described["target"]]
    variables: list[str] = []
    for section, key, value in _settings(said):
        option = key.replace("_", "-") if section == "run" else OPTIONS.get((section, key))
        if option is None:
            variables.append(_variable(section, key, value))
        elif key != "target":  # the description has the one that was found
            words += [f"--{option}", str(value)]
    if described.get("search", "evotune") != "evotune":
        words += ["--search", described["search"]]
    words += ["--seed", str(described.get("seed", 0)), "--journal", str(journal)]
    variables += [_variable(*setting) for setting in _settings(described.get("settings", {}))]
    return " ".join([*variables, *map(shlex.quote, words)])


def _settings(by_section: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Section, key and value of settings; what is said of a run has other things, too."""
    return [
        (section, key, value)
        for section, values in by_section.items()
        if isinstance(values, Mapping)
        for key, value in cast(Mapping[str, Any], values).items()
    ]


def _variable(section: str, key: str, value: object) -> str:
    return f"EVOTUNE_{section}_{key}".upper() + "=" + shlex.quote("null" if value is None else str(value))


def _default_config(history: RunHistory) -> Mapping[str, Any] | None:
    if history.result is not None:
        return history.result["default"]["config"]
    return dict(history.default.config) if history.default and not history.shapes else None


def _failure(history: RunHistory) -> str | None:
    failure = history.default.failure if history.default and not history.shapes else None
    return f"{failure.failed_stage}: {failure.reason}" if failure else None


def _verdict(history: RunHistory, interval: Sequence[float] | None) -> str | None:
    if history.best is None or interval is None:
        return None
    if history.best["config"] == _default_config(history):
        return NOTHING_FASTER
    return VERDICTS[verdict((interval[0], interval[1]))]


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
