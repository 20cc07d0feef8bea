"""What failed, by stage, with the commonest reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from evotune.history import RunHistory
from evotune.result import kind_of

EXAMPLES = 3
# A compiler's message may be pages long.
MOST_CHARACTERS = 600


@dataclass(frozen=True)
class Example:
    """A reason as it was first given, and of how many failures it is; numbers in it may differ.

    ``trial`` is the number of the first, None if it was rejected before it became a trial.
    """

    reason: str
    count: int
    trial: int | None


@dataclass(frozen=True)
class Failures:
    """Those of one stage; ``examples`` are the commonest reasons, of ``kinds`` in all."""

    stage: str
    count: int
    kinds: int
    examples: tuple[Example, ...]


def failures(history: RunHistory) -> list[Failures]:
    """By stage, the commonest first."""
    found: dict[str, list[tuple[str, int | None]]] = {}
    for rejection in history.rejections:
        found.setdefault(rejection.stage, []).append((rejection.reason, None))
    for trial in history.trials:
        if trial.failure is not None:
            stage, reason = trial.failure.failed_stage or "", trial.failure.reason or "no reason given"
            found.setdefault(stage, []).append((reason, trial.number))
    out = [_of(stage, reasons) for stage, reasons in found.items()]
    return sorted(out, key=lambda f: -f.count)


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text that is cut, visibly, where it is too long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _of(stage: str, reasons: Iterable[tuple[str, int | None]]) -> Failures:
    first: dict[str, tuple[str, int | None]] = {}
    counts: Counter[str] = Counter()
    for reason, number in reasons:
        kind = kind_of(reason)
        first.setdefault(kind, (reason, number))
        counts[kind] += 1
    examples = tuple(
        Example(shortened(first[kind][0]), count, first[kind][1]) for kind, count in counts.most_common(EXAMPLES)
    )
    return Failures(stage, sum(counts.values()), len(counts), examples)
