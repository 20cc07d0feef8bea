"""A run's trials as columns, for the parts of the page that its reader can change."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

from evotune.history import RunHistory
from evotune.report.belief import Belief
from evotune.report.course import Stop, finals, is_simulated
from evotune.report.failures import shortened
from evotune.space import Config, ConfigSpace, Value
from evotune.surrogate.influence import rounded

# Thousands of trials are to stay below two megabytes.
MOST_CHARACTERS = 160

K = TypeVar("K", bound=Hashable)


def to_json(
    history: RunHistory, stops: Sequence[Stop], space: ConfigSpace | None, belief: Belief | None
) -> dict[str, Any]:
    """What the scripts of the page know. Trials are columns, in order of completion; values, origins, stages
    and reasons are positions in lists that name each once."""
    reasons, stages, origins = _Names[str](), _Names[str](), _Names[str]()
    values = _values(history, space)
    failures = [s.trial.failure for s in stops]
    best, default = history.best_trial, history.default
    return {
        "parameters": [{"name": name, "values": list(known)} for name, known in values.items()],
        "trials": {
            "number": [s.trial.number for s in stops],
            "origin": [origins(s.trial.candidate.origin) for s in stops],
            "parent": [s.trial.candidate.parent for s in stops],
            "config": [_positions(s.trial.config, values) for s in stops],
            "ms": [_ms(s.latency_ms) for s in stops],
            "best_ms": [_ms(s.best_ms) for s in stops],
            "final_ms": [_ms(s.trial.latency_ms if finals(s.trial) else None) for s in stops],
            "fidelity": [s.climbed[-1].fidelity.name if s.climbed else "" for s in stops],
            "at_s": [round(s.at_s, 2) for s in stops],
            "stage": [None if f is None else stages(f.failed_stage or "") for f in failures],
            "reason": [None if f is None else reasons(_short(f.reason)) for f in failures],
        },
        "origins": list(origins),
        "stages": list(stages),
        "reasons": list(reasons),
        "best": best.number if best else None,
        "default": default.number if default and not history.shapes else None,
        "has_shapes": bool(history.shapes),
        "seconds": "seconds, as recorded" if is_simulated(history) else "seconds",
        "belief": None if belief is None else _belief(belief),
    }


def _belief(belief: Belief) -> dict[str, Any]:
    return {
        "axes": [{"name": axis.name, "values": list(axis.values)} for axis in belief.axes],
        "pairs": [
            {"down": p.down, "across": p.across, "ms": list(p.latency_ms), "std": list(p.std)} for p in belief.pairs
        ],
    }


def _values(history: RunHistory, space: ConfigSpace | None) -> Mapping[str, Sequence[Value]]:
    """Names of parameters and the values that they take, in order."""
    if space is not None:
        return {name: parameter.values for name, parameter in space.parameters.items()}
    found: dict[str, dict[str, Value]] = {}
    for trial in history.trials:
        for name, value in trial.config.items():
            found.setdefault(name, {}).setdefault(repr(value), value)
    return {name: list(known.values()) for name, known in found.items()}


def _positions(config: Config, values: Mapping[str, Sequence[Value]]) -> list[int | None]:
    """None where a configuration has no such parameter: at another shape there are others."""
    return [_position(config[name], known) if name in config else None for name, known in values.items()]


def _position(value: Value, known: Sequence[Value]) -> int | None:
    return next((i for i, v in enumerate(known) if type(v) is type(value) and v == value), None)


def _short(reason: str | None) -> str:
    return shortened(reason or "", MOST_CHARACTERS)


def _ms(latency_ms: float | None) -> float | None:
    return None if latency_ms is None else rounded(latency_ms, 5)


class _Names(dict[K, int]):
    """Positions of names, given as they come."""

    def __call__(self, name: K) -> int:
        return self.setdefault(name, len(self))
