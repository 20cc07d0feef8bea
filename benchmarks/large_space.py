"""The search's own time and memory on spaces up to those that cannot be enumerated.

python benchmarks/large_space.py --out benchmarks/results/large_space.md
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np

from evotune.space import Config, ConfigSpace, Value

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
PAGE_BYTES = resource.getpagesize()
DRAWS = 1_000_000
HEAD_DIM = 64
SHARED_BYTES = 232448  # of one block, H100 to B200
REGISTERS = 65536  # of one block

NOTE = """\
# Spaces too large to enumerate

What the default search (`--search evotune`, no model) costs by itself, in CPU and memory:

    {command}

The largest space has the parameters of Helion's attention on B200, with their values and rules between them;
the others hold most of these at their defaults, and can be enumerated. The loss is a formula, and nothing was
measured but the search: CPU time in `ask` and `tell`, and the resident memory of the process after so many
evaluations. Each run is a process of its own with one BLAS thread. Figures are medians of {seeds} seeds; `slowest`
and `grows` are the worst of them. CPU: {cpu}; Python {python}, numpy {numpy}.

{table}

- `combinations`, and the share of them that is `legal`: counted, or where they cannot be enumerated the share of
  {draws} random combinations.
- `opens`: seconds until the first question: enumerating or sampling the space, and late imports.
- `ms/eval`: CPU milliseconds per evaluation over all {evaluations}, `opens` included; `slowest`: of a single one.
- `MiB at n`: resident memory after n evaluations; `grows`: from 50 to {evaluations}.
- `random/best`: the formula's latency of the best of as many random legal configurations over the search's best:
  that what was timed is a search.

Every configuration that was asked for was legal: the benchmark ends with an error otherwise.
"""


def attention() -> dict[str, list[Value]]:
    """Parameters and values after Helion 1.5.1's attention on sm_100, one per flat dimension."""
    loops: dict[str, list[Value]] = {}
    for loop in (0, 1):
        loops[f"range_unroll_factor_{loop}"] = [0, 1, 2, 3, 4]
        loops[f"range_num_stages_{loop}"] = [0, 1, 2, 3, 4]
        loops[f"range_multi_buffer_{loop}"] = ["none", "false", "true"]
        loops[f"range_flatten_{loop}"] = ["none", "false", "true"]
        loops[f"range_warp_specialize_{loop}"] = ["none", "false", "true"]
    return {
        "block_batch": [1, 2, 4, 8],
        "block_m": [16, 32, 64, 128, 256, 512],
        "block_n": [16, 32, 64, 128, 256, 512],
        "num_warps": [1, 2, 4, 8, 16, 32],
        "num_stages": [1, 2, 3, 4, 5, 6, 7, 8],
        "pid_type": ["flat", "xyz", "persistent_blocked", "persistent_interleaved"],
        "num_sm_multiplier": [1, 2, 4, 8, 16, 32, 64, 128],
        "maxnreg": [0, 32, 64, 128, 256],
        **{f"indexing_{i}": ["pointer", "tensor_descriptor"] for i in range(4)},
        **{f"load_eviction_{i}": ["", "first", "last"] for i in range(3)},
        "l2_grouping": [1, 2, 4, 8, 16, 32, 64],
        "loop_order": ["01", "10"],
        "flatten_loop": [False, True],
        "epilogue_subtile": [0, 2],
        **loops,
    }


DEFAULT: Config = {
    **{name: values[0] for name, values in attention().items()},
    **{"block_m": 64, "block_n": 64, "num_warps": 4, "num_stages": 2},
}
RULES = (
    f"(block_batch * block_m + 2 * num_stages * block_n) * {HEAD_DIM} * 2 <= {SHARED_BYTES}",
    "block_batch * block_m * block_n <= 1048576",
    "block_batch * block_m * block_n >= 32 * num_warps",
    "num_sm_multiplier == 1 or pid_type in ('persistent_blocked', 'persistent_interleaved')",
    "maxnreg == 0 or pid_type in ('persistent_blocked', 'persistent_interleaved')",
    f"maxnreg * num_warps * 32 <= {REGISTERS}",
    "l2_grouping == 1 or pid_type != 'xyz'",
    "epilogue_subtile == 0 or indexing_3 == 'tensor_descriptor'",
    "range_warp_specialize_0 != 'true' or range_warp_specialize_1 != 'true'",
    "range_warp_specialize_0 != 'true' or num_warps >= 4",
    "range_warp_specialize_1 != 'true' or num_warps >= 4",
    "range_flatten_0 != 'true' or range_unroll_factor_0 <= 1",
    "range_flatten_1 != 'true' or range_unroll_factor_1 <= 1",
)
TILES = ("block_m", "block_n", "num_warps", "num_stages", "pid_type", "num_sm_multiplier", "maxnreg")
SPACES: Mapping[str, Sequence[str]] = {
    "2e5": (*TILES, "indexing_0"),
    "2e6": (*TILES, "indexing_0", "block_batch", "load_eviction_0"),
    "1e16": tuple(attention()),
}
"""The parameters that vary; the others are constants in the rules."""


def open_space(name: str) -> ConfigSpace:
    kept = SPACES[name]
    constants = {n: v for n, v in DEFAULT.items() if n not in kept}
    values = {n: v for n, v in attention().items() if n in kept}
    return ConfigSpace.from_dict(values, RULES, constants=constants, default={n: DEFAULT[n] for n in kept})


