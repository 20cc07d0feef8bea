"""Runs in an experiment tracker: MLflow, Weights & Biases, or any other behind one small protocol."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, cast

from evotune.errors import UsageError, nearest

if TYPE_CHECKING:
    from evotune.trial import Trial
    from evotune.tuner import Tuner

_log = logging.getLogger(__name__)
PROJECT = "evotune"


class Tracker(Protocol):
    """Where a run is to be seen beside others."""

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        """A run of this name begins; ``parameters`` are what it depends on, flat."""
        ...

    def log(self, number: int, values: Mapping[str, float], labels: Mapping[str, Any]) -> None:
        """An evaluation ended; ``labels`` are its configuration, its origin, and its failure if it failed."""
        ...

    def end(self, result: Mapping[str, Any]) -> None:
        """The run ended with this result, flat."""
        ...


class MlflowTracker:
    """MLflow: a run of the experiment ``evotune``, where ``MLFLOW_TRACKING_URI`` says or in its default store.

    Latencies are metrics by step; failures are counted.
    """

    def __init__(self) -> None:
        self._mlflow: Any = _imported("mlflow", "mlflow")
        self._failures = 0

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=name)
        self._mlflow.log_params(dict(parameters))

    def log(self, number: int, values: Mapping[str, float], labels: Mapping[str, Any]) -> None:
        self._failures += "failed" in labels
        self._mlflow.log_metrics({**values, "failures": float(self._failures)}, step=number)

    def end(self, result: Mapping[str, Any]) -> None:
        numbers = {k: float(v) for k, v in result.items() if isinstance(v, (int, float)) and k != "run_id"}
        self._mlflow.log_metrics({f"final {k}": v for k, v in numbers.items()})
        self._mlflow.set_tags({k: str(v) for k, v in result.items() if k not in numbers})
        self._mlflow.end_run()


class WandbTracker:
    """Weights & Biases: a run of the project ``evotune``; offline unless ``WANDB_MODE`` says otherwise."""

    def __init__(self) -> None:
        self._wandb: Any = _imported("wandb", "wandb")
        self._run: Any = None

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = self._wandb.init(project=project, name=name, config=dict(parameters), mode=mode)

    def log(self, number: int, values: Mapping[str, float], labels: Mapping[str, Any]) -> None:
        self._run.log({**values, **labels}, step=number)

    def end(self, result: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(result))
        self._run.finish()


TRACKERS = {"mlflow": MlflowTracker, "wandb": WandbTracker}


def open_tracker(name: str) -> Tracker:
    """A tracker by its name, or ``package.module:function`` that makes one.

    Raises:
        UsageError: There is no such tracker, or its package is not installed.
    """
    if name in TRACKERS:
        return TRACKERS[name]()
    module, colon, function = name.partition(":")
    if not colon:
        known = ", ".join(TRACKERS)
        raise UsageError(
            f"no tracker {name!r}{nearest(name, TRACKERS)}; known: {known}, or package.module:function"
        )
    try:
        return cast(Tracker, getattr(importlib.import_module(module), function)())
    except (ImportError, AttributeError) as error:
        raise UsageError(f"tracker {name!r} cannot be imported: {error}") from None


class Tracking:
    """An observer of a tuner that tells a tracker of a run, begun at once.

    A tracker that fails later, a server that went away, is left alone: the run is worth more.

    Raises:
        UsageError: The tracker does not begin.
    """

    def __init__(self, tracker: Tracker, name: str, parameters: Mapping[str, Any]) -> None:
        self._tracker: Tracker | None = tracker
        try:
            tracker.begin(name, flat(parameters))
        except Exception as error:  # a tracker's package may raise anything
            raise UsageError(f"the tracker does not begin: {type(error).__name__}: {error}") from error

    def on_trial(self, trial: Trial, tuner: Tuner, *, is_best: bool) -> None:
        values: dict[str, float] = {}
        if trial.latency_ms is not None:
            values["latency_ms"] = trial.latency_ms
        if tuner.incumbent is not None and tuner.incumbent.latency_ms is not None:
            values["best_ms"] = tuner.incumbent.latency_ms
        labels: dict[str, Any] = {**trial.config, "origin": trial.candidate.origin}
        if trial.failure is not None:
            labels["failed"] = trial.failure.failed_stage
        self._tell(lambda tracker: tracker.log(trial.number, values, labels))

    def on_note(self, text: str) -> None:
        """Notes are in the journal."""

    def end(self, result: Mapping[str, Any]) -> None:
        """To be called with the result."""
        self._tell(lambda tracker: tracker.end(flat(result)))

    def _tell(self, say: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            say(self._tracker)
        except Exception as error:  # as above
            _log.warning("the tracker is not told any more: %s: %s", type(error).__name__, error)
            self._tracker = None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in the names; what is None is left out."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        elif value is not None:
            out[f"{prefix}{name}"] = value
    return out


def _imported(package: str, wheel: str) -> Any:
    if find_spec(package) is None:
        raise UsageError(f"{package} is not installed: pip install {wheel}")
    return importlib.import_module(package)
