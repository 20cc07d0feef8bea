"""The winners of runs, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from evotune import __version__
from evotune.errors import UsageError
from evotune.gpu.target import FACTS
from evotune.history import RunHistory
from evotune.result import NOTHING_FASTER, why_ended
from evotune.space import Config, Value

PROVENANCE: Mapping[str, str] = {
    "measured": "measured",
    "replayed": "replayed from a recording: nothing was timed in this run",
    "synthetic": "values of a formula: nothing was timed",
    "compiled": "compiled: nothing was timed",
}


@dataclass(frozen=True)
class Export:
    """A file's text and a name for it; ``notes`` are for the person who asked for it."""

    text: str
    file_name: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Winner:
    """The best configuration for one problem.

    ``shape`` is its name in a run over several. ``default_ms``, ``speedup`` and its interval are None where
    they are not known; a speed-up is from finals.
    """

    run: RunHistory
    shape: str | None
    problem: Mapping[str, Value]
    config: Config
    latency_ms: float
    ci95_ms: Sequence[float]
    default_ms: float | None
    speedup: float | None
    speedup_ci95: Sequence[float] | None

    @property
    def is_default(self) -> bool:
        """Whether it is the default itself."""
        default = self.run.default
        return default is not None and self.shape is None and self.config == default.config

    def comments(self) -> list[str]:
        """What a reader of the configuration has to know, in lines without a mark of comment."""
        summary, (low_ms, high_ms) = self.run.summary, self.ci95_ms
        named = f"{self.shape}: " if self.shape else ""
        sizes = f" ({', '.join(f'{n}={v}' for n, v in self.problem.items())})" if self.problem else ""
        found = f"{self.latency_ms:.4g} ms, 95 % interval [{low_ms:.4g}, {high_ms:.4g}]"
        if self.is_default and self.speedup_ci95 is not None:
            found += f"; the default: {NOTHING_FASTER}"
        elif self.speedup is not None and self.speedup_ci95 is not None:
            low, high = self.speedup_ci95
            found += f"; {self.speedup:.3f}x the default [{low:.3f}, {high:.3f}]"
        elif self.run.result is None:
            found += f"; best so far: {why_ended(summary.state)}"
        versions = {"evotune": __version__, **self.run.description.get("versions", {})}
        provenance = PROVENANCE.get(self.run.provenance or "", "of unknown provenance")
        lines = [
            f"{named}{self.run.kernel}{sizes} on {summary.device}, target {summary.target}",
            f"{found}; {provenance}",
            f"run {summary.run_id} of {day(summary.created_s)}; {', '.join(map(' '.join, versions.items()))}",
        ]
        return [plain(line) for line in lines]


@dataclass(frozen=True)
class Found:
    """What runs found, and the program of a run over several shapes; ``winners`` may be empty."""

    runs: tuple[RunHistory, ...]
    winners: tuple[Winner, ...]

    @property
    def run(self) -> RunHistory:
        """The first of them: what they have in common may be read from it."""
        return self.runs[0]

    @property
    def program(self) -> str | None:
        """Python of a run over several shapes, once it has ended."""
        return self.run.result.get("program") if self.run.result else None


def find(runs: Sequence[RunHistory]) -> Found:
    """The winners of runs of one kernel on one device.

    Raises:
        UsageError: The runs have too little in common, or one over several shapes has not ended.
    """
    _check(runs)
    return Found(tuple(runs), tuple(winner for run in runs for winner in winners(run)))


def _check(runs: Sequence[RunHistory]) -> None:
    first = runs[0].summary
    for run in runs:
        summary = run.summary
        if run.shapes and run.result is None:
            raise UsageError(
                f"run {summary.run_id} over the shapes {', '.join(run.shapes)} has no program yet, which is "
                f"written at its end: {why_ended(summary.state)}"
            )
        if run.shapes and len(runs) > 1:
            raise UsageError(f"run {summary.run_id} is over several shapes already; export it alone")
        different = [
            f"{what} {theirs} and not {ours}"
            for what, ours, theirs in (
                ("kernel", first.kernel, summary.kernel),
                ("target", first.target, summary.target),
                ("device", first.device, summary.device),
            )
            if ours != theirs
        ]
        if different:
            raise UsageError(
                f"run {summary.run_id} has {', '.join(different)} as run {first.run_id} has; "
                "export runs of one kernel on one device together"
            )


def winners(run: RunHistory) -> list[Winner]:
    """The best of a run, of each shape if it is over several; it must have ended then."""
    if run.shapes:
        assert run.result is not None
        return [
            Winner(
                run,
                row["shape"],
                sizes(row["problem"]),
                row["config"],
                row["latency_ms"],
                row["ci95_ms"],
                row["default"]["latency_ms"],
                row["speedup"],
                row["speedup_ci95"],
            )
            for row in run.result["shapes"]
            if row["config"] is not None and row["latency_ms"] is not None
        ]
    best, default = run.best, run.default
    if best is None:
        return []
    result: Mapping[str, Any] = run.result or {}
    default_ms = result["default"]["latency_ms"] if result else default.latency_ms if default else None
    ratio = result.get("speedup"), result.get("speedup_ci95")
    return [
        Winner(
            run, None, sizes(run.problem), best["config"], best["latency_ms"], best["ci95_ms"], default_ms, *ratio
        )
    ]


def sizes(problem: Mapping[str, Value]) -> dict[str, Value]:
    """A problem less what follows from the device: who asks for a configuration does not give that."""
    return {name: value for name, value in problem.items() if name not in FACTS}


def day(at_s: float) -> str:
    """``2026-11-21``, in UTC."""
    return datetime.fromtimestamp(at_s, timezone.utc).date().isoformat()


def plain(text: str) -> str:
    """One line of printable ASCII: a comment must end where its line does."""
    return ascii(" ".join(text.split()))[1:-1]


def literal(value: Value) -> str:
    """Python text of a value; what is no finite number stays a float."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return ascii(value)


def items(config: Mapping[str, Value]) -> str:
    """The inside of a dictionary's text: ``"BLOCK": 128, "STEPS": 2``."""
    return ", ".join(f"{quoted(name)}: {literal(value)}" for name, value in config.items())


def quoted(text: str) -> str:
    """Python text of a string, in double quotes where it needs no escapes."""
    return f'"{text}"' if text.isascii() and text.isprintable() and not set('"\\') & set(text) else ascii(text)
