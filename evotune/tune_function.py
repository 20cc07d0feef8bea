"""Three lines to tune anything that can be timed: ``evotune.tune(latency_ms, space)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evotune.errors import UsageError
from evotune.fingerprint import carry_over, fingerprint
from evotune.openevolve_tuner import OpenEvolveTuner
from evotune.space import ConfigSpace, Value


@dataclass(frozen=True)
class Tuned:
    """The fastest configuration, and everything that was tried, in order.

    ``history`` has (configuration, latency in ms), None where a configuration failed.
    """

    config: Mapping[str, Value]
    latency_ms: float
    history: Sequence[tuple[Mapping[str, Value], float | None]]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a column for each parameter and ``latency_ms``.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd  # pyright: ignore[reportMissingImports]

        return pd.DataFrame([{**config, "latency_ms": latency_ms} for config, latency_ms in self.history])


def tune(
    latency_ms: Callable[[dict[str, Value]], float | None],
    space: Mapping[str, Iterable[Value]] | ConfigSpace,
    *,
    max_evaluations: int = 60,
    constraints: Iterable[str] = (),
    seed: int = 0,
    provider: str = "none",
    journal: str | Path | None = None,
    key: str | None = None,
    on_evaluation: Callable[[int, Mapping[str, Value], float | None], None] | None = None,
) -> Tuned:
    """The configuration with the lowest latency, found in few evaluations.

    Args:
        latency_ms: Times a configuration; milliseconds, or any other positive cost. An exception, None,
            NaN or infinity mean that the configuration failed. It is called in this process and thread.
        space: Values of each parameter, or a :class:`~evotune.space.ConfigSpace`.
        max_evaluations: Calls of ``latency_ms`` at most; never two for one configuration.
        constraints: Python expressions over the parameters that must hold.
        seed: The same seed and latencies give the same evaluations.
        provider: A model to ask as well; see :class:`~evotune.openevolve_tuner.OpenEvolveTuner`.
        journal: SQLite file in which every evaluation is kept; the same call again resumes. What makes it the
            same function, :func:`~evotune.fingerprint.fingerprint` says.
        key: What the function is known by in the journal, in place of that.
        on_evaluation: Called after each with its number, configuration and latency.

    Raises:
        UsageError: An empty space, a setting out of range, or a function that needs a ``key``. It is a
            ``ValueError``.
        RuntimeError: No evaluation gave a latency; the commonest failure is named.
    """
    if not callable(latency_ms):
        raise UsageError(f"latency_ms {latency_ms!r} cannot be called; give a function of a configuration")

    known_as = key or (fingerprint(latency_ms) if journal is not None else "")
    tuner = OpenEvolveTuner(
        space,
        lambda config: _speed(latency_ms(config)),
        max_evaluations,
        verbose=False,
        constraints=constraints,
        seed=seed,
        provider=provider,
        journal=journal,
        key=known_as,
        on_evaluation=lambda n, config, score: on_evaluation(n, config, _ms(score)) if on_evaluation else None,
    )
    try:
        config = tuner.tune()
    finally:
        if journal is not None and key is None:
            carry_over(latency_ms, known_as)
    assert tuner.best_score is not None
    history = [(c, _ms(score)) for c, score in tuner.history]
    return Tuned(config, 1.0 / tuner.best_score, history)


def _ms(score: float | None) -> float | None:
    return None if score is None else 1.0 / score


def _speed(found: Any) -> float | None:
    return None if found is None else 1.0 / _positive_ms(found)


def _positive_ms(found: Any) -> float:
    """A latency, or a ValueError that says what came in place of one."""
    try:
        value_ms = float(found)
    except (TypeError, ValueError):
        raise ValueError(f"latency_ms returned a {type(found).__name__}; give one number") from None
    if not math.isfinite(value_ms) or value_ms <= 0:
        raise ValueError(f"a latency of {value_ms} ms; it must be positive and finite")
    return value_ms
