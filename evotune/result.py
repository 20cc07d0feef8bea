"""What a run found, as it is reported, recorded and printed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evotune.trial import Trial

# Why a run ended, or how it stands.
STOPPED = {
    "evaluations": "the evaluations were used up",
    "seconds": "the time was used up",
    "exhausted": "every legal configuration was evaluated",
    "target": "the latency that was asked for was reached",
    "roofline": "the share of the roofline that was asked for was reached",
    "no progress": "there was no new best for as many evaluations as were asked for",
    "let go": "its process ended without a result; the same command goes on from there",
    "interrupted": "it was interrupted; the same command goes on from there",
    "running": "it goes on",
    "cut off": "it was cut off; the same command goes on from there",
}

# Of a run whose best is the default: also if another was a little faster, but not beyond noise.
NOTHING_FASTER = "nothing was faster than the default, as far as the measurements can tell"


def why_ended(state: str) -> str:
    """Why a run ended, or how it stands, for a person: of ``Result.stopped`` and ``RunSummary.state``."""
    return STOPPED.get(state, state)


@dataclass(frozen=True)
class Result:
    """What a run found, in the shape of ``evotune run --json``; see the README for its fields."""

    run_id: str
    kernel: str
    target: str
    device: str
    provenance: str
    best: Mapping[str, Any] | None
    default: Mapping[str, Any]
    speedup: float | None
    speedup_ci95: tuple[float, float] | None
    evaluations: int
    failures: Mapping[str, int]
    proposals: Mapping[str, int]
    llm: Mapping[str, Any]
    stopped: str
    seconds: float
    """Of search and finals in the call that ended the run; starting what measures is not in it."""
    journal: str
    reasons: Sequence[tuple[str, int]] = field(default=(), repr=False)
    """The commonest reasons of failure with their counts; not part of the JSON."""

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        out = asdict(self)
        del out["reasons"]
        if self.speedup_ci95 is not None:
            out["speedup_ci95"] = list(self.speedup_ci95)
        return out

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> Result:
        """The result that :meth:`to_json` described."""
        interval = recorded["speedup_ci95"]
        changed: dict[str, Any] = {"speedup_ci95": None if interval is None else tuple(interval)}
        return cls(**{**recorded, **changed})


def kind_of(reason: str) -> str:
    """A name for reasons that differ only in their numbers."""
    return re.sub(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", "#", reason)


def commonest_reasons(trials: Sequence[Trial], n: int = 3) -> tuple[tuple[str, int], ...]:
    """The ``n`` commonest reasons of failure, each as it was first given, with how often; reasons that
    differ only in their numbers are one."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for trial in trials:
        if trial.failure is not None:
            text = f"{trial.failure.failed_stage}: {trial.failure.reason}"
            kind = kind_of(text)
            first.setdefault(kind, text)
            counts[kind] += 1
    return tuple((first[kind], count) for kind, count in counts.most_common(n))
