"""One program for six shapes against one configuration for all of them, and against six separate searches.

    python benchmarks/shapes.py [--evaluations 180] [--seeds 5] [--provider mock] [--out FILE.md]

The family is a formula (`evotune.shapes.synthetic`), so the optimum of each shape and the best of all single
configurations are known by enumeration. A score is the geometric mean over the shapes of optimum / true latency
of what a search returned; the searches see noise. Every search measures as many pairs of a shape and a
configuration.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from evotune.evaluator import climb
from evotune.proposers import Feedback
from evotune.session import searcher
from evotune.settings import Settings, load
from evotune.shapes import tune_shapes
from evotune.shapes.synthetic import FIDELITIES, PROBLEMS, FormulaEvaluator, latency_ms, space, subjects
from evotune.shapes.table import ident
from evotune.space import Config
from evotune.trial import Trial
from evotune.tuner import feedback_of

NOTE = """\
# One program for several shapes

{shapes} shapes of a made-up matrix product (`evotune.shapes.synthetic`: a formula, nothing was measured on a
device), {evaluations} pairs of a shape and a configuration for each search, {seeds} seeds. Score: geometric mean
over the shapes of optimum / true latency. Model: {provider}.

    {command}

| | mean | worst | best | branches |
|---|--:|--:|--:|--:|
{rows}

`program` is `evotune run --shapes`; `single, {per_shape} tried` is evotune's search over the geometric mean, where
a configuration costs a pair at each shape; `best single` is the best of all configurations that are legal
everywhere, by enumeration; `table` is a separate search for each shape with its share of the pairs, which
answers for these {shapes} problems alone. Over the best single configuration, the program is
{gain:.2f} times as fast (worst seed {worst:.2f}).

The program of seed 0:

```python
{program}```
"""


class Silent:
    def on_trial(self, *_: object, **__: object) -> None: ...

    def on_note(self, text: str) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=180)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--provider", default="mock")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    optimum_ms, best_single = enumerate_all()
    per_shape = args.evaluations // len(PROBLEMS)
    found: dict[str, list[float]] = {"program": [], f"single, {per_shape} tried": [], "table": []}
    branches: list[int] = []
    program = ""
    for seed in range(args.seeds):
        flags = {"run.seed": seed, "run.max_evaluations": args.evaluations, "llm.provider": args.provider}
        with tempfile.TemporaryDirectory() as folder:
            settings = load(None, {**flags, "run.journal": str(Path(folder) / "j.db")}, {})
            result = tune_shapes("formula", subjects(seed), settings, observer=Silent())
        program = program or result.program or ""
        branches.append((result.program or "").count("return"))
        chosen = {row["shape"]: row["config"] for row in result.shapes}
        searches = (chosen, single(settings, per_shape), separate(settings, per_shape))
        for scores, configs in zip(found.values(), searches, strict=True):
            scores.append(score(configs, optimum_ms))
        print(seed, {name: round(scores[-1], 4) for name, scores in found.items()}, flush=True)
    rows = [line(name, scores, branches if name == "program" else []) for name, scores in found.items()]
    ratios = [s / best_single for s in found["program"]]
    text = NOTE.format(
        shapes=len(PROBLEMS),
        command=shlex.join(["python", *sys.argv]),
        rows="\n".join([*rows, line("best single", [best_single], [])]),
        per_shape=per_shape,
        gain=statistics.mean(ratios),
        worst=min(ratios),
        program=program,
        **{name: getattr(args, name) for name in ("evaluations", "seeds", "provider")},
    )
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


def enumerate_all() -> tuple[dict[str, float], float]:
    """The optimum of each shape, and the score of the best configuration that is legal at all of them."""
    tables: dict[str, dict[str, float]] = {}
    for name, problem in PROBLEMS.items():
        legal = space(problem)
        configs = [legal.config(row) for row in range(legal.cardinality)]
        tables[name] = {ident(c): latency_ms(problem, c) for c in configs}
    optimum_ms = {name: min(table.values()) for name, table in tables.items()}
    shared = [c for c in next(iter(tables.values())) if all(c in table for table in tables.values())]
    return optimum_ms, max(geometric(optimum_ms[n] / t[c] for n, t in tables.items()) for c in shared)


def single(settings: Settings, n: int) -> Mapping[str, Config]:
    """The best of ``n`` configurations, each measured at all shapes."""
    # Legal where K is shortest is legal everywhere.
    search = searcher(space(min(PROBLEMS.values(), key=lambda p: int(p["k"]))), settings)
    evaluators = [FormulaEvaluator(p, settings.run.seed) for p in PROBLEMS.values()]
    tried: list[tuple[float, Config]] = []
    for i in range(n):
        candidate = search.ask(())
        assert candidate is not None
        config = candidate.config
        loss = math.log(geometric(e.measure(config, FIDELITIES[-1]).latency_ms for e in evaluators))
        tried.append((loss, config))
        search.tell([Feedback(i, candidate, loss, fidelity_rank=FIDELITIES[-1].rank)])
    return dict.fromkeys(PROBLEMS, min(tried, key=lambda t: t[0])[1])


def separate(settings: Settings, n: int) -> Mapping[str, Config]:
    """The best of ``n`` configurations of each shape."""
    out: dict[str, Config] = {}
    for name, problem in PROBLEMS.items():
        search, evaluator = searcher(space(problem), settings), FormulaEvaluator(problem, settings.run.seed)
        trials: list[Trial] = []
        for i in range(n):
            candidate = search.ask(())
            assert candidate is not None
            best_ms = min((t.latency_ms for t in trials if t.latency_ms), default=None)
            trials.append(Trial(i, candidate, tuple(climb(evaluator, candidate.config, best_ms))))
            search.tell([feedback_of(trials[-1])])
        out[name] = min(trials, key=lambda t: t.latency_ms or math.inf).config
    return out


def score(configs: Mapping[str, Config], optimum_ms: Mapping[str, float]) -> float:
    return geometric(optimum_ms[name] / latency_ms(PROBLEMS[name], config) for name, config in configs.items())


def geometric(values: Iterable[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def line(name: str, scores: list[float], branches: list[int]) -> str:
    shown = " or ".join(map(str, sorted(set(branches))))
    return f"| {name} | {statistics.mean(scores):.3f} | {min(scores):.3f} | {max(scores):.3f} | {shown} |"


if __name__ == "__main__":
    main()
