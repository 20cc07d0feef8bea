"""A run on simulated nodes of a Ray cluster beside the same run here, and what a result costs the driver.

    python benchmarks/ray_cluster.py [--rounds 3] [--evaluations 60] [--workers 64] [--results 2000] [--out FILE.md]

Nodes: daemons of four nodes of one core each, all on this machine, so that seconds say nothing about a real
cluster. Each round tunes a kernel by ``--engine local`` and on the nodes, the order alternating, and then times
the two winners in alternating rounds in one process. They agree if the 95 % interval of the ratio holds 1, or if it
lies within 2 %, which is what finals of one and the same configuration differ by on a busy machine.

Driver: as many stations as ``--workers`` that answer at once, kept full. Its overhead is the CPU time of the
driver's process, all threads, per result; wall time is that of all the stations on this machine's cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import ray
from ray.cluster_utils import Cluster

from evotune.baselines import BASELINES
from evotune.budget import Budget
from evotune.engine import Job
from evotune.evaluator import Artifact, Device
from evotune.interval import ratio_ci95
from evotune.journal import Journal
from evotune.ray import Fleet, RayEngine, cluster
from evotune.ray.evaluator import RayEvaluator
from evotune.ray.fleet import Plan
from evotune.result import Result
from evotune.session import tune
from evotune.settings import load
from evotune.space import Config, ConfigSpace
from evotune.subject import find_subject
from evotune.trial import Fidelity, Measurement, Static
from evotune.tuner import Finals, Tuner

SMALL: dict[str, Any] = {"object_store_memory": 80 << 20, "include_dashboard": False}
AGREE_WITHIN = 0.02
ARTIFACT_BYTES = 64 << 10  # of a shipped kernel for a GPU: 9 to 84 KB
SPACE = ConfigSpace.from_dict({name: list(range(16)) for name in "abcd"})


class Quiet:
    """Keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_trial(self, trial: Any, tuner: Any, *, is_best: bool) -> None:
        pass

    def on_note(self, text: str) -> None:
        self.notes.append(text)


# -- the same run -------------------------------------------------------------------------------


def once(kernel: str, engine: str, evaluations: int, seed: int) -> tuple[Result, float]:
    with tempfile.TemporaryDirectory() as folder:
        flags = {"run.engine": engine, "run.target": "cpu", "run.seed": seed, "llm.provider": "none"}
        flags |= {"run.max_evaluations": evaluations, "run.journal": f"{folder}/journal.db"}
        started_s = time.monotonic()
        result = tune(kernel, load(None, flags, {}), observer=Quiet())
        return result, time.monotonic() - started_s


def side_by_side(kernel: str, configs: Sequence[Config]) -> tuple[float, tuple[float, float]]:
    """Latency of the first / that of the second, with its interval, from alternating rounds."""
    subject = find_subject(kernel, load(None, {"run.target": "cpu"}, {}))
    evaluator = subject.open_evaluator()
    try:
        first, second = evaluator.interleave(configs, subject.finals)
    finally:
        evaluator.close()
    return ratio_ci95(first, second)


