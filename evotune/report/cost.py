"""What models were asked, what that cost, and what it brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evotune.history import RunHistory
from evotune.journal import LlmCall
from evotune.report.course import Stop


@dataclass(frozen=True)
class Cost:
    """Calls of one model; ``usd`` is None where the price of a call that was answered is not known."""

    provider: str
    model: str
    calls: int
    failed: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    seconds: float


@dataclass(frozen=True)
class Origin:
    """What came of the trials of one origin, as the search saw them.

    ``best_ms`` is None if none was timed; over several shapes, ``new_bests`` is as well: they have one each.
    """

    name: str
    trials: int
    failed: int
    new_bests: int | None
    best_ms: float | None


def costs(history: RunHistory) -> list[Cost]:
    """By model, in the order in which they were first asked."""
    by_model: dict[tuple[str, str], list[LlmCall]] = {}
    for call in history.llm_calls:
        by_model.setdefault((call.provider, call.model), []).append(call)
    return [_cost(provider, model, calls) for (provider, model), calls in by_model.items()]


def origins(history: RunHistory, stops: Sequence[Stop]) -> list[Origin]:
    """What came of each origin's trials, in the order in which they first appear."""
    by_origin: dict[str, list[Stop]] = {}
    for stop in stops:
        by_origin.setdefault(stop.trial.candidate.origin, []).append(stop)
    out: list[Origin] = []
    for name, mine in by_origin.items():
        timed = [s.latency_ms for s in mine if s.latency_ms is not None]
        best_ms = None if history.shapes else min(timed, default=None)
        new_bests = None if history.shapes else sum(s.is_best for s in mine)
        out.append(Origin(name, len(mine), sum(s.latency_ms is None for s in mine), new_bests, best_ms))
    return out


def _cost(provider: str, model: str, calls: Sequence[LlmCall]) -> Cost:
    usd = [c.usd for c in calls if c.output_tokens is not None]
    known = [u for u in usd if u is not None]
    return Cost(
        provider,
        model,
        len(calls),
        sum(c.error is not None for c in calls),
        sum(c.input_tokens or 0 for c in calls),
        sum(c.output_tokens or 0 for c in calls),
        sum(known) if len(known) == len(usd) else None,
        sum(c.seconds for c in calls),
    )
