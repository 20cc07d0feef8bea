"""How far a run has come, after each trial: the same facts for a live line, a log and a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from evotune.budget import Eta
from evotune.trial import Trial

if TYPE_CHECKING:
    from evotune.tuner import Tuner

# Of a measurement's context, what tells the state of the device.
DEVICE = ("clock_mhz", "memory_clock_mhz", "power_w", "temperature_c", "throttled", "load_1min")
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    ``best_ms`` and ``speedup`` (over the default) are those of the search; the finals may say otherwise.
    ``device`` holds the last readings, ``model`` what the model is doing, ``llm`` what it cost so far, and
    ``course`` the best latency after each evaluation of this call.
    """

    evaluations: int
    max_evaluations: int
    failures: int
    best_ms: float | None
    speedup: float | None
    eta: Eta | None
    device: Mapping[str, float | str]
    model: str
    llm: Mapping[str, Any]
    course: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """The fields of an event that tell it."""
        return {
            "evaluations": self.evaluations,
            "max_evaluations": self.max_evaluations,
            "failures": self.failures,
            "best_ms": self.best_ms,
            "speedup": self.speedup,
            "eta_s": self.eta.seconds if self.eta else None,
            "eta_by": self.eta.by if self.eta else None,
            "device": dict(self.device),
            "model": self.model,
            "llm": dict(self.llm),
        }


class Watch:
    """Keeps what a single trial does not tell."""

    def __init__(self) -> None:
        self._failures = 0
        self._device: Mapping[str, float | str] = {}
        self._course: list[float] = []

    def see(self, trial: Trial, tuner: Tuner) -> Progress:
        """Where the run stands after a trial."""
        self._failures += trial.failure is not None
        for measurement in trial.measurements:
            found = {name: measurement.context[name] for name in DEVICE if name in measurement.context}
            self._device = found or self._device
        if (best_ms := tuner.best_ms) is not None:
            self._course.append(best_ms)
        return Progress(
            len(tuner.trials),
            tuner.meter.budget.max_evaluations,
            self._failures,
            best_ms,
            tuner.speedup,
            tuner.meter.eta(),
            self._device,
            tuner.model_state,
            tuner.llm(),
            tuple(self._course),
        )


class JsonLines:
    """Tells a run as one JSON object on a line of stderr for each event. Use it in a ``with``.

    ``note`` and ``warning`` have a ``text``. ``trial`` has ``number``, ``origin``, ``config``, ``fidelity``,
    ``latency_ms``, ``failed`` (``stage`` and ``reason``, or null), ``is_best``, and the fields of
    :class:`Progress`. ``progress`` has ``done`` and ``total``.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = sys.stderr if file is None else file
        self._watch = Watch()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def on_note(self, text: str) -> None:
        """Something a person should know."""
        self._write("note", {"text": text})

    def warn(self, text: str) -> None:
        """Something that changes what the result means."""
        self._write("warning", {"text": text})

    def on_trial(self, trial: Trial, tuner: Tuner, *, is_best: bool) -> None:
        """A trial, and where the run stands after it."""
        failure, best = trial.failure, trial.best
        failed = {"stage": failure.failed_stage, "reason": failure.reason} if failure else None
        event: dict[str, Any] = {
            "number": trial.number + 1,  # as people count, and as the lines of a run do
            "origin": trial.candidate.origin,
            "config": dict(trial.config),
            "fidelity": best.fidelity.name if best else None,
            "latency_ms": best.latency_ms if best else None,
            "failed": failed,
            "is_best": is_best,
        }
        self._write("trial", {**event, **self._watch.see(trial, tuner).to_json()})

    def on_progress(self, done: int, total: int) -> None:
        """Work of known length without trials to tell."""
        self._write("progress", {"done": done, "total": total})

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()


def sparkline(values: Sequence[float], width: int) -> str:
    """A line of blocks, each the last of its share of the values, from the lowest to the highest."""
    if not values:
        return ""
    n = min(width, len(values))
    shown = [values[(i + 1) * len(values) // n - 1] for i in range(n)]
    low, high = min(shown), max(shown)
    steps = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * steps)] for value in shown)
