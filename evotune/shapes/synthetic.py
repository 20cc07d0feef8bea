"""A made-up family of matrix products whose best tiles depend on the sizes: shapes can be tried anywhere.

The formula has what makes one configuration wrong for all sizes: waves of tiles over the processors,
tiles that hang over the edge, traffic that small tiles repeat, and sums split over K that fill a device
which the output alone cannot. Nothing here was measured on any device, and the names say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random

from evotune.evaluator import Device
from evotune.proposers.model import Story
from evotune.shapes.rule import Problem
from evotune.space import Config, ConfigSpace
from evotune.subject import Subject
from evotune.trial import Fidelity, Measurement, Provenance, Static

NAME = "synthetic matmul"
DEVICE = "none: a formula, nothing was measured"
PROBLEMS: Mapping[str, Problem] = {
    "token": {"m": 16, "n": 4096, "k": 4096, "dtype": "float16"},
    "tiny": {"m": 128, "n": 128, "k": 256, "dtype": "float16"},
    "deep": {"m": 256, "n": 256, "k": 16384, "dtype": "float16"},
    "batch": {"m": 512, "n": 2048, "k": 2048, "dtype": "float16"},
    "square": {"m": 4096, "n": 4096, "k": 4096, "dtype": "float16"},
    "wide": {"m": 2048, "n": 16384, "k": 1024, "dtype": "float16"},
}
# Round numbers of the order of a large GPU's.
PROCESSORS = 128
FLOP_PER_US = 4e6  # of one processor
BYTES_PER_US = 24e3  # of one processor
STEP_US, TILE_US, LAUNCH_US = 0.35, 1.5, 2.0
REL_STD = 0.02  # of one repetition
COMPILE_S = 0.5
FIDELITIES = (Fidelity(1, "low", 5), Fidelity(2, "medium", 15), Fidelity(3, "high", 50))
FINALS = Fidelity(4, "ultra", 200)


def space(problem: Problem) -> ConfigSpace:
    """7660 legal configurations, fewer where K is short."""
    return ConfigSpace.from_dict(
        {
            "BLOCK_M": [16, 32, 64, 128, 256],
            "BLOCK_N": [16, 32, 64, 128, 256],
            "BLOCK_K": [16, 32, 64, 128],
            "SPLIT_K": [1, 2, 4, 8, 16],
            "num_warps": [2, 4, 8, 16],
            "num_stages": [1, 2, 3, 4],
        },
        ["(BLOCK_M + BLOCK_N) * BLOCK_K * 2 * num_stages <= 232448", "SPLIT_K * BLOCK_K <= k"],
        constants={"k": problem["k"]},
        default={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "SPLIT_K": 1, "num_warps": 4, "num_stages": 2},
    )


def latency_ms(problem: Problem, config: Config) -> float:
    """The true latency."""
    m, n, k = (int(problem[name]) for name in ("m", "n", "k"))
    block_m, block_n, block_k = (int(config[name]) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    split, warps, stages = (int(config[name]) for name in ("SPLIT_K", "num_warps", "num_stages"))
    tiles = math.ceil(m / block_m) * math.ceil(n / block_n) * split
    waves = math.ceil(tiles / PROCESSORS)
    steps = math.ceil(k / (split * block_k))
    # Best with 1024 outputs of a tile per warp; too few warps spill, too many idle.
    fit = math.exp(-0.15 * abs(math.log2(block_m * block_n / (1024 * warps))))
    arithmetic_us = 2 * block_m * block_n * block_k / (FLOP_PER_US * fit)
    traffic_us = 2 * (block_m + block_n) * block_k / BYTES_PER_US
    # Stages hide the shorter of the two behind the longer, and the latency of a load.
    hidden = 1 - 1 / stages
    step_us = max(arithmetic_us, traffic_us) + (1 - hidden) * (min(arithmetic_us, traffic_us) + STEP_US)
    reduce_us = 0.0 if split == 1 else 1.0 + 4 * m * n * split / (BYTES_PER_US * min(PROCESSORS, tiles))
    return 1e-3 * (LAUNCH_US + waves * (TILE_US + 0.4 * stages + steps * step_us) + reduce_us)


class FormulaEvaluator:
    """Latencies of one problem with noise that falls with the repetitions, fixed by a seed."""

    provenance: Provenance = "synthetic"

    def __init__(self, problem: Problem, seed: int) -> None:
        self.fidelities: Sequence[Fidelity] = FIDELITIES
        self.device = Device("synthetic", DEVICE)
        self._problem, self._seed = problem, seed

    def compile(self, config: Config) -> Static:
        return Static(COMPILE_S)

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        rng = Random(f"{self._seed}:{sorted(self._problem.items())}:{sorted(config.items())}:{fidelity.rank}")
        true_ms = latency_ms(self._problem, config)
        samples_ms = tuple(true_ms * math.exp(REL_STD * rng.gauss(0, 1)) for _ in range(fidelity.reps))
        return Measurement(fidelity, self.provenance, samples_ms)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        return [self.measure(c, fidelity) for c in configs]

    def close(self) -> None:
        """Nothing is held."""


def subjects(seed: int, problems: Mapping[str, Problem] = PROBLEMS) -> dict[str, Subject]:
    """The family as subjects for :func:`~evotune.shapes.session.tune_shapes`; ``seed`` is that of the noise."""
    return {name: _subject(problem, seed) for name, problem in problems.items()}


def _subject(problem: Problem, seed: int) -> Subject:
    return Subject(
        NAME,
        "replay",
        "a formula: times are computed, not measured",
        space(problem),
        FINALS,
        "formula",
        Story(NAME, problem=problem),
        None,
        lambda: FormulaEvaluator(problem, seed),
    )
