"""Our searches in Helion beside Helion's own, over the same made-up landscape and a simulated clock.

    HELION_SKIP_CACHE=1 python benchmarks/helion_plugin.py [--seeds 10] [--out benchmarks/results/helion_plugin.md]

All search the space that Helion derives for a matrix product of 4096 x 4096 x 4096 in bfloat16, for an H100
that is not there. Helion's searches, seeds, deduplication and finalisation are its own; in place of a GPU
a formula tells each latency, and how long compiling takes. It is no model of a GPU's speed: it has what
makes real spaces hard, and was written before any search was run on it.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import inspect
import math
import os
import random
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median

import helion
import helion.language as hl
import torch
from helion.autotuner import search_algorithms
from helion.autotuner.benchmark_provider import BenchmarkProvider, BenchmarkResult
from helion.autotuner.effort_profile import get_effort_profile

from evotune.helion.headless import H100, fake_arguments, pretended

# PatternSearch first: EvoTune is given a fifth of the evaluations that it made with the same seed.
METHODS = ("PatternSearch", "LFBOTreeSearch", "RandomSearch", "EvoTune", "MultiFidelityBayesianSearch")

SIZE = 4096
PROCESSORS, SHARED_BYTES, REGISTERS = 132, 232_448, 65_536
PEAK_FLOPS = 989e12  # H100 SXM5 data sheet, dense bfloat16
COMPILE_JOBS = 16
BENCH_S = 0.25  # checking and timing one configuration, as Helion does
COMPILE_TIMEOUT_S = 60.0
TIE = 0.005  # half of what nothing in the landscape explains
NOISE = 0.015  # of a first timing; 1 to 3.5 % are usual (pytorch/helion#3519)


@dataclass(frozen=True)
class Outcome:
    """What the landscape says of a configuration; ``latency_ms`` is inf if it failed."""

    latency_ms: float
    compile_s: float
    status: str = "ok"


def landscape(config: dict) -> Outcome:
    """Three valleys (pointers and flat, descriptors and flat, descriptors and persistent), between which
    several choices must change together; smaller effects of all other parameters; failures."""
    m, n, k = (math.log2(b) for b in config["block_sizes"])
    warps, stages = config["num_warps"], config["num_stages"]
    is_descriptor = [i == "tensor_descriptor" for i in config["indexing"][:2]]
    is_persistent = config["pid_type"] != "flat"
    unroll = config["range_unroll_factors"][1]
    stages = config["range_num_stages"][1] or stages
    size = m + n + k
    compile_s = 0.6 + 0.4 * unroll + 2.0 ** (size - 19) + 0.1 * stages

    # -- what fails ----------------------------------------------------------------------------
    if compile_s > COMPILE_TIMEOUT_S:
        return Outcome(math.inf, COMPILE_TIMEOUT_S, "timeout")
    shared_bytes = (2 ** (m + k) + 2 ** (k + n)) * 2 * stages
    registers = 2 ** (m + n) / (32 * warps) + 32 + 8 * unroll
    if shared_bytes > SHARED_BYTES or registers > 1024:
        return Outcome(math.inf, compile_s, "error")
    if all(is_descriptor) and ((unroll >= 3 and stages >= 5) or warps < 2):
        return Outcome(math.inf, compile_s, "error")

    # -- valleys -------------------------------------------------------------------------------
    log_warps = math.log2(warps)
    if all(is_descriptor) and is_persistent:
        efficiency, centre = 0.80, (7, 8, 6, 3, 4)
    elif all(is_descriptor):
        efficiency, centre = 0.74, (7, 7, 7, 2, 3)
    elif not any(is_descriptor):
        efficiency, centre = (0.62 if is_persistent else 0.68), (7, 7, 5, 2, 4)
    else:
        efficiency, centre = 0.50, (7, 7, 6, 2, 3)
    weights = (0.10, 0.10, 0.08, 0.12, 0.02)
    here = (m, n, k, log_warps, stages)
    cost = 1.0 + sum(w * abs(a - b) ** 1.5 for w, a, b in zip(weights, here, centre, strict=True))

    # -- registers, waves, traffic -------------------------------------------------------------
    cap = config.get("maxnreg") or 255
    cost *= 1 + 0.6 * max(0.0, registers - cap) / cap
    used = max(1.0, min(registers, cap)) * 32 * warps
    resident = max(1, min(int(SHARED_BYTES // shared_bytes), int(REGISTERS // used), 64 // warps))
    tiles = math.ceil(SIZE / 2**m) * math.ceil(SIZE / 2**n)
    if is_persistent:
        programs = PROCESSORS * config.get("num_sm_multiplier", 1)
        cost *= 1 + 0.04 * abs(math.log2(programs / (PROCESSORS * resident)))
    slots = PROCESSORS * resident
    cost *= 0.7 + 0.3 * math.ceil(tiles / slots) * slots / tiles
    group = math.log2(config["l2_groupings"][0])
    best_group = 2 if is_persistent else 4
    if config["loop_orders"][0] == [1, 0]:
        best_group, cost = best_group - 1, cost * 1.01
    cost *= 1 + 0.02 * abs(group - best_group)

    cost *= small_things(config, is_descriptor=all(is_descriptor), is_persistent=is_persistent)
    return Outcome(2 * SIZE**3 / (PEAK_FLOPS * efficiency) * 1e3 * cost, compile_s)


def small_things(config: dict, *, is_descriptor: bool, is_persistent: bool) -> float:
    """Each is a few percent of latency; some change sign from valley to valley."""
    pointers = not any(i == "tensor_descriptor" for i in config["indexing"][:2])
    first, second = config["load_eviction_policies"]
    is_wide = config["block_sizes"][1] >= 128
    cost = {0: 1.0, 1: 1.0, 2: 0.97 if pointers else 1.03, 3: 1.05, 4: 1.07}[config["range_unroll_factors"][1]]
    cost *= {None: 1.0, False: 1.04, True: 0.99 if is_descriptor else 1.01}[config["range_multi_buffers"][1]]
    cost *= {None: 1.0, False: 1.01, True: 0.98 if is_persistent else 1.0}[config["range_flattens"][1]]
    cost *= 1 + 0.01 * config["range_unroll_factors"][0]
    cost *= {"": 1.0, "first": 1.02, "last": 0.985}[first] * {"": 1.0, "first": 0.99, "last": 1.01}[second]
    cost *= 0.99 if config["host_tensor_descriptors"] else 1.0
    cost *= (0.98 if is_wide else 1.03) if config["indexing"][2] == "tensor_descriptor" else 1.0
    return cost * (1 + 0.01 * drawn(sorted(config.items())))  # nothing explains the last percent


def drawn(*of: object) -> float:
    """A number in [0, 1) that depends on nothing else."""
    return int(hashlib.sha256(repr(of).encode()).hexdigest()[:12], 16) / 16**12


def in_parallel(seconds: list[float]) -> float:
    """How long jobs take that are begun in this order on ``COMPILE_JOBS`` cores."""
    free = [0.0] * COMPILE_JOBS
    for s in seconds:
        heapq.heapreplace(free, free[0] + s)
    return max(free, default=0.0)


class Clock:
    """Seconds that a run would have taken, and how much was measured in it."""

    def __init__(self, seed: int) -> None:
        self.seconds = 0.0
        self.evaluations = 0
        self._seed = seed
        self._timed: dict[str, int] = {}

    def first_time(self, configs: list[dict]) -> list[Outcome]:
        """Compile together and time one after the other."""
        found = [landscape(c) for c in configs]
        self.evaluations += len(found)
        self.seconds += in_parallel([o.compile_s for o in found])
        self.seconds += BENCH_S * sum(o.status == "ok" for o in found)
        return [
            replace(o, latency_ms=o.latency_ms * self._noise(c, NOISE)) for c, o in zip(configs, found, strict=True)
        ]

    def again(self, config: dict, rep_ms: float) -> float:
        """A further timing, as precise as it is long."""
        self.seconds += rep_ms / 1e3 + 0.1
        return landscape(config).latency_ms * self._noise(config, NOISE * math.sqrt(50 / rep_ms))

    def _noise(self, config: dict, share: float) -> float:
        """Depends on the run, the configuration, and how often it was timed; not on what else was."""
        name = repr(sorted(config.items()))
        n = self._timed[name] = self._timed.get(name, 0) + 1
        return math.exp(share * random.Random(f"{self._seed}:{name}:{n}").gauss(0, 1))


@helion.kernel(static_shapes=True)
def matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    _, n = y.size()
    out = torch.empty([m, n], dtype=x.dtype, device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        out[tile_m, tile_n] = acc.to(x.dtype)
    return out


@dataclass(frozen=True)
class Compiled:
    config: dict

    def __call__(self, *_: object) -> None:
        raise AssertionError("there is no GPU to run it on")


class Provider(BenchmarkProvider):
    """Helion's seam for measuring, with a clock in place of a GPU."""

    def __init__(self, clock: Clock, *, autotune_metrics, **_) -> None:
        self._clock, self._metrics = clock, autotune_metrics
        self.mutated_arg_indices = ()

    def benchmark(self, configs, **_):
        self._metrics.num_configs_tested += len(configs)
        outcomes = self._clock.first_time([c.config for c in configs])
        return [
            BenchmarkResult(c, Compiled(dict(c.config)), o.latency_ms, o.status, o.compile_s)
            for c, o in zip(configs, outcomes, strict=True)
        ]

    def benchmark_isolated(self, fns, *, rep, **_):
        return [self._clock.again(f.config, rep) for f in fns]

    def setup(self) -> None: ...

    def cleanup(self) -> None: ...


