"""Three lines to tune anything that can be timed: ``evotune.tune(latency_ms, space)``."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evotune import facts
from evotune.asking import choose_model, open_model, open_prompts, usage
from evotune.budget import Budget
from evotune.engine import InlineEngine
from evotune.errors import UsageError, spelt_for_python
from evotune.evaluator import Device
from evotune.fingerprint import carry_over
from evotune.function import ANOTHER, check_legal, identity_of, level_of, settings_of, space_of
from evotune.interval import MAX_BLOCKS, MIN_BLOCKS
from evotune.journal import Journal
from evotune.proposers.model import Story
from evotune.result import Result
from evotune.session import searcher
from evotune.settings import Settings
from evotune.space import Config, ConfigSpace, Value
from evotune.transfer import WARM_START, warm_start
from evotune.trial import BLOCKS, Fidelity, Measurement, Provenance, Static, Trial
from evotune.tuner import Finals, Tuner

log = logging.getLogger(__name__)

NAME = "function"
CALLED = Fidelity(1, "low", 1)
# Who meets the default in the finals. With the rounds in which the winner meets it alone, that is five or six
# calls for each repetition, and a fifth finalist among noisy calls hardly ever wins.
FINALISTS = 3
LatencyMs = Callable[[dict[str, Value]], Any]
OnEvaluation = Callable[[int, Mapping[str, Value], float | None], None]


@dataclass(frozen=True)
class Tuned:
    """The fastest configuration, and everything that was tried, in order.

    ``latency_ms`` is the median of the finals and ``ci95_ms`` its 95 % interval; ``speedup`` is default /
    best there, None where the default failed. Without finals the latency is that of one call, the
    least of all and so flattered, and the intervals are None. ``history`` has (configuration, latency in ms)
    of the search, None where a configuration failed.
    """

    config: Mapping[str, Value]
    latency_ms: float
    history: Sequence[tuple[Mapping[str, Value], float | None]]
    ci95_ms: tuple[float, float] | None = None
    speedup: float | None = None
    speedup_ci95: tuple[float, float] | None = None

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a column for each parameter and ``latency_ms``.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd  # pyright: ignore[reportMissingImports]

        return pd.DataFrame([{**config, "latency_ms": latency_ms} for config, latency_ms in self.history])


@spelt_for_python(ANOTHER)
def tune(
    latency_ms: LatencyMs,
    space: Mapping[str, Iterable[Value]] | ConfigSpace,
    *,
    max_evaluations: int = 60,
    max_seconds: float | None = None,
    finals: int = 6,
    constraints: Iterable[str] = (),
    seed: int = 0,
    provider: str = "none",
    model: str | None = None,
    max_calls: int | None = None,
    max_usd: float | None = None,
    journal: str | Path | None = None,
    key: str | None = None,
    warm_start: str | Path | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> Tuned:
    """The configuration with the lowest latency, found in few evaluations.

    Args:
        latency_ms: Times a configuration; milliseconds, or any other positive cost. An exception, None,
            NaN or infinity mean that the configuration failed. It is called in this process and thread.
        space: Values of each parameter, or a :class:`~evotune.space.ConfigSpace`.
        max_evaluations: Calls of ``latency_ms`` in the search at most; never two for one configuration.
        max_seconds: Wall time to search for.
        finals: Repetitions that decide, on top of the search: the best three and the default are called so
            often in turns, then the winner and the default again. So up to 6 times as many calls;
            0 takes the least of the single calls.
        constraints: Python expressions over the parameters that must hold.
        seed: The same seed and latencies give the same evaluations.
        provider: Who is asked as well; with model, max_calls, max_usd and the environment's variables as of
            :class:`~evotune.openevolve_tuner.OpenEvolveTuner`.
        journal: SQLite file in which every evaluation is kept; the same call again resumes. What makes it the
            same function, :func:`~evotune.fingerprint.fingerprint` says.
        key: What the function is known by in the journal, in place of that.
        warm_start: Journal of earlier calls to learn from, on another device or shape.
        on_evaluation: Called after each of the search with its number, configuration and latency.

    Raises:
        UsageError: An empty space, a setting out of range, or a function that needs a ``key``. It is a
            ``ValueError``.
        RuntimeError: No evaluation gave a latency; the commonest failure is named.
    """
    chosen = {
        "run.max_evaluations": max_evaluations,
        "run.max_seconds": max_seconds,
        "run.seed": seed,
        "run.warm_start": None if warm_start is None else str(warm_start),
        "llm.provider": provider,
        "llm.model": model,
        "llm.max_calls": max_calls,
        "llm.max_usd": max_usd,
    }
    if not callable(latency_ms):
        raise UsageError(f"latency_ms {latency_ms!r} cannot be called; give a function of a configuration")
    if type(finals) is not int or 0 != finals < MIN_BLOCKS:
        raise UsageError(f"finals = {finals!r}; give {MIN_BLOCKS} or more, as fewer tell no noise, or 0 for none")
    settings = settings_of(chosen, os.environ)
    return _tune(latency_ms, space_of(space, constraints), settings, finals, journal, key, on_evaluation)


def _tune(
    latency_ms: LatencyMs,
    space: ConfigSpace,
    settings: Settings,
    finals: int,
    path: str | Path | None,
    key: str | None,
    on_evaluation: OnEvaluation | None,
) -> Tuned:
    choice = choose_model(settings, os.environ, space)
    log.log(level_of(choice, settings), "model %s", choice.reason)
    needs_identity = path is not None or settings.run.warm_start is not None
    identity = identity_of(space, settings.run.seed, latency_ms, key if needs_identity else "")
    source_hash, description = identity
    source = None
    if settings.run.warm_start is not None:
        warm = warm_start(settings.run.warm_start, space, [NAME], *identity)
        source, description = warm.source, {**description, WARM_START: warm.hash}
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(Path(":memory:" if path is None else path)))
        if "function" in description:
            stack.callback(carry_over, latency_ms, description["function"])
        run = journal.open_run(NAME, source_hash, description)
        check_legal(run, space)
        if run.is_new:
            facts.keep(run, NAME, settings, space, None)
        make_model = partial(
            open_model,
            settings,
            choice,
            Story(NAME),
            space=space,
            prompts=open_prompts(settings),
            run=run,
            stack=stack,
        )
        evaluator = FunctionEvaluator(latency_ms)
        result = Tuner(
            searcher(space, settings, make_model, ranks=[CALLED.rank], source=source),
            InlineEngine(evaluator),
            evaluator,
            run,
            budget=Budget.of(settings.run, None, facts.PYTHON),
            finals=Finals(FINALISTS if finals else 0, Fidelity(CALLED.rank + 1, "finals", finals)),
            names={"kernel": NAME, "target": facts.PYTHON},
            llm=lambda: usage(run, choice),
            observers=[_Listener(on_evaluation)],
        ).tune()
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        return _tuned(result, list(run))


def _tuned(result: Result, trials: Sequence[Trial]) -> Tuned:
    history = [(dict(t.config), _called_ms(t)) for t in trials]
    if result.best is None:
        why = [f"; the commonest failure ({count} times): {reason}" for reason, count in result.reasons[:1]]
        raise RuntimeError(f"no valid configuration in {len(trials)} evaluations{''.join(why)}")
    best: Mapping[str, Value] = result.best["config"]
    if not any(t.config == best and t.best and t.best.fidelity.rank > CALLED.rank for t in trials):
        return Tuned(best, result.best["latency_ms"], history)
    low_ms, high_ms = result.best["ci95_ms"]
    return Tuned(best, result.best["latency_ms"], history, (low_ms, high_ms), result.speedup, result.speedup_ci95)


def _called_ms(trial: Trial) -> float | None:
    """What the one call in the search said."""
    return next((m.latency_ms for m in trial.measurements if m.ok and m.fidelity.rank == CALLED.rank), None)


class FunctionEvaluator:
    """Asks a function for latencies, in this process and thread."""

    provenance: Provenance = "measured"
    fidelities = (CALLED,)
    device = Device(facts.PYTHON, facts.PYTHON)

    def __init__(self, latency_ms: LatencyMs) -> None:
        self._latency_ms = latency_ms

    def compile(self, config: Config) -> Static:
        return Static(0.0)

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        return self.interleave([config], fidelity)[0]

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """Who goes last in a round goes first in the next, so that none always follows the same one."""
        samples_ms: list[list[float]] = [[] for _ in configs]
        failures: dict[int, str] = {}
        for turn in range(fidelity.reps):
            order = range(len(configs)) if turn % 2 == 0 else reversed(range(len(configs)))
            for i in order:
                if i not in failures:
                    try:
                        samples_ms[i].append(_positive_ms(self._latency_ms(dict(configs[i]))))
                    except Exception as error:  # the caller's code may raise anything; that fails one configuration
                        failures[i] = f"{type(error).__name__}: {error}"
        context = {BLOCKS: min(fidelity.reps, MAX_BLOCKS)}
        return [
            Measurement(fidelity, self.provenance, failed_stage="function", reason=failures[i])
            if i in failures
            else Measurement(fidelity, self.provenance, tuple(samples_ms[i]), context=context)
            for i in range(len(configs))
        ]

    def close(self) -> None:
        pass


class _Listener:
    """Tells a caller of the evaluations, and the log of the rest."""

    def __init__(self, on_evaluation: OnEvaluation | None) -> None:
        self._on_evaluation = on_evaluation

    def on_trial(self, trial: Trial, tuner: Tuner, *, is_best: bool) -> None:
        if self._on_evaluation is not None:
            self._on_evaluation(trial.number, dict(trial.config), trial.latency_ms)

    def on_note(self, text: str) -> None:
        log.info(text)


def _positive_ms(found: Any) -> float:
    """A latency, or a ValueError that says what came in place of one."""
    try:
        value_ms = float(found)
    except (TypeError, ValueError):
        raise ValueError(f"latency_ms returned a {type(found).__name__}; give one number") from None
    if not math.isfinite(value_ms) or value_ms <= 0:
        raise ValueError(f"a latency of {value_ms} ms; it must be positive and finite")
    return value_ms
