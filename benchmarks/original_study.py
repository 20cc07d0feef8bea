"""Repeat the original study on recorded spaces: when does each search find what pattern search ends with?

python benchmarks/original_study.py [RECORDING...] --seeds 10 --out benchmarks/results/original_study.md
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy

from evotune import content
from evotune.baselines import PatternSearch
from evotune.compare import methods
from evotune.compare.runs import evaluator_of, open_space
from evotune.engine import InlineEngine, Job
from evotune.proposers import Searcher
from evotune.replay import Recording
from evotune.trial import Trial
from evotune.tuner import feedback_of

OWN = ("evotune", "mfbo")
SEARCHES = (*OWN, "random")
# Evaluations at which the best found is compared with pattern search's, and at which evotune's searches
# give up finding it.
COMPARED_AT, GIVEN_UP_AT = 200, 400
TOLERANCE = 1.01

NOTE = """\
# The original study in replay

The study measured multi-fidelity Bayesian optimisation (MFBO) against Helion's PatternSearch and RandomSearch
on a GPU, and reported 6.5x and 2x less tuning time, with a kernel that was 37 % slower. Here the searches are
replayed on {spaces} recorded spaces with {seeds} seeds each:

    {command}

`pattern` is this project's PatternSearch with Helion's defaults (100 random configurations, 5 copies, 20
generations at most), run to its own end: until no copy finds a faster neighbor. The table tells when the others
first have a configuration as fast as its last.

Time is simulated: the recorded seconds of compiling and benchmarking each configuration, one after the
other, plus the CPU seconds that the search itself took ({cores} cores, Python {python}, numpy {numpy}).
Latencies and costs are replayed from the recordings' devices; nothing was measured here but the searches' own
seconds.

**Fidelities.** A recording knows each configuration at one fidelity, and no timing is made up: every
evaluation of every search costs what was recorded in full. `mfbo` therefore runs with a ladder of one rung,
where a promotion is free and its low fidelity saves nothing; what fidelities save is not in these numbers.

{table}

Medians over seeds; the last line is the median over spaces, and the lowest of `worst`.

- `ends`: seconds and evaluations of the whole pattern search; `has it`: seconds until it had its own final
  configuration; `x, s`: seconds until x had one as fast. Times without an end are of searches that had none.
- `ends/x`: pattern search's whole time over the time in which x was as good; `has/x`: the time in which pattern
  search had that configuration over the same; `random/evotune`: random search's time to that quality over
  evotune's. A search that was not as good after {given_up} evaluations counts as infinitely late, a ratio of 0.
- `~`: the same where within {tolerance:.0%} is as good, which is what two runs on a device differ by.
- `quality`: pattern search's final latency over evotune's best of {compared} evaluations: more than 1 is a faster
  kernel. `worst`: the lowest of the seeds.

