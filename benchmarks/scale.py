"""Time to 95 % of the optimum with more and more workers, on recorded spaces with a simulated clock.

    python benchmarks/scale.py --runs scale.jsonl --out FILE.md --plot FILE.png
    python benchmarks/scale.py --pending mean best draw penalty nothing --workers 8 64 --runs pending.jsonl

Each worker compiles a configuration and runs it, for the seconds that the recording says these took, and is
given the next one at once; the search itself takes no time on that clock. Runs are kept in the file
``--runs``, and not made again. ``--pending`` is what the search assumes of configurations in flight.
"""

from __future__ import annotations

import argparse
import copy
import heapq
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import geometric_mean, mean, median
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from evotune import content, settings
from evotune.compare.runs import open_space
from evotune.engine import InlineEngine, Job
from evotune.replay import Recording, ReplayEvaluator
from evotune.session import searcher
from evotune.surrogate.view import View
from evotune.trial import Trial
from evotune.tuner import feedback_of

TARGET = 0.95
BUDGET = 600
WANTED = {8: 0.9, 64: 0.6}
Imagine = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Run:
    """One search until it came within the target, or spent its budget: then ``seconds`` is None.

    ``evaluations`` had ended by then; ``decisions`` is the longest chain of proposals that each knew the
    outcome of the one before, to the one that came within the target.
    """

    space: str
    pending: str
    workers: int
    seed: int
    seconds: float | None
    evaluations: int
    decisions: int
    search_ms: float
    """Processor time of the search for each evaluation."""


def simulate(recording: Recording, pending: str, workers: int, seed: int) -> Run:
    """Run the default search on a simulated clock."""
    flags = {"run.seed": seed, "run.max_evaluations": BUDGET, "llm.provider": "none"}
    search = searcher(recording.space, settings.load(None, flags, {}))
    engine = InlineEngine(ReplayEvaluator(recording))
    enough_ms = recording.meta["optimum_ms"] / TARGET
    # In flight: when each ends, its number, the length of its chain of decisions, and what will be known then.
    flying: list[tuple[float, int, int, Trial]] = []
    clock_s, begun, ended, longest, search_s = 0.0, 0, 0, 0, 0.0
    while True:
        while len(flying) < workers and begun < BUDGET:
            started_s = time.process_time()
            candidate = search.ask([trial.config for *_, trial in flying])
            search_s += time.process_time() - started_s
            if candidate is None:
                break
            engine.submit(Job(begun, candidate.config, None, None))
            (outcome,) = engine.completed(timeout_s=0)
            trial = Trial(begun, candidate, outcome.measurements, outcome.static)
            heapq.heappush(flying, (clock_s + (trial.cost_s or 0.0), begun, longest + 1, trial))
            begun += 1
        if not flying:
            return Run(recording.name, pending, workers, seed, None, ended, longest, 1e3 * search_s / ended)
        clock_s, _, chain, trial = heapq.heappop(flying)
        ended, longest = ended + 1, max(longest, chain)
        started_s = time.process_time()
        search.tell([feedback_of(trial)])
        search_s += time.process_time() - started_s
        if trial.latency_ms is not None and trial.latency_ms <= enough_ms:
            return Run(recording.name, pending, workers, seed, clock_s, ended, chain, 1e3 * search_s / ended)


# -- what is assumed of configurations in flight -------------------------------------------------


def assuming(loss: Callable[[Any, float, float, int], float]) -> Imagine:
    """An outcome for each by its predicted target and variance."""

    def imagining(view: Any, keys: Any) -> Any:
        other: Any = copy.copy(view)
        other._posterior = copy.copy(other._posterior)
        _, trends = other._trend(other._expected(keys))
        for n, (x, trend) in enumerate(zip(other._encoding(keys), trends, strict=True)):
            predicted, variance = other._posterior.predict(x[None], trend[None])
            other._posterior.add(x, trend, loss(view, float(predicted[0]), float(variance[0]), n))
        return other

    return imagining


