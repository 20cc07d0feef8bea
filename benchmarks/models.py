"""What a model is worth to the search, and what a bad one costs it, on recorded spaces.

    python benchmarks/models.py [RECORDING …] [--seeds 5] [--budget 100] [--expert-seeds 10]
                                [--out benchmarks/results/models.md]

The models are scripted, and go the whole way of a real one: provider, policy, sandbox, proposer,
portfolio. They answer at once, so that a run is the same every time:

- `mock`: the shipped one, which knows nothing;
- `nonsense`: prose, HTML, half JSON, illegal configurations, programs with side effects;
- `bad`: legal configurations of the slowest tenth only;
- `expert`: knows one good region: a configuration of the best hundredth (drawn by the seed, never the
  optimum itself) and those that differ from it in one parameter. It does not know which is best.

The score is that of `evotune compare`. For the expert, r@10 is optimum / best after ten evaluations; its
rise over the search without a model is given with a 95 % interval over seeds (Student's t on the mean
over spaces, by seed).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from random import Random

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy.stats import t as student

from evotune import compare
from evotune.asking import open_model, open_prompts
from evotune.compare.runs import open_space, run_search
from evotune.compare.score import Landscape
from evotune.llm import Choice, Completion, MockProvider, Price, Usage
from evotune.proposers.model import Story
from evotune.session import searcher
from evotune.settings import load

SPACES = ["conv_A100", "conv_A4000", "conv_W7800", "convold_3090", "convold_Titan"]
SPACES += ["dedisp_A100", "dedisp_A4000", "dedisp_MI250X", "gemm_3090", "pnpoly_3090"]
MODELS = ("none", "mock", "nonsense", "bad", "expert")
PER_CALL = 8
FREE = Price(0.0, 0.0, 0.0)


class Scripted:
    """Says what a function of the call's number says."""

    name = "replay"  # which is asked at once
    model = "scripted"

    def __init__(self, say) -> None:
        self._say = say
        self.calls = 0

    def complete(self, system, user, *, n):
        text = self._say(self.calls, n)
        self.calls += 1
        return Completion(text, Usage(len(system + user) // 4, len(text) // 4, usd=0.0))


def sorted_configs(recording):
    """All configurations that work, the fastest first."""
    timed = [(row.time_ms, key) for key, row in recording.rows.items() if row.time_ms is not None]
    return [recording.space.from_key(key) for _, key in sorted(timed)]


def nonsense(recording, seed):
    rng = Random(seed)
    names = list(recording.space.names)

    def say(call, n):
        return [
            "I would rather talk about the weather.",
            "<html><body>Please log in</body></html>",
            '```json\n{"configs": [{"' + names[0] + '": 1',
            json.dumps({"configs": [{name: rng.randrange(10**6) for name in names} for _ in range(n)]}),
            "```python\nimport os\ndef get_kernel_config():\n    os.system('true')\n    return {}\n```",
        ][call % 5]

    return Scripted(say)


def bad(recording, seed):
    rng = Random(seed)
    configs = sorted_configs(recording)
    slowest = configs[-max(PER_CALL, len(configs) // 10) :]
    return Scripted(lambda call, n: json.dumps({"configs": rng.sample(slowest, min(n, len(slowest)))}))


def expert(recording, seed):
    rng = Random(seed)
    configs = sorted_configs(recording)
    centre = rng.choice(configs[1 : max(3, len(configs) // 100)])
    region = [centre, *recording.space.neighbors(centre)]
    return Scripted(lambda call, n: json.dumps({"configs": rng.sample(region, min(n, len(region)))}))


def provider_of(model, recording, seed):
    if model == "mock":
        return MockProvider(seed)
    return {"nonsense": nonsense, "bad": bad, "expert": expert}[model](recording, seed)


class WithModel:
    """The whole portfolio with a model, as a search that can be compared."""

    def __init__(self, model, recording, seed, budget) -> None:
        self._stack = ExitStack()
        self.heard = 0
        self.notes = []
        settings = load(None, {"run.seed": seed, "run.max_evaluations": budget}, {})
        prompts = open_prompts(settings)

        def make(islands):
            if model == "none":
                return None
            choice = Choice(provider_of(model, recording, seed), FREE, model)
            given = {"space": recording.space, "prompts": prompts, "run": None, "stack": self._stack}
            given["on_note"] = self.notes.append
            return open_model(settings, choice, Story(recording.name), islands, **given)

        self._portfolio = searcher(recording.space, settings, make)
        self.tell = self._portfolio.tell

    def ask(self, pending):
        candidate = self._portfolio.ask(pending)
        self.heard += candidate is not None and candidate.origin in ("llm", "mock")
        return candidate

    def close(self) -> None:
        self._stack.close()


def run(model, recording, seed, budget, heard):
    made = []

    def factory(recording, seed, budget):
        made.append(WithModel(model, recording, seed, budget))
        return made[0]

    done = run_search(recording, model, factory, seed, budget)
    heard.append((made[0].heard, any("not asked any more" in note for note in made[0].notes)))
    return done


def all_models(recordings, models, seeds, budget):
    """Scores of the search with each model, and without."""
    models = ["none", *(m for m in MODELS if m in models and m != "none")]
    heard = {m: [] for m in models}
    runs = []
    for recording in recordings:
        for seed in range(seeds):
            runs += [run(model, recording, seed, budget, heard[model]) for model in models]
        print(recording.name, file=sys.stderr, flush=True)
    rows = {r.method: r for r in compare.score(runs, recordings, budget)}
    lines = ["| model | score | difference | worst space | trials of the model, per run | given up, of runs |"]
    lines.append("|---|---|---|---|---|---|")
    for model in models:
        row, less = rows[model], rows[model].score - rows["none"].score
        trials, given_up = (statistics.mean(column) for column in zip(*heard[model], strict=True))
        lines.append(
            f"| {model} | {row.score:.3f} | {less:+.3f} | {row.worst:.3f} | {trials:.1f} | {given_up:.0%} |"
        )
    return lines


def knowing_model(recordings, seeds, budget):
    """r@10 with the expert against without, by seed."""
    heard, differences, table = [], [], {}
    for seed in range(seeds):
        of_seed = []
        for recording in recordings:
            landscape = Landscape(recording)
            r10 = {}
            for model in ("none", "expert"):
                done = run(model, recording, seed, budget, heard)
                r10[model] = landscape.optimum_ms / landscape.course(done, budget).best_ms[9]
            table.setdefault(recording.name, []).append((r10["none"], r10["expert"]))
            of_seed.append(r10["expert"] - r10["none"])
        differences.append(statistics.mean(of_seed))
        print(f"seed {seed}: {differences[-1]:+.3f}", file=sys.stderr, flush=True)
    half = student.ppf(0.975, seeds - 1) * statistics.stdev(differences) / np.sqrt(seeds)
    rise = statistics.mean(differences)
    lines = ["| space | r@10 without | with the expert |", "|---|---|---|"]
    for name, pairs in table.items():
        without, with_ = np.mean(pairs, axis=0)
        lines.append(f"| {name} | {without:.3f} | {with_:.3f} |")
    text = f"r@10 rises by {rise:.3f}, 95 % interval [{rise - half:.3f}, {rise + half:.3f}], over {seeds} seeds."
    return [*lines, "", text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", default=SPACES)
    parser.add_argument("--model", action="append", choices=MODELS, help="these alone, beside none; several times")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--expert-seeds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    recordings = [open_space(name) for name in args.recordings]
    lines = [f"The score over {len(recordings)} spaces, {args.seeds} seeds, {args.budget} evaluations:", ""]
    lines += all_models(recordings, args.model or MODELS, args.seeds, args.budget)
    if "expert" in (args.model or MODELS):
        lines += ["", "A model that knows one good region, after ten evaluations:", ""]
        lines += knowing_model(recordings, args.expert_seeds, 12)
    print("\n".join(lines))
    if args.out:
        command = f"    python benchmarks/models.py {' '.join(sys.argv[1:])}"
        head = ["# What a model is worth, and what a bad one costs", "", command, ""]
        args.out.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