@dataclass(frozen=True)
class Ran:
    """What one search came to."""

    latency_ms: float
    evaluations: int
    simulated_s: float
    own_s: float


def run(name: str, effort: str, seed: int, options: dict[str, object]) -> Ran:
    """One search with what its effort gives it, ``options`` aside."""
    clock = Clock(seed)
    with pretended(H100):
        args, mode = fake_arguments(((SIZE, SIZE), "bfloat16"), ((SIZE, SIZE), "bfloat16"))
        with mode:
            bound = matmul.bind(args)
        settings = bound.settings
        settings.autotune_effort, settings.autotune_random_seed = effort, seed
        settings.autotune_log_level, settings.autotune_progress_bar = 0, False
        algorithm = search_algorithms[name]
        known = inspect.signature(algorithm.__init__).parameters
        usual = algorithm.get_kwargs_from_profile(get_effort_profile(effort), settings)
        search = algorithm(bound, args, **{k: v for k, v in {**usual, **options}.items() if k in known})
        search._benchmark_provider_cls = partial(Provider, clock)
        search.final_selection = None  # it would use a GPU's timers; the shorter verification asks the provider
        started = time.process_time()
        best = search.autotune()
        own_s = time.process_time() - started
    found = landscape(best.config).latency_ms
    return Ran(found, clock.evaluations, clock.seconds, own_s)