def best(view: Any, predicted: float, variance: float, n: int) -> float:
    """The constant liar (Ginsbourger, Le Riche & Carraro 2010) with the best so far."""
    return float(view._best)


def draw(view: Any, predicted: float, variance: float, n: int) -> float:
    """Drawn from the prediction: the randomness of Thompson sampling, one configuration after another."""
    rng = np.random.default_rng([len(view._ran.rows), n])
    return predicted + math.sqrt(variance) * float(rng.standard_normal())


def penalty(view: Any, keys: Any) -> Any:
    """No outcome; utility falls with the correlation with what is in flight (after Gonzalez et al. 2016)."""
    other: Any = copy.copy(view)
    posterior: Any = other._posterior
    _, trends = other._trend(other._expected(keys))
    log = np.matmul(other._encoding(keys), posterior._table)
    shared = posterior._to_pool(log, np.zeros(len(keys)), trends) / np.exp(posterior._hyper.signal)
    log_share = np.log1p(-0.999 * np.clip(shared, 0.0, 1.0) ** 2).sum(0)
    other.utility_of_pool = lambda: view.utility_of_pool() + log_share
    return other


def _no_outcome(view: Any, keys: Any) -> Any:
    return view


PENDING: dict[str, Imagine] = {
    "mean": View.imagining,  # what evotune does: the kriging believer, of the same authors as the liar
    "best": assuming(best),
    "draw": assuming(draw),
    "penalty": penalty,
    "nothing": _no_outcome,  # they are not proposed again, and that is all
}


# -- the page ------------------------------------------------------------------------------------


def efficiency(runs: Sequence[Run], space: str, workers: int) -> float:
    """Median time with one worker over the workers' together."""
    return _seconds(runs, space, 1) / (workers * _seconds(runs, space, workers))


def limit(runs: Sequence[Run], space: str, workers: int) -> float:
    """The efficiency of a search that needs as many evaluations as with one worker, and two decisions in
    sequence: an opening that knows nothing, and a choice that knows what came of it. One where the opening
    finds it."""
    alone = median(r.evaluations for r in _of(runs, space, 1))
    fewest = min(2.0, *(median(r.decisions for r in _of(runs, space, w)) for w in {r.workers for r in runs}))
    return min(1.0, alone / (workers * fewest))


def _of(runs: Iterable[Run], space: str, workers: int) -> list[Run]:
    return [r for r in runs if r.space == space and r.workers == workers]


def _seconds(runs: Sequence[Run], space: str, workers: int) -> float:
    return median(math.inf if r.seconds is None else r.seconds for r in _of(runs, space, workers))


def tables(runs: Sequence[Run], spaces: Sequence[str], workers: Sequence[int]) -> str:
    """Seconds, efficiencies with their limits, and how the search came there."""
    rule = "| --- |" + " ---: |" * len(workers)
    head = "| space | " + " | ".join(map(str, workers)) + " |\n" + rule
    seconds = [[f"{_seconds(runs, s, w):.3g}" for w in workers] for s in spaces]
    shares = [[f"{efficiency(runs, s, w):.2f} ({limit(runs, s, w):.2f})" for w in workers] for s in spaces]
    both = [(efficiency, "geometric mean"), (limit, "limit, geometric mean")]
    means = [[f"**{geometric_mean([f(runs, s, w) for s in spaces]):.2f}**" for w in workers] for f, _ in both]
    came = [[_came(_of(runs, s, w)) for w in workers] for s in spaces]
    names = [*spaces, *(name for _, name in both)]
    return (
        f"Seconds on the simulated clock to {TARGET:.0%} of the optimum, median:\n\n{head}\n"
        f"{_rows(spaces, seconds)}\n\nEfficiency, and in brackets its limit:\n\n"
        f"{head}\n{_rows(names, [*shares, *means])}\n\n"
        f"Evaluations / decisions in sequence, medians:\n\n{head}\n{_rows(spaces, came)}\n"
    )