def loss(config: Config) -> float:
    """Log of a made-up latency: a valley over tiles and warps, and small effects of all the rest."""
    full = {**DEFAULT, **config}
    m, n, batch, warps, stages = (
        math.log2(float(full[k])) for k in ("block_m", "block_n", "block_batch", "num_warps", "num_stages")
    )
    # Best with 2048 elements of a tile per warp, and fewer stages for wide tiles.
    out = 0.25 * abs(m + n + batch - warps - 11) ** 1.2 + 0.12 * abs(m - 7) + 0.1 * abs(n - 6)
    out += 0.1 * abs(stages - (8 - n)) + 0.15 * batch
    if str(full["pid_type"]).startswith("persistent"):
        out += 0.05 * abs(math.log2(float(full["num_sm_multiplier"])) - 1) - 0.1
        out += 0.0 if full["maxnreg"] in (0, 128) else 0.2
    out -= 0.05 * sum(full[f"indexing_{i}"] == "tensor_descriptor" for i in range(4))
    out -= 0.03 * sum(full[f"load_eviction_{i}"] == ("last" if i else "first") for i in range(3))
    out += 0.03 * abs(math.log2(float(full["l2_grouping"])) - 3)
    for loop in (0, 1):
        out += 0.04 * abs(float(full[f"range_unroll_factor_{loop}"]) - loop - 1)
        out += 0.04 * abs(float(full[f"range_num_stages_{loop}"]) - 2 * loop)
        out -= 0.05 * (full[f"range_warp_specialize_{loop}"] == "true")
    return out


@dataclass(frozen=True)
class Found:
    """One search of one space. Seconds are of CPU; memory is resident after that many evaluations."""

    combinations: float
    legal: float
    """Share of the combinations."""
    opens_s: float
    seconds: Sequence[float]
    memory_mib: Mapping[str, float]
    gain: float


def search(name: str, seed: int, evaluations: int) -> Found:
    """Make one run of the default search, in this process."""
    started_s = time.process_time()
    from evotune import settings
    from evotune.proposers import Feedback
    from evotune.session import searcher

    flags: dict[str, Any] = {"run.seed": seed, "run.max_evaluations": evaluations, "llm.provider": "none"}
    chosen = settings.load(None, flags, {})
    space = open_space(name)
    made = searcher(space, chosen)
    opens_s = time.process_time() - started_s
    seconds: list[float] = []
    losses: list[float] = []
    memory_mib: dict[str, float] = {}
    for number in range(evaluations):
        asked_s = time.process_time()
        candidate = made.ask(())
        took_s = time.process_time() - asked_s
        assert candidate is not None
        space.validate(candidate.config)
        losses.append(loss(candidate.config))
        asked_s = time.process_time()
        made.tell([Feedback(number, candidate, losses[-1], 1e-4, 3)])
        seconds.append(took_s + time.process_time() - asked_s)
        if (number + 1) % 50 == 0:
            memory_mib[str(number + 1)] = resident_mib()
    random_loss = min(loss(c) for c in space.sample(Random(seed), evaluations))
    gain = math.exp(random_loss - min(losses))
    return Found(float(space.cartesian), legal_share(space), opens_s, seconds, memory_mib, gain)


def legal_share(space: ConfigSpace) -> float:
    if space.is_enumerable:
        return space.cardinality / space.cartesian
    rng = np.random.default_rng(0)
    sizes = [len(p.values) for p in space.parameters.values()]
    return float(space.holds(rng.integers(0, sizes, (DRAWS, len(sizes)))).mean())


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * PAGE_BYTES / 2**20


def in_child(name: str, seed: int, evaluations: int) -> Found:
    """:func:`search` in a process of its own: what another run left in memory is not counted."""
    command = [sys.executable, __file__, "--one", name, "--seed", str(seed), "--evaluations", str(evaluations)]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, text=True, check=True)
    return Found(**json.loads(done.stdout))


def table(found: Mapping[str, Sequence[Found]]) -> str:
    marks = list(next(iter(found.values()))[0].memory_mib)
    head = ["space", "combinations", "legal", "opens s", "ms/eval", "slowest ms"]
    head += [*(f"MiB at {n}" for n in marks), "grows MiB", "random/best"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, runs in found.items():
        memory = [[run.memory_mib[n] for run in runs] for n in marks]
        grows = max(last - first for first, last in zip(memory[0], memory[-1], strict=True))
        per_eval = [1e3 * (run.opens_s + sum(run.seconds)) / len(run.seconds) for run in runs]
        rows.append(
            [
                name,
                f"{runs[0].combinations:.2g}",
                f"{runs[0].legal:.2%}",
                f"{median(run.opens_s for run in runs):.2f}",
                f"{median(per_eval):.1f}",
                f"{1e3 * max(max(run.seconds) for run in runs):.0f}",
                *(f"{median(found):.0f}" for found in memory),
                f"{grows:.1f}",
                f"{median(run.gain for run in runs):.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default=list(SPACES), help=f"of {list(SPACES)}")
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(asdict(search(args.one, args.seed, args.evaluations))))
        return
    found = {name: [in_child(name, s, args.evaluations) for s in range(args.seeds)] for name in args.spaces}
    text = NOTE.format(
        command=shlex.join(["python", "benchmarks/large_space.py", *sys.argv[1:]]),
        seeds=args.seeds,
        cpu=cpu(),
        python=platform.python_version(),
        numpy=version("numpy"),
        table=table(found),
        draws=DRAWS,
        evaluations=args.evaluations,
    )
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
