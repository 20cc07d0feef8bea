"""Compare the baselines on recorded spaces, and write the table as Markdown.

python benchmarks/baselines.py RECORDING... --seeds 10 --out benchmarks/results/baselines.md
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from importlib.metadata import distributions
from pathlib import Path

from evotune import content
from evotune.baselines import BASELINES
from evotune.compare import Comparison, Progress, compare, format_table, score, write_page, write_plot
from evotune.compare.peers import PEERS

NOTE = """\
# Baselines and peers on recorded spaces

{budget} evaluations a run, {spaces} recorded spaces. Replayed: latencies were measured on the
devices of the recordings, not here; CPU times of the searches were, on {cores} cores with {versions}.
Every method measures the default of the space first, and proposes no illegal configuration and none twice.
Helion's searches are Helion's own at full effort, which end themselves, often before the budget is spent.

    {command}

{table}

`score`: area between the expected best so far of random search (without replacement, closed form) and the
method's mean best so far, as a share of the distance to the optimum: 0 is random search, 1 the optimum at
once. `worst`: lowest score of a space. `time`: the same over recorded compile and benchmark seconds plus the
search's own. `r@k`: optimum / best found after k evaluations. `<=5%`: runs that end within 5 % of the
optimum. `ms/eval`: CPU time of the search per evaluation.

Score of each space:

{per_space}
{skipped}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default=content.shipped(content.RECORDINGS))
    parser.add_argument("--methods", nargs="+", default=[*BASELINES, *PEERS])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    found = compare(a.spaces, a.methods, range(a.seeds), a.budget, out=a.json, on_progress=_show)
    text = describe(found, shlex.join(["python", *sys.argv]))
    a.out.write_text(text, encoding="utf-8")
    if a.report:
        write_page(found, score(found.runs, found.recordings, found.budget), a.report)
    if a.plot:
        write_plot(found, a.plot)
    print(text)


def describe(found: Comparison, command: str) -> str:
    """The results as Markdown."""
    rows = score(found.runs, found.recordings, found.budget)
    names = [r.name for r in found.recordings]
    head = ["", *(r.method for r in rows)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * len(rows)]
    lines += [f"| {n} | " + " | ".join(f"{r.per_space[n]:.3f}" for r in rows) + " |" for n in names]
    return NOTE.format(
        budget=found.budget,
        spaces=len(names),
        cores=os.cpu_count(),
        versions=", ".join([f"Python {platform.python_version()}", *_versions()]),
        command=command,
        table="\n".join("    " + line for line in format_table(rows).splitlines()),
        per_space="\n".join(lines),
        skipped="".join(f"\nSkipped: {m}, {why}.\n" for m, why in found.skipped.items()),
    )


def _versions() -> list[str]:
    known = ("numpy", "optuna", "cmaes", "kernel-tuner", "helion", "torch")
    found = {d.metadata["Name"].replace("_", "-"): d.version for d in distributions()}
    return [f"{name} {found[name]}" for name in known if name in found]


def _show(progress: Progress) -> None:
    print(f"\r{progress.done}/{progress.total}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
