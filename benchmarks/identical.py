"""Does the tuner call equal code faster or slower, and does it see a difference that is there?

    python benchmarks/identical.py [--finals 20] [--out benchmarks/results/identical.md]

This file is also the kernel file that it tunes: three kernels of ``kernels/`` and sizes, with a parameter
``spelling`` that changes a comment, a macro that nobody uses, and the name of a function, and so nothing in
the machine code; and one, ``spin``, that makes each call about 5 % longer.

One "finals" is what ends a run on the CPU, in a new process: the default and four configurations in turns,
and once more the default and the fastest of the four. Each is held with the machine as it is, and with a
process that copies memory without pause on another core.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evotune.content import KERNELS, find
from evotune.interval import ratio_ci95, verdict
from evotune.kernel import Array, Backend, CSource, Problem, Tolerance, load_kernel
from evotune.space import Config, ConfigSpace
from evotune.trial import Fidelity

# -- the kernel file ------------------------------------------------------------------------------

name = "identical"
# `spins`: turns of an empty loop that take about 5 % of the kernel's time here.
SPINS = {"vector_add small": 70, "vector_add default": 3000, "attention small": 11000}
tolerance = {"float32": Tolerance(rtol=1e-4, atol=1e-5)}


def _load(label: str) -> Any:
    return load_kernel(find(label.split(maxsplit=1)[0], KERNELS)).definition


shapes: dict[str, Problem] = {
    label: {**_load(label).shapes[label.split()[1]], "label": label, "spins": spins}
    for label, spins in SPINS.items()
}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """Those of the kernel that is spelt in several ways."""
    return _load(str(problem["label"])).inputs(problem, rng)


def reference(problem: Problem, *inputs: Array) -> Array:
    """Its reference."""
    return _load(str(problem["label"])).reference(problem, *inputs)


def flops(problem: Problem) -> float:
    """Its operations."""
    return _load(str(problem["label"])).flops(problem)


def bytes_moved(problem: Problem) -> float:
    """Its traffic."""
    return _load(str(problem["label"])).bytes_moved(problem)


def space(problem: Problem) -> ConfigSpace:
    """What is written in other words, and whether time is wasted."""
    return ConfigSpace.from_dict({"spelling": list(range(10)), "spin": [False, True]})


def build(config: Config, problem: Problem) -> CSource:
    """The kernel's default configuration."""
    backend = _load(str(problem["label"])).backends["cpu"]
    source = backend.build(backend.space(problem).default, problem)
    n, arguments = config["spelling"], len(inputs(problem, np.random.default_rng(0))) + 1
    names = ", ".join(f"p{i}" for i in range(arguments))
    declared = ", ".join([*(f"const float *p{i}" for i in range(arguments - 1)), f"float *p{arguments - 1}"])
    text = source.text.replace("evotune_kernel", f"spelling_{n}").replace("void spell", "static void spell")
    return CSource(
        f"/* {n} */\n#define UNUSED_{n} {n}\n{text}\n"
        f"void evotune_kernel({declared}) {{\n  spelling_{n}({names});\n"
        f"  for (volatile int i = 0; i < {problem['spins'] if config['spin'] else 0}; i++);\n}}\n",
        source.flags,
    )


backends = {"cpu": Backend(space, build)}

# -- the benchmark --------------------------------------------------------------------------------

ULTRA = Fidelity(4, "ultra", 500, limit_s=5.0)  # as in config.yaml and evaluators/cpu.yaml
CHALLENGERS = 4
COPIES = "import numpy as np; a = np.ones(1 << 24, np.uint8)\nwhile True: a[:] = a[::-1]"


@dataclass(frozen=True)
class Held:
    """Default / winner, its interval, and seconds of the finals."""

    ratio: float
    interval: tuple[float, float]
    seconds: float


def hold(label: str, spin: bool, spelling: int) -> Held:
    """Finals of the default against four other spellings, all of which waste time or none."""
    from evotune.cpu import CpuEvaluator

    kernel = load_kernel(Path(__file__))
    default: Config = {"spelling": 0, "spin": False}
    others: list[Config] = [{"spelling": 1 + (spelling + i) % 9, "spin": spin} for i in range(CHALLENGERS)]
    with CpuEvaluator(kernel, kernel.problem(label, "cpu"), fidelities=[ULTRA], seed=spelling) as cpu:
        for config in (default, *others):
            cpu.compile(config)
        start = time.monotonic()
        first = cpu.interleave([default, *others], ULTRA)[1:]
        winner = min(range(CHALLENGERS), key=lambda i: first[i].latency_ms)
        mine, base = cpu.interleave([others[winner], default], ULTRA)
        return Held(*ratio_ci95(base, mine), time.monotonic() - start)


@contextlib.contextmanager
def load_on_another_core() -> Iterator[None]:
    """The core that is measured on is the last one."""
    with subprocess.Popen(["taskset", "-c", "0", sys.executable, "-c", COPIES]) as process:
        try:
            yield
        finally:
            process.kill()


def row(label: str, spin: bool, condition: str, held: Sequence[Held]) -> str:
    found = Counter(verdict(h.interval) for h in held)
    truth = statistics.median(h.ratio for h in held)
    widths = [(h.interval[1] - h.interval[0]) / 2 for h in held]
    missed = sum(not h.interval[0] <= (truth if spin else 1.0) <= h.interval[1] for h in held)
    cells = [
        label, "5 % slower" if spin else "equal", condition, found["faster"], found["slower"], found["tie"],
        missed, f"{truth:.4f}", f"{max(abs(h.ratio / truth - 1) for h in held):.2%}",
        f"±{statistics.median(widths):.2%}", f"{statistics.median(h.seconds for h in held):.1f}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = """\
| kernel | code | other core | faster | slower | tie | intervals without the truth | median ratio | farthest off | median interval | s |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finals", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [HEAD]
    print(HEAD, flush=True)
    conditions = {"as it is": contextlib.nullcontext, "loaded": load_on_another_core}
    for label in SPINS:
        for spin in (False, True):
            for condition, around in conditions.items():
                with around():
                    held = [hold(label, spin, i) for i in range(arguments.finals)]
                lines.append(row(label, spin, condition, held))
                print(lines[-1], flush=True)
    print(f"load over the last 15 minutes: {os.getloadavg()[2]:.1f}")
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
