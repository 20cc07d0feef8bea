"""How a run went: what was measured on the way, when, and how the best so far fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evotune.history import RunHistory
from evotune.space import Config
from evotune.trial import SECONDS, Measurement, Trial

# With nothing in flight for so long, the run was not going on: it was resumed later.
PAUSE_S = 60.0


@dataclass(frozen=True)
class Stop:
    """A trial as the search saw it when it ended.

    ``latency_ms`` is None if it failed; ``best_ms`` is that of the best so far by the tuner's rule.
    """

    trial: Trial
    climbed: tuple[Measurement, ...]
    at_s: float
    latency_ms: float | None
    best_ms: float | None
    is_best: bool


@dataclass(frozen=True)
class Improvement:
    """A new best, and what is different from the one before: the value before, and now."""

    stop: Stop
    changed: Mapping[str, tuple[object, object]]


def climbed(trial: Trial) -> tuple[Measurement, ...]:
    """What was measured of a trial before it ended; the rest of its measurements are from finals.

    A climb rises from fidelity to fidelity and is timed; finals are not, or repeat a fidelity.
    """
    found: list[Measurement] = []
    for m in trial.measurements:
        if found and (m.fidelity.rank <= found[-1].fidelity.rank or SECONDS not in m.context):
            break
        found.append(m)
    return tuple(found)


def finals(trial: Trial) -> tuple[Measurement, ...]:
    """What was measured of a trial in finals."""
    return trial.measurements[len(climbed(trial)) :]


def course(history: RunHistory) -> list[Stop]:
    """All trials in order of completion. Over several shapes there is no best so far: they have one each."""
    at_s = _recorded_s(history) or _active_s(history)
    out: list[Stop] = []
    lead = _Lead()
    for trial in history.trials:
        seen = climbed(trial)
        careful = seen[-1] if seen and all(m.ok for m in seen) else None
        is_best = not history.shapes and lead.hear(trial.config, careful)
        latency_ms = careful.latency_ms if careful else None
        out.append(Stop(trial, seen, at_s[trial.number], latency_ms, lead.best_ms, is_best))
    return out


class _Lead:
    """The best so far: the most careful, then the fastest, of configurations that have not failed."""

    def __init__(self) -> None:
        self._timed: list[tuple[int, float, Config]] = []
        self._failed: list[Config] = []
        self._first: tuple[int, float, Config] | None = None

    @property
    def best_ms(self) -> float | None:
        return self._first[1] if self._first else None

    def hear(self, config: Config, careful: Measurement | None) -> bool:
        """Take in a trial's most careful timing, None if it failed; whether that is a new best."""
        if careful is None:
            self._failed.append(config)
            if self._first and self._first[2] == config:  # it failed when it was looked at closely
                alive = [t for t in self._timed if t[2] not in self._failed]
                self._first = min(alive, key=lambda t: t[:2], default=None)
            return False
        mine = -careful.fidelity.rank, careful.latency_ms, config
        self._timed.append(mine)
        is_best = self._first is None or mine[:2] < self._first[:2]
        self._first = mine if is_best else self._first
        return is_best


def improvements(stops: Sequence[Stop]) -> list[Improvement]:
    """Each new best, oldest first."""
    found = [s for s in stops if s.is_best]
    first = [Improvement(s, {}) for s in found[:1]]
    return first + [Improvement(b, changes(a.trial.config, b.trial.config)) for a, b in pairwise(found)]


def changes(before: Config, after: Config) -> dict[str, tuple[object, object]]:
    """Parameters of which two configurations have different values."""
    names = dict.fromkeys([*before, *after])
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def is_simulated(history: RunHistory) -> bool:
    """Whether seconds are those of the day on which a recording was made."""
    return _recorded_s(history) is not None


def _recorded_s(history: RunHistory) -> dict[int, float] | None:
    """Seconds of compiling and running, as recorded, up to each trial of a replay, one after the other."""
    if history.provenance != "replayed":
        return None
    now_s = 0.0
    out: dict[int, float] = {}
    for trial in history.trials:
        now_s += trial.static.compile_s if trial.static else 0.0
        now_s += sum(float(m.context.get(SECONDS, 0.0)) for m in climbed(trial))
        out[trial.number] = now_s
    # A recording without these columns reads as zero.
    return out if now_s else None


def _active_s(history: RunHistory) -> dict[int, float]:
    """Seconds from the run's beginning to the end of each trial, without pauses."""
    spans = sorted((_begun_s(history, t.number), history.done_s[t.number], t.number) for t in history.trials)
    now_s, paused_s = history.summary.created_s, 0.0
    out: dict[int, float] = {}
    for begun_s, done_s, number in spans:
        if begun_s - now_s > PAUSE_S:
            paused_s += begun_s - now_s
        now_s = max(now_s, done_s)
        # A clock may jump backwards.
        out[number] = max(0.0, done_s - history.summary.created_s - paused_s)
    return out


def _begun_s(history: RunHistory, number: int) -> float:
    begun = [s for s in history.attempts.get(number, ()) if s <= history.done_s[number]]
    return begun[-1] if begun else history.done_s[number]
