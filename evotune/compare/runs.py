"""One run of one search on one recording, replayed, with the CPU time that the search itself took."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evotune import content
from evotune.compare import synthetic
from evotune.engine import InlineEngine, Job
from evotune.evaluator import Evaluator
from evotune.proposers import Searcher
from evotune.replay import Recording, ReplayEvaluator, load_recording
from evotune.space import Config
from evotune.trial import Trial
from evotune.tuner import feedback_of

Factory = Callable[[Recording, int, int], Searcher]
"""Makes a search for a recording's space, a seed and a budget of evaluations. It may have a
``close``; it must not look at the recording's rows."""

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class SearchRun:
    """What a search evaluated, in order; a latency is None if the configuration failed, and the true
    one where the search was told a noisy one."""

    space: str
    method: str
    seed: int
    overhead_s: float
    """CPU seconds of the search in all its threads and child processes, without the look-ups."""
    evaluations: Sequence[tuple[Config, float | None]]

    def to_json(self) -> dict[str, Any]:
        """The object of ``evotune compare --json``."""
        evaluations = [{"config": dict(c), "latency_ms": ms} for c, ms in self.evaluations]
        return {
            "space": self.space,
            "method": self.method,
            "seed": self.seed,
            "overhead_s": self.overhead_s,
            "evaluations": evaluations,
        }

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> SearchRun:
        """The run that :meth:`to_json` described."""
        evaluations = tuple((e["config"], e["latency_ms"]) for e in recorded["evaluations"])
        fields: dict[str, Any] = {**recorded, "evaluations": evaluations}
        return cls(**fields)


def open_space(name: str) -> Recording:
    """A recording by its folder or shipped name, or the built-in ``synthetic`` one.

    Raises:
        UsageError: There is no such recording, or it cannot be read.
    """
    if name == SYNTHETIC and not Path(name).exists():
        return synthetic.recording()
    return load_recording(content.find(name, content.RECORDINGS).resolve())


def evaluator_of(recording: Recording, seed: int) -> Evaluator:
    """What answers a search: a recording at its one fidelity; the synthetic landscape with its ladder
    and its noise, whose best is judged by true latency all the same."""
    is_synthetic = isinstance(recording, synthetic.SyntheticRecording)
    return synthetic.SyntheticEvaluator(seed) if is_synthetic else ReplayEvaluator(recording)


def run_search(recording: Recording, method: str, factory: Factory, seed: int, budget: int) -> SearchRun:
    """Spend a budget of evaluations, one at a time; fewer if the search has nothing left to ask.

    What a search imports at its first question counts as its own time, so medians over runs mean
    more than the first run in a process.
    """
    engine = InlineEngine(evaluator_of(recording, seed))
    evaluations: list[tuple[Config, float | None]] = []
    looking_up_s = 0.0
    started_s = _cpu_s()
    searcher = factory(recording, seed, budget)
    try:
        for number in range(budget):
            candidate = searcher.ask(())
            if candidate is None:
                break
            asked_s = time.process_time()
            engine.submit(Job(number, candidate.config, None, candidate.fidelity_rank))
            (outcome,) = engine.completed(timeout_s=0)
            trial = Trial(number, candidate, outcome.measurements, outcome.static)
            true_ms = None if trial.failure else recording.row(candidate.config).time_ms
            evaluations.append((candidate.config, true_ms))
            looking_up_s += time.process_time() - asked_s
            searcher.tell([feedback_of(trial)])
    finally:
        if close := getattr(searcher, "close", None):
            close()  # before the clock is read: a child's time is known once it has ended
    overhead_s = _cpu_s() - started_s - looking_up_s
    return SearchRun(recording.name, method, seed, overhead_s, tuple(evaluations))


def _cpu_s() -> float:
    """CPU seconds of all threads of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
