"""What each ingredient of a prompt costs and is worth: the same runs with all of them, and with one left out.

    python benchmarks/ablation.py [KERNEL_OR_RECORDING] [--evaluations 24] [--seeds 1] [--provider openai]
                                  [--model M] [--base-url U] [--only source --only failures] [--out FILE]

Each run is a real one; every prompt that was built in it is kept and searched. `tokens` are those of a
prompt, estimated at four characters each; `in prompts` is the share of prompts in which the ingredient
stands: 0 % in its own row, or the command fails. In the first row, 0 % means that this kernel or these
trials have nothing to tell of it. `best` is default / best of the finals.

Without `--provider` the answers are those of the mock, asked at every third evaluation: tokens are the result, and
`best` is noise. With a model (a key, and a limit in EVOTUNE_LLM_MAX_USD) `best` over several seeds says
what an ingredient is worth.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# What the shipped templates write where an ingredient stands.
MARKS = {
    "source": "\nSource:\n",
    "problem": "\nProblem: ",
    "roofline": "FLOP/byte",
    "device": "\nDevice: ",
    "constraints": "Each constraint must hold",
    "incumbent": '"incumbent"',
    "top": "\nBest so far",
    "failures": "\nThese failed",
    "static": "\nThe fastest, compiled",
    "untouched": "\nNobody has varied",
    "tried": "have been tried",
    "focus": "\nFocus: ",
}


class Guessing:
    """The mock, which is asked at once, in the place of a real model."""

    name, model = "replay", "guessing"

    def complete(self, system, user, *, n):
        from evotune.llm import MockProvider

        return MockProvider().complete(system, user, n=n)


class Silent:
    def on_trial(self, *_, **__) -> None: ...

    def on_note(self, text: str) -> None: ...


def runs(args, without: str | None):
    """The prompts of all runs and the speed-ups they found."""
    from evotune import asking, session
    from evotune.llm import Choice, Price, PromptBuilder
    from evotune.proposers import portfolio
    from evotune.settings import load

    prompts, found = [], []
    build = PromptBuilder.build

    def keep(self, context):
        prompts.append(build(self, context))
        return prompts[-1]

    PromptBuilder.build = keep
    often: dict[str, int] = {}
    if args.provider is None:
        # Every third evaluation is the model's for as long as a run is being opened, however bad its ideas.
        portfolio.OPENING_EARNINGS = 0.0
        often = {"search.start_points": args.evaluations, "llm.configs_per_call": 1}
        asking.resolve = lambda options, environ: Choice(Guessing(), Price(0.0, 0.0, 0.0), "guesses")
    try:
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                flags = {
                    "run.seed": seed,
                    "run.max_evaluations": args.evaluations,
                    "run.journal": str(Path(folder) / "j.db"),
                    "llm.provider": args.provider,
                    "llm.model": args.model,
                    "llm.base_url": args.base_url,
                    **often,
                    **({f"prompt.{without}": False} if without else {}),
                }
                result = session.tune(args.kernel, load(None, flags, os.environ), observer=Silent())
                found.append(result.speedup or math.nan)
    finally:
        PromptBuilder.build = build
    return [p.system + p.user for p in prompts], found


def main() -> None:
    from evotune.llm.prompt import INGREDIENTS
    from evotune.llm.provider import estimate_tokens

    assert set(MARKS) == set(INGREDIENTS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", nargs="?", default="kernels/softmax.py")
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--provider")
    parser.add_argument("--model")
    parser.add_argument("--base-url")
    parser.add_argument("--only", action="append", choices=INGREDIENTS, help="leave out these alone, one by one")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = ["| left out | prompts | tokens | in prompts | best |", "|---|---|---|---|---|"]
    leaked = []
    for name in [None, *(args.only or INGREDIENTS)]:
        prompts, found = runs(args, name)
        told = {n: sum(mark in p for p in prompts) / max(1, len(prompts)) for n, mark in MARKS.items()}
        if name is None:
            shown = ", ".join(f"{n} {share:.0%}" for n, share in told.items())
        else:
            shown = f"{told[name]:.0%}"
            leaked += [name] if told[name] else []
        tokens = statistics.mean(map(estimate_tokens, prompts)) if prompts else 0
        best = statistics.geometric_mean(found)
        lines.append(f"| {name or 'nothing'} | {len(prompts)} | {tokens:.0f} | {shown} | {best:.3f} |")
        print(lines[-1], flush=True)
    if args.out:
        command = f"    python benchmarks/ablation.py {' '.join(sys.argv[1:])}"
        args.out.write_text("\n".join(["# What a prompt is made of", "", command, "", *lines, ""]))
    if leaked:
        sys.exit(f"left out and told all the same: {', '.join(leaked)}")


if __name__ == "__main__":
    main()
