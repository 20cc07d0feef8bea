"""Three lines to tune anything that can be timed: ``evotune.tune(latency_ms, space)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evotune.errors import UsageError
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
        journal: SQLite file in which every evaluation is kept; the same call again resumes.
        on_evaluation: Called after each with its number, configuration and latency.

    Raises:
        UsageError: An empty space, or a setting out of range. It is a ``ValueError``.
        RuntimeError: No evaluation gave a latency; the commonest failure is named.
    """
    if not callable(latency_ms):
        raise UsageError(f"latency_ms {latency_ms!r} cannot be called; give a function of a configuration")

    def speed(config: dict[str, Value]) -> float | None:
        found = latency_ms(config)
        return None if found is None else 1.0 / _positive_ms(found)

    def told(number: int, config: Mapping[str, Value], score: float | None) -> None:
        if on_evaluation is not None:
            on_evaluation(number, config, None if score is None else 1.0 / score)

    tuner = OpenEvolveTuner(
        space,
        speed,
        max_evaluations,
        verbose=False,
        constraints=constraints,
        seed=seed,
        provider=provider,
        journal=journal,
        on_evaluation=told,
    )
    config = tuner.tune()
    assert tuner.best_score is not None
    history = [(c, None if score is None else 1.0 / score) for c, score in tuner.history]
    return Tuned(config, 1.0 / tuner.best_score, history)


def _positive_ms(found: Any) -> float:
    """A latency, or a ValueError that says what came in place of one."""
    try:
        value_ms = float(found)
    except (TypeError, ValueError):
        raise ValueError(f"latency_ms returned a {type(found).__name__}; give one number") from None
    if not math.isfinite(value_ms) or value_ms <= 0:
        raise ValueError(f"a latency of {value_ms} ms; it must be positive and finite")
    return value_ms