def _came(runs: Sequence[Run]) -> str:
    return f"{median(r.evaluations for r in runs):g} / {median(r.decisions for r in runs):g}"


def _rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {name} | " + " | ".join(row) + " |" for name, row in zip(names, rows, strict=True))


def compared(runs: Sequence[Run], spaces: Sequence[str], workers: Sequence[int]) -> str:
    """Ways to treat what is in flight beside each other: their times over those of ``mean``."""
    kinds = list(dict.fromkeys(r.pending for r in runs))
    by_kind = {kind: [r for r in runs if r.pending == kind] for kind in kinds}
    head = "| in flight | " + " | ".join(f"{w} workers" for w in workers) + " | search, ms |"
    lines = [head, "| --- |" + " ---: |" * (len(workers) + 1)]
    for kind, mine in by_kind.items():
        ratios = [
            geometric_mean([_mean_s(mine, s, w) / _mean_s(by_kind["mean"], s, w) for s in spaces]) for w in workers
        ]
        ms = mean(r.search_ms for r in mine if r.workers == max(workers))
        lines.append(f"| {kind} | " + " | ".join(f"{r:.2f}" for r in ratios) + f" | {ms:.1f} |")
    return "\n".join(lines)


def _mean_s(runs: Sequence[Run], space: str, workers: int) -> float:
    return mean(math.inf if r.seconds is None else r.seconds for r in _of(runs, space, workers))


def plot(runs: Sequence[Run], spaces: Sequence[str], workers: Sequence[int], out: Path) -> None:
    """Speed-up over one worker, with the line that nothing can be expected to pass."""
    figure: Any = import_module("matplotlib.figure").Figure(figsize=(8, 5), layout="constrained")
    import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    ax: Any = figure.subplots()
    ax.plot(workers, workers, color="0.6", linestyle=":", label="as many times as workers")
    for n, space in enumerate(spaces):
        gains = [_seconds(runs, space, 1) / _seconds(runs, space, w) for w in workers]
        ax.plot(workers, gains, marker="o", markersize=3, label=space, linestyle="-" if n < 10 else "--")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.set_xlabel("workers")
    ax.set_ylabel(f"speed-up of the time to {TARGET:.0%} of the optimum")
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=content.shipped(content.RECORDINGS))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pending", nargs="+", default=["mean"], choices=list(PENDING))
    parser.add_argument("--runs", type=Path, required=True, help="runs are kept here, and not made again")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    a = parser.parse_args()
    kept = [Run(**json.loads(line)) for line in a.runs.read_text().splitlines()] if a.runs.exists() else []
    runs = {(r.space, r.pending, r.workers, r.seed): r for r in kept}
    recordings = {found.name: found for found in map(open_space, a.spaces)}
    spaces = list(recordings)
    plan = [(s, p, w, n) for s in spaces for p in a.pending for w in a.workers for n in range(a.seeds)]
    for n, (space, pending, workers, seed) in enumerate(plan, 1):
        if (space, pending, workers, seed) not in runs:
            setattr(View, "imagining", PENDING[pending])  # noqa: B010 - a method is not assigned to by name
            made = simulate(recordings[space], pending, workers, seed)
            runs[space, pending, workers, seed] = made
            with a.runs.open("a") as file:
                file.write(json.dumps(asdict(made)) + "\n")
        print(f"\r{n}/{len(plan)}", end="", file=sys.stderr, flush=True)
    found = [runs[key] for key in plan]
    if len(a.pending) > 1:
        text = compared(found, spaces, a.workers)
    else:
        text = f"    python benchmarks/scale.py {shlex.join(sys.argv[1:])}\n\n{tables(found, spaces, a.workers)}"
    if a.out:
        a.out.write_text(text, encoding="utf-8")
    if a.plot:
        plot(found, spaces, a.workers, a.plot)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
