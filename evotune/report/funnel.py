"""From what was proposed to the finals: how many came through each stage, and why the others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evotune.history import RunHistory
from evotune.report.course import Stop, finals
from evotune.trial import Fidelity

COULD_NOT_WIN = "could not win"
# Stages at which a proposal ends that never becomes a trial, and what those are that come through.
PARSE, VALIDATE, KNOWN = "parse", "validate", "known"
GATES = {PARSE: "proposed", VALIDATE: "parsed", KNOWN: "legal"}
# A proposer that is turned down leaves no trace unless it was paid for.
SCREENED = "screened out, or not reached"
UNFINISHED = "not finished"


@dataclass(frozen=True)
class Step:
    """A stage: how many entered, and how many were dropped by reason. The others passed."""

    name: str
    entered: int
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def passed(self) -> int:
        return self.entered - sum(self.dropped.values())


def funnel(history: RunHistory, stops: Sequence[Stop]) -> list[Step]:
    """From what was proposed to the finals. Where trials climb, what passes one step enters the next; where
    a search measures at one fidelity at a time, each fidelity stands for itself."""
    rejected = Counter(r.stage for r in history.rejections)
    tried = [frozenset(t.config.items()) for t in (*history.trials, *history.in_flight)]
    unused = len({frozenset(config.items()) for config in history.offers} - set(tried))
    left = len(tried) + unused + sum(rejected.values())
    steps: list[Step] = []
    # Stages that this version does not know come before all others: nothing got past them.
    unknown = {stage: n for stage, n in rejected.items() if stage not in GATES}
    for stage, name in GATES.items():
        mine = {stage: rejected[stage]} if rejected[stage] else {}
        steps.append(Step(name, left, {**unknown, **mine}))
        left, unknown = steps[-1].passed, {}
    steps.append(Step("new", left, {SCREENED: unused} if unused else {}))
    waiting = {UNFINISHED: len(history.in_flight)} if history.in_flight else {}
    steps.append(Step("taken up", steps[-1].passed, {**waiting, **_static_failures(stops)}))
    return [*steps, *(_fidelity_step(f, stops) for f in _fidelities(stops)), *_finals(history)]


def _static_failures(stops: Sequence[Stop]) -> dict[str, int]:
    """By stage, of trials that ended before anything ran."""
    first = [s.climbed[0] for s in stops if s.climbed and s.climbed[0].fidelity.rank == 0]
    return dict(Counter(m.failed_stage or "" for m in first if not m.ok))


def _fidelities(stops: Sequence[Stop]) -> list[Fidelity]:
    known = {m.fidelity.rank: m.fidelity for s in stops for m in s.climbed if m.fidelity.rank > 0}
    return [known[rank] for rank in sorted(known)]


def _fidelity_step(fidelity: Fidelity, stops: Sequence[Stop]) -> Step:
    top = max(m.fidelity.rank for s in stops for m in s.climbed)
    dropped: Counter[str] = Counter()
    entered = 0
    for stop in stops:
        mine = next((m for m in stop.climbed if m.fidelity.rank == fidelity.rank), None)
        if mine is None:
            continue
        entered += 1
        if not mine.ok:
            dropped[mine.failed_stage or ""] += 1
        elif mine is stop.climbed[-1] and fidelity.rank < top and stop.trial.candidate.fidelity_rank is None:
            dropped[COULD_NOT_WIN] += 1
    return Step(f"measured: {fidelity.name}, {fidelity.reps} repetitions", entered, dict(dropped))


def _finals(history: RunHistory) -> list[Step]:
    count = sum(1 for t in history.trials if finals(t))
    return [Step("finals", count)] if count else []