def compare(kernel: str, rounds: int, evaluations: int) -> list[str]:
    lines = ["| round | load | engine | default, ms | best, ms (95 %) | speed-up (95 %) | s | failures |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    verdicts: list[str] = []
    for i in range(rounds):
        found: dict[str, Result] = {}
        for engine in ("local", "ray")[:: 1 if i % 2 == 0 else -1]:
            load_1min = os.getloadavg()[0]
            result, seconds = once(kernel, engine, evaluations, seed=i)
            found[engine] = result
            assert result.best
            assert result.speedup_ci95
            low, high = result.best["ci95_ms"]
            lines.append(
                f"| {i + 1} | {load_1min:.1f} | {engine} | {result.default['latency_ms']:.4g} | "
                f"{result.best['latency_ms']:.4g} [{low:.4g}, {high:.4g}] | {result.speedup:.3f} "
                f"[{result.speedup_ci95[0]:.3f}, {result.speedup_ci95[1]:.3f}] | {seconds:.0f} | "
                f"{sum(result.failures.values())} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
        configs = [found[engine].best["config"] for engine in ("local", "ray")]  # type: ignore[index]
        ratio, (low, high) = side_by_side(kernel, configs)
        same = configs[0] == configs[1]
        agree = low <= 1 <= high or (low > 1 - AGREE_WITHIN and high < 1 + AGREE_WITHIN)
        verdicts.append(
            f"- {kernel}, round {i + 1}: {'the same configuration' if same else 'different configurations'}; "
            f"local / ray {ratio:.3f} [{low:.3f}, {high:.3f}]: {'agree' if agree else 'do not agree'}"
        )
        print(verdicts[-1], file=sys.stderr, flush=True)
    return [*verdicts, "", *lines]


# -- the driver ---------------------------------------------------------------------------------


class AtOnce:
    """An evaluator that knows everything."""

    fidelities = (Fidelity(1, "low", 5), Fidelity(2, "medium", 15), Fidelity(3, "high", 50))
    provenance = "synthetic"
    device = Device("formula", "formula")

    def compile(self, config: Config) -> Static:
        return Static(0.0, {"registers": 64.0, "spill_bytes": 0.0})

    def pack(self, config: Config) -> Artifact:
        return Artifact(self.compile(config), {"kernel.cubin": bytes(ARTIFACT_BYTES)})

    def accept(self, config: Config, artifact: Artifact) -> None:
        pass

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        return Measurement(fidelity, "synthetic", (1.0 + sum(map(int, config.values())),) * fidelity.reps)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        return [self.measure(c, fidelity) for c in configs]

    def close(self) -> None:
        pass


def per_result(n: int, body: Any) -> str:
    cpu_s, started_s = time.process_time(), time.monotonic()
    body()
    cpu_ms, wall_ms = 1e3 * (time.process_time() - cpu_s) / n, 1e3 * (time.monotonic() - started_s) / n
    return f"{cpu_ms:.2f} | {wall_ms:.2f}"


def keep_full(engine: RayEngine, n: int) -> None:
    """Results of jobs, of which there are always as many as the engine takes."""
    submitted = done = 0
    while done < n:
        while submitted < n and submitted - done < engine.slots:
            engine.submit(Job(submitted, SPACE.default, None))
            submitted += 1
        done += len(engine.completed(0.2))


def driver(workers: int, results: int) -> list[str]:
    notes = Quiet()
    started_s = time.monotonic()
    fleet = Fleet(Plan(lambda folder: AtOnce(), None, SPACE.default, 60.0, uses_gpus=True), notes.on_note)
    fleet.start()
    while len(fleet.members) < workers:  # those that were not ready at first
        fleet.refresh()
        time.sleep(0.2)
    opening_s = time.monotonic() - started_s
    engine = RayEngine(fleet, results)
    lines = [
        f"{len(fleet.members)} stations, {engine.slots} jobs in flight, ready after {opening_s:.0f} s; "
        f"{results} results each:",
        "",
        "| what | driver's CPU, ms per result | wall, ms per result |",
        "|---|---|---|",
    ]
    keep_full(engine, 4 * workers)
    for i in range(3):
        lines.append(f"| the engine alone, {i + 1} | {per_result(results, lambda: keep_full(engine, results))} |")
        print(lines[-1], file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder, "journal.db")) as journal:
        tuner = Tuner(
            BASELINES["random"](SPACE, 0),
            engine,
            RayEvaluator(fleet),
            journal.open_run("formula", "0", {"workers": workers}),
            budget=Budget(results),
            finals=Finals(2, AtOnce.fidelities[-1]),
            names={"kernel": "formula", "target": "formula"},
            llm=dict,
        )
        lines.append(f"| with the tuner and the journal, random draws | {per_result(results, tuner.tune)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    fleet.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", default=["vector_add", "matmul"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--results", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ.update(cluster.STARTED_WITH)
    lines: list[str] = []
    with ExitStack() as stack:
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": args.workers, **SMALL})
        stack.callback(made.shutdown)
        stack.enter_context(cluster.connected(made.address))
        lines += ["", "## What a result costs the driver", "", *driver(args.workers, args.results)]
        for _ in range(4):
            made.add_node(num_cpus=1, **SMALL)
        lines += ["", "## The same run on four simulated nodes"]
        for kernel in args.kernels:
            lines += ["", *compare(kernel, args.rounds, args.evaluations)]
    summary = [
        f"On {datetime.now(timezone.utc).date().isoformat()}; {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, Ray {ray.__version__}.",
    ]
    if args.out:
        command = f"    python benchmarks/ray_cluster.py {' '.join(sys.argv[1:])}"
        args.out.write_text("\n".join(["# A Ray cluster, simulated", "", command, "", *summary, *lines, ""]))


if __name__ == "__main__":
    main()
