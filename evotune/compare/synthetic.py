"""A made-up landscape with a known optimum: a search can be tried without a recording.

It stands for a tiled matrix product: 2500 configurations, the best at 128 x 128 x 64 with 8 warps
and 3 stages, and other valleys where a search that only descends stays. Nothing here was measured
on any device, and the recording's name says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random

from evotune.evaluator import Device
from evotune.replay import OK, Recording, Row
from evotune.space import Config, ConfigSpace
from evotune.trial import Fidelity, Measurement, Provenance, Static

DEVICE = "none: a formula, nothing was measured"
OPTIMUM: Mapping[str, int] = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
OPTIMUM_MS = 0.5
# Places of valleys, in log2 of all but the stages, and how much slower their floor is.
_VALLEYS = (
    (((7, 7, 6, 3, 3)), 0.0),
    (((5, 8, 4, 1, 5)), 0.12),
    (((8, 5, 7, 4, 1)), 0.18),
    (((4, 4, 5, 0, 2)), 0.35),
)
# What a step away from a valley costs, in the same order.
_SLOPES = (0.22, 0.22, 0.16, 0.14, 0.09)
# Relative standard deviation of one repetition.
REL_STD = 0.05
COMPILE_S = 0.5
REPS = 50
FIDELITIES = (Fidelity(1, "low", 5), Fidelity(2, "medium", 15), Fidelity(3, "high", REPS))


def space() -> ConfigSpace:
    """The tunables; every combination is legal."""
    return ConfigSpace.from_dict(
        {
            "BLOCK_M": [16, 32, 64, 128, 256],
            "BLOCK_N": [16, 32, 64, 128, 256],
            "BLOCK_K": [16, 32, 64, 128],
            "num_warps": [1, 2, 4, 8, 16],
            "num_stages": [1, 2, 3, 4, 5],
        },
        default={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    )


def latency_ms(config: Config) -> float:
    """The true latency: that of the valley whose walls are lowest here."""
    at = [math.log2(float(config[n])) for n in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps")]
    at.append(float(config["num_stages"]))
    log_slowdown = min(
        floor + sum(slope * abs(x - c) ** 1.3 for slope, x, c in zip(_SLOPES, at, centre, strict=True))
        for centre, floor in _VALLEYS
    )
    return OPTIMUM_MS * math.exp(log_slowdown)


class SyntheticRecording(Recording):
    """All true latencies; there is no file behind it."""

    @property
    def hash(self) -> str:
        return sha256(repr(sorted(self.rows.items())).encode()).hexdigest()[:16]


def recording() -> Recording:
    """The landscape as a recording of :data:`REPS` repetitions each, free of noise."""
    legal = space()
    rows: dict[tuple[int, ...], Row] = {}
    for key in (tuple(map(int, k)) for k in legal.keys):
        ms = latency_ms(legal.from_key(key))
        rows[key] = Row(ms, OK, COMPILE_S * 1e3, REPS * ms, REL_STD)
    return SyntheticRecording(Path("synthetic"), {"kernel": "synthetic", "device": DEVICE}, legal, rows)


class SyntheticEvaluator:
    """Latencies with noise that falls with the repetitions of a fidelity, fixed by a seed."""

    provenance: Provenance = "synthetic"

    def __init__(self, seed: int) -> None:
        self.fidelities: Sequence[Fidelity] = FIDELITIES
        self.device = Device("synthetic", DEVICE)
        self._seed = seed

    def compile(self, config: Config) -> Static:
        return Static(COMPILE_S)

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        rng = Random(f"{self._seed}:{sorted(config.items())}:{fidelity.rank}")
        true_ms = latency_ms(config)
        samples_ms = tuple(true_ms * math.exp(REL_STD * rng.gauss(0, 1)) for _ in range(fidelity.reps))
        return Measurement(fidelity, self.provenance, samples_ms)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        return [self.measure(c, fidelity) for c in configs]

    def close(self) -> None:
        """Nothing is held."""
