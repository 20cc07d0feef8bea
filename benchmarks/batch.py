"""What many jobs and many look-ups cost the tuner itself.

    python benchmarks/batch.py plan [--jobs 1000]
    python benchmarks/batch.py lookup [--entries 1000]

``plan`` reads a file of jobs, each with an entry and options of its own, over the shipped kernels and their shapes,
and plans them twice: with an empty journal, and with one that knows a run of each. ``lookup`` asks a table for a
problem that it has and for one that is near, as production code would. Nothing is compiled or measured.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import timeit
from pathlib import Path

import evotune


def jobs(n: int, rng: random.Random) -> str:
    """A file of ``n`` jobs that can be planned without a GPU."""
    from evotune import content
    from evotune.kernel import load_kernel

    kernels = [load_kernel(content.find(name, content.KERNELS)) for name in content.shipped(content.KERNELS)]
    places = [
        (kernel.name, shape)
        for kernel in kernels
        if "cpu" in kernel.definition.backends
        for shape, problem in kernel.definition.shapes.items()
        if problem["dtype"] == "float32"
    ]
    entries: list[str] = []
    for i in range(n):
        kernel, shape = rng.choice(places)
        entries.append(f"  - {{kernel: {kernel}, shapes: [{shape}], targets: [cpu], seed: {i}, priority: {i % 7}}}")
    return "\n".join(["defaults: {max_evaluations: 200, provider: none}", "jobs:", *entries]) + "\n"


def plan(n: int) -> None:
    from evotune.batch import plan_batch, read_batch
    from evotune.journal import Journal
    from evotune.session import describe
    from evotune.settings import load
    from evotune.subject import find_subject

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = load(None, {"run.journal": str(folder / "journal.db")}, {})
        (folder / "jobs.yaml").write_text(jobs(n, random.Random(0)), encoding="utf-8")
        for known in ("no run", "a run of each"):
            began_s, began_cpu_s = timeit.default_timer(), time.process_time()
            planned = plan_batch(read_batch(folder / "jobs.yaml", settings), settings, {})
            took_s, cpu_s = timeit.default_timer() - began_s, time.process_time() - began_cpu_s
            print(f"{len(planned.jobs)} jobs, journal with {known}: {took_s:.2f} s, {cpu_s:.2f} s of CPU time")
            if known == "no run":
                with Journal(folder / "journal.db") as journal:
                    for p in planned.jobs:
                        subject = find_subject(p.job.kernel, p.job.settings)
                        wanted = describe(subject.story.problem, subject.target, p.job.settings)
                        described = {**wanted, "device": "a CPU", "versions": {}}
                        journal.open_run(subject.name, subject.source_hash, described).release()


def lookup(n: int) -> None:
    device = "NVIDIA H100 80GB HBM3"
    problem = {"m": 0, "n": 4096, "k": 4096, "dtype": "float16"}
    entry = {"kernel": "matmul", "device": device, "config": {"BLOCK_M": 128}, "source_hash": ""}
    entries = [{**entry, "problem": {**problem, "m": m}} for m in range(1, n + 1)]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        table.write_text(json.dumps({"schema": 1, "entries": entries}), encoding="utf-8")

        def ask(m: int, nearest: bool) -> object:
            return evotune.lookup("matmul", {**problem, "m": m}, device, table=table, nearest=nearest)

        for what, m, nearest in (("a problem of the table", n // 2, False), ("one that is near", 2 * n, True)):
            began_s = timeit.default_timer()
            assert ask(m, nearest) is not None
            first_ms = 1e3 * (timeit.default_timer() - began_s)
            calls = 20_000
            each_us = 1e6 / calls * min(timeit.repeat(lambda: ask(m, nearest), number=calls, repeat=5))  # noqa: B023
            print(f"{n} entries, {what}: first call {first_ms:.1f} ms, then {each_us:.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("plan").add_argument("--jobs", type=int, default=1000)
    parts.add_parser("lookup").add_argument("--entries", type=int, default=1000)
    args = parser.parse_args()
    if args.part == "plan":
        plan(args.jobs)
    else:
        lookup(args.entries)


if __name__ == "__main__":
    main()
