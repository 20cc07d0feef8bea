"""Measure what a warm start is worth on recordings of one kernel on several devices, as Markdown.

python benchmarks/transfer.py --seeds 10 --json transfer.json --out FILE.md

Beside the true sources two that mislead: `inverted` gives the best configuration of the true one the
worst time and so on, `shuffled` gives times to configurations by chance.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from random import Random

from evotune import content, settings
from evotune.compare.runs import open_space, run_search
from evotune.proposers import Searcher
from evotune.replay import Recording
from evotune.session import searcher
from evotune.surrogate import Source
from evotune.transfer import kernel_of

MARKS = (5, 10, 15, 25, 50)
COLD, KINDS = "cold", ("true", "inverted", "shuffled")
Ratios = Sequence[float]
"""Optimum / best found after each of MARKS."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--json", type=Path, help="runs are kept here, and not made again")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    recordings = [open_space(name) for name in content.shipped(content.RECORDINGS)]
    pairs = [(s, t) for s, t in permutations(recordings, 2) if kernel_of(s) == kernel_of(t)]
    done: dict[str, Ratios] = json.loads(a.json.read_text()) if a.json and a.json.exists() else {}
    plans = list(dict.fromkeys((COLD, None, t.name, seed) for _, t in pairs for seed in range(a.seeds)))
    plans += [(k, s.name, t.name, seed) for k in a.kinds for s, t in pairs for seed in range(a.seeds)]
    by_name = {r.name: r for r in recordings}
    for n, (kind, source, target, seed) in enumerate(plans, 1):
        mark = f"{kind} {source} {target} {seed}"
        if mark not in done:
            done[mark] = measure(kind, by_name[source] if source else None, by_name[target], seed)
            if a.json:
                a.json.write_text(json.dumps(done))
        print(f"\r{n}/{len(plans)}", end="", file=sys.stderr, flush=True)
    text = page(done, [(s.name, t.name) for s, t in pairs], a.kinds, a.seeds)
    if a.out:
        a.out.write_text(text, encoding="utf-8")
    print(text)


def measure(kind: str, source: Recording | None, target: Recording, seed: int) -> Ratios:
    """One run of the search on ``target``, warm if there is a source."""

    def make(recording: Recording, seed: int, budget: int) -> Searcher:
        flags = {"run.seed": seed, "run.max_evaluations": budget, "llm.provider": "none"}
        warm = None if source is None else source_of(kind, source, recording, seed)
        return searcher(recording.space, settings.load(None, flags, {}), source=warm)

    run = run_search(target, kind, make, seed, MARKS[-1])
    optimum_ms = min(r.time_ms for r in target.rows.values() if r.time_ms)
    found = [math.inf if ms is None else ms for _, ms in run.evaluations]
    return [optimum_ms / min(found[:k]) for k in MARKS]


def source_of(kind: str, source: Recording, target: Recording, seed: int) -> Source:
    """What a recording tells of another's space, or a distortion of it."""
    configs = [source.space.from_key(key) for key in source.rows]
    losses = [None if r.time_ms is None else math.log(r.time_ms) for r in source.rows.values()]
    timed = [i for i, loss in enumerate(losses) if loss is not None]
    given = sorted(timed, key=lambda i: losses[i] or 0.0)
    taken = {"true": given, "inverted": given[::-1], "shuffled": Random(seed).sample(given, len(given))}[kind]
    other = dict(zip(given, [losses[i] for i in taken], strict=True))
    return Source.of(target.space, [(c, other.get(i)) for i, c in enumerate(configs)])


def page(done: Mapping[str, Ratios], pairs: Sequence[tuple[str, str]], kinds: Sequence[str], seeds: int) -> str:
    """Means over seeds of each pair, and over pairs."""

    def mean(kind: str, source: str | None, target: str, mark: int) -> float:
        return sum(done[f"{kind} {source} {target} {seed}"][mark] for seed in range(seeds)) / seeds

    heads = [f"{kind} r@{k}" for kind in (COLD, *kinds) for k in MARKS]
    lines = ["| from | to | " + " | ".join(heads) + " |", "|---|---|" + "--:|" * len(heads)]
    rows: list[list[float]] = []
    for source, target in pairs:
        row = [mean(COLD, None, target, m) for m in range(len(MARKS))]
        row += [mean(kind, source, target, m) for kind in kinds for m in range(len(MARKS))]
        rows.append(row)
        lines.append(f"| {source} | {target} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    lines.append("| **mean** | | " + " | ".join(f"**{v:.3f}**" for v in means) + " |")
    lines.append("")
    for n, kind in enumerate(kinds, 1):
        share = [row[(n + 1) * len(MARKS) - 1] / row[len(MARKS) - 1] for row in rows]
        below = sum(s < 0.97 for s in share)
        lines.append(
            f"{kind}: at {MARKS[-1]} evaluations {min(share):.3f} of cold on the worst pair; below 0.97 on {below}."
        )
    command = shlex.join(["python", *sys.argv])
    return "\n".join([f"{seeds} seeds, {len(pairs)} pairs: `{command}`", "", *lines]) + "\n"


if __name__ == "__main__":
    main()