def table(effort: str, runs: dict[str, list[Ran]]) -> str:
    """One row for each search, in Markdown."""
    rows = [
        "| search | evaluations | mean ms | best | worst | as good as PatternSearch | simulated s | own CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    pattern = runs["PatternSearch"]
    for name, found in runs.items():
        final = [r.latency_ms for r in found]
        as_good = sum(r.latency_ms <= (1 + TIE) * p.latency_ms for r, p in zip(found, pattern, strict=True))
        rows.append(
            f"| {name} | {median(r.evaluations for r in found):.0f} | {mean(final):.4f} | {min(final):.4f} "
            f"| {max(final):.4f} | {as_good} of {len(found)} | {median(r.simulated_s for r in found):.0f} "
            f"| {median(r.own_s for r in found):.1f} |"
        )
    return f"Effort `{effort}`, {len(pattern)} seeds; evaluations and seconds are medians:\n\n" + "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--efforts", nargs="+", default=["quick", "full"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # What one run leaves in Helion's cache is not for the next; and finalists are to be timed by the provider.
    os.environ.update(HELION_SKIP_CACHE="1", HELION_AUTOTUNE_FINAL_REBENCHMARK_ISOLATED="1")
    parts = [", ".join(f"{name} {version(name)}" for name in ("helion", "torch", "triton", "evotune"))]
    for effort in args.efforts:
        runs: dict[str, list[Ran]] = {name: [] for name in METHODS}
        for seed in range(args.seeds):
            for name in METHODS:
                fifth = {"max_evaluations": runs["PatternSearch"][-1].evaluations // 5} if name == "EvoTune" else {}
                runs[name].append(run(name, effort, seed, fifth))
                print(effort, seed, name, runs[name][-1], file=sys.stderr, flush=True)
        parts.append(table(effort, runs))
    text = "\n\n".join(parts) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