evotune was as good within {given_up} evaluations in {evotune_found} of {runs} runs, mfbo in {mfbo_found}.
"""


@dataclass(frozen=True)
class Course:
    """How one search went: simulated seconds and best latency after each evaluation."""

    seconds: Sequence[float]
    best_ms: Sequence[float]

    def reached_s(self, target_ms: float) -> float:
        """When a configuration was known that is this fast; infinity if none was."""
        return next((s for s, ms in zip(self.seconds, self.best_ms, strict=True) if ms <= target_ms), math.inf)


@dataclass(frozen=True)
class Found:
    """One seed on one space."""

    pattern: Course
    courses: Mapping[str, Course]

    @property
    def target_ms(self) -> float:
        """What pattern search ended with."""
        return self.pattern.best_ms[-1]

    @property
    def times(self) -> list[float]:
        """The first columns of the table."""
        others = [self.courses[m].reached_s(self.target_ms) for m in SEARCHES]
        return [
            self.pattern.seconds[-1],
            len(self.pattern.seconds),
            self.pattern.reached_s(self.target_ms),
            *others,
        ]

    @property
    def ratios(self) -> list[float]:
        """The last columns of the table."""
        ends_s = self.pattern.seconds[-1]
        best_ms = self.courses["evotune"].best_ms
        return [
            *(ends_s / self.courses[m].reached_s(self.target_ms) for m in OWN),
            *(self.pattern.reached_s(self.target_ms) / self.courses[m].reached_s(self.target_ms) for m in OWN),
            self._random_over_evotune(self.target_ms),
            *(ends_s / self.courses[m].reached_s(TOLERANCE * self.target_ms) for m in OWN),
            self._random_over_evotune(TOLERANCE * self.target_ms),
            self.target_ms / best_ms[min(COMPARED_AT, len(best_ms)) - 1],
        ]

    def _random_over_evotune(self, target_ms: float) -> float:
        evotune_s = self.courses["evotune"].reached_s(target_ms)
        return self.courses["random"].reached_s(target_ms) / evotune_s if math.isfinite(evotune_s) else 0.0


def run(recording: Recording, searcher: Searcher, goes_on: Callable[[int, float], bool]) -> Course:
    """Replay a search while ``goes_on(evaluations, best_ms)``."""
    engine = InlineEngine(evaluator_of(recording, seed=0))
    seconds: list[float] = []
    best_ms: list[float] = []
    now_s, best = 0.0, math.inf
    while goes_on(len(seconds), best):
        asked_s = time.process_time()
        candidate = searcher.ask(())
        now_s += time.process_time() - asked_s
        if candidate is None:
            break
        engine.submit(Job(len(seconds), candidate.config, None, candidate.fidelity_rank))
        (outcome,) = engine.completed(timeout_s=0)
        trial = Trial(len(seconds), candidate, outcome.measurements, outcome.static)
        best = min(best, trial.latency_ms or math.inf)
        now_s += recording.row(candidate.config).seconds
        told_s = time.process_time()
        searcher.tell([feedback_of(trial)])
        now_s += time.process_time() - told_s
        seconds.append(now_s)
        best_ms.append(best)
    return Course(seconds, best_ms)


def study(recording: Recording, seed: int) -> Found:
    """All searches with one seed."""
    search = PatternSearch(recording.space, seed)
    pattern = run(recording, search, lambda *_: search.populations < 2)
    target_ms = pattern.best_ms[-1]
    # Evotune goes on to where its quality is compared; the others stop when they are as good.
    limits = {
        "evotune": (COMPARED_AT, GIVEN_UP_AT),
        "mfbo": (0, GIVEN_UP_AT),
        "random": (0, recording.space.cardinality),
    }
    courses: dict[str, Course] = {}
    for method, (least, most) in limits.items():

        def goes_on(n: int, best_ms: float, least: int = least, most: int = most) -> bool:
            return n < least or (best_ms > target_ms and n < most)

        courses[method] = run(recording, methods.factory(method)(recording, seed, COMPARED_AT), goes_on)
    return Found(pattern, courses)


def table(found: dict[str, list[Found]]) -> str:
    """Markdown, one line per space and one for the median over spaces."""
    head = ["space", "ends, s", "evaluations", "has it, s", *(f"{m}, s" for m in SEARCHES)]
    head += [*(f"ends/{m}" for m in OWN), *(f"has/{m}" for m in OWN), "random/evotune"]
    head += [*(f"~ends/{m}" for m in OWN), "~random/evotune", "quality", "worst"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    per_space: list[list[float]] = []
    for name, runs in found.items():
        times = [median(column) for column in zip(*(r.times for r in runs), strict=True)]
        ratios = [median(column) for column in zip(*(r.ratios for r in runs), strict=True)]
        per_space.append([*ratios, min(r.ratios[-1] for r in runs)])
        lines.append("| " + " | ".join([name, *(f"{t:.0f}" for t in times), *_ratios(per_space[-1])]) + " |")
    *columns, worst = zip(*per_space, strict=True)
    over = [*(median(column) for column in columns), min(worst)]
    return "\n".join([*lines, "| " + " | ".join(["median", *[""] * len(times), *_ratios(over)]) + " |"])


def _ratios(values: Sequence[float]) -> list[str]:
    return [*(f"{v:.1f}x" for v in values[:-2]), *(f"{v:.3f}" for v in values[-2:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default=content.shipped(content.RECORDINGS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    found: dict[str, list[Found]] = {}
    for space in a.spaces:
        recording = open_space(str(space))
        found[recording.name] = [study(recording, seed) for seed in range(a.seeds)]
        print(recording.name, file=sys.stderr)
    runs = [r for each in found.values() for r in each]
    text = NOTE.format(
        spaces=len(found),
        seeds=a.seeds,
        command=shlex.join(["python", *sys.argv]),
        cores=os.cpu_count(),
        python=platform.python_version(),
        numpy=numpy.__version__,
        table=table(found),
        given_up=GIVEN_UP_AT,
        compared=COMPARED_AT,
        tolerance=TOLERANCE - 1,
        runs=len(runs),
        **{f"{m}_found": sum(math.isfinite(r.courses[m].reached_s(r.target_ms)) for r in runs) for m in OWN},
    )
    a.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
