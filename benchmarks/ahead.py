"""What a search finds with more and more configurations compiling ahead of the one that is measured.

    python benchmarks/ahead.py --runs ahead.jsonl --out FILE.md

One device measures one configuration at a time, and so many compile meanwhile as are ahead, for the seconds that a
recording says that each took; the search itself takes no time on that clock. Runs are kept in the file ``--runs``,
and not made again.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean, mean

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from evotune import content, settings
from evotune.compare.runs import open_space
from evotune.engine import InlineEngine, Job
from evotune.replay import Recording, ReplayEvaluator
from evotune.session import searcher
from evotune.trial import Trial
from evotune.tuner import feedback_of

BUDGETS = (10, 20, 40, 60)
LONGEST = max(BUDGETS)


@dataclass(frozen=True)
class Run:
    """One search: optimum over best of the first so many trials, by :data:`BUDGETS` (0 if none worked), and the
    seconds that all of them took."""

    space: str
    ahead: int
    seed: int
    found: list[float]
    seconds: float


def simulate(recording: Recording, ahead: int, seed: int) -> Run:
    """Run the default search on a simulated clock; with nothing ahead, the device waits for each compilation."""
    flags = {"run.seed": seed, "run.max_evaluations": LONGEST, "llm.provider": "none"}
    search = searcher(recording.space, settings.load(None, flags, {}))
    engine = InlineEngine(ReplayEvaluator(recording))
    trials: list[Trial] = []
    flying: list[tuple[float, Trial]] = []  # when each has been measured, in that order
    compilers_s = [0.0] * max(1, ahead)  # when each is free
    clock_s = device_s = 0.0
    while len(trials) < LONGEST or flying:
        while len(flying) < 1 + ahead and len(trials) < LONGEST:
            candidate = search.ask([trial.config for _, trial in flying])
            assert candidate is not None, "the space is larger than the budget"
            engine.submit(Job(len(trials), candidate.config, None, None))
            (outcome,) = engine.completed(timeout_s=0)
            trial = Trial(len(trials), candidate, outcome.measurements, outcome.static)
            trials.append(trial)
            row = recording.row(candidate.config)
            compiled_s = max(clock_s, heapq.heappop(compilers_s)) + row.compile_ms / 1e3
            heapq.heappush(compilers_s, compiled_s)
            device_s = max(device_s, compiled_s) + row.bench_ms / 1e3
            flying.append((device_s, trial))
        clock_s, trial = flying.pop(0)
        search.tell([feedback_of(trial)])
    optimum_ms = recording.meta["optimum_ms"]
    worked = [[t.latency_ms for t in trials[:n] if t.latency_ms is not None] for n in BUDGETS]
    return Run(recording.name, ahead, seed, [optimum_ms / min(w) if w else 0.0 for w in worked], clock_s)


def table(runs: Sequence[Run], spaces: Sequence[str], aheads: Sequence[int]) -> str:
    """Means of what was found, by budget and by space, and the time in units of the shortest."""
    lines = ["| ahead | " + " | ".join(f"r@{n}" for n in BUDGETS) + " | worst space, r@60 | seconds of 60 |"]
    lines.append("| ---: |" + " ---: |" * (len(BUDGETS) + 2))
    for ahead in aheads:
        mine = [r for r in runs if r.ahead == ahead]
        found = [f"{mean(r.found[i] for r in mine):.3f}" for i in range(len(BUDGETS))]
        worst = min(mean(r.found[-1] for r in mine if r.space == s) for s in spaces)
        seconds = geometric_mean([mean(r.seconds for r in mine if r.space == s) for s in spaces])
        lines.append(f"| {ahead} | " + " | ".join(found) + f" | {worst:.3f} | {seconds:.3g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=content.shipped(content.RECORDINGS))
    parser.add_argument("--ahead", nargs="+", type=int, default=[0, 1, 2, 4, 8, 16, 64])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--runs", type=Path, required=True, help="runs are kept here, and not made again")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    kept = [Run(**json.loads(line)) for line in a.runs.read_text().splitlines()] if a.runs.exists() else []
    runs = {(r.space, r.ahead, r.seed): r for r in kept}
    recordings = {found.name: found for found in map(open_space, a.spaces)}
    plan = [(s, n, seed) for seed in range(a.seeds) for s in recordings for n in a.ahead]
    for done, (space, ahead, seed) in enumerate(plan, 1):
        if (space, ahead, seed) not in runs:
            runs[space, ahead, seed] = made = simulate(recordings[space], ahead, seed)
            with a.runs.open("a") as file:
                file.write(json.dumps(asdict(made)) + "\n")
        print(f"\r{done}/{len(plan)}", end="", file=sys.stderr, flush=True)
    found = table([runs[key] for key in plan], list(recordings), a.ahead)
    text = f"    python benchmarks/ahead.py {shlex.join(sys.argv[1:])}\n\n{found}\n"
    if a.out:
        a.out.write_text(text, encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
