"""How sure a latency, or a ratio of two, is."""

from __future__ import annotations

import math

import numpy as np

from evotune.space import Array
from evotune.trial import Measurement

RESAMPLES = 2000
Z95 = 1.959964


def latency_ci95_ms(measurement: Measurement) -> tuple[float, float]:
    """95 % interval of a median latency, from its standard error."""
    centre, error = measurement.latency_ms, measurement.relative_error
    return centre * math.exp(-Z95 * error), centre * math.exp(Z95 * error)


def ratio_ci95(slow: Measurement, fast: Measurement, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """``slow / fast`` and its 95 % interval.

    With samples taken in alternating rounds (``samples_ms[i]`` of both belong to round i), the
    ratio is the median over rounds, which cancels what both shared, and the interval comes from
    a bootstrap over blocks of neighbouring rounds (Künsch 1989), because neighbours resemble each
    other. Without, it is the ratio of medians with both standard errors.
    """
    if len(slow.samples_ms) != len(fast.samples_ms) or len(slow.samples_ms) < 8:
        ratio = slow.latency_ms / fast.latency_ms
        spread = Z95 * math.hypot(slow.relative_error, fast.relative_error)
        return ratio, (ratio * math.exp(-spread), ratio * math.exp(spread))
    logs: Array = np.log(slow.samples_ms) - np.log(fast.samples_ms)
    low, high = np.percentile(_block_medians(logs, seed), [2.5, 97.5])
    return math.exp(float(np.median(logs))), (math.exp(low), math.exp(high))


def _block_medians(series: Array, seed: int) -> Array:
    """Medians of resampled series, each put together from whole blocks of about sqrt(n)."""
    length = max(1, math.isqrt(len(series)))
    blocks = -(-len(series) // length)
    starts = np.random.default_rng(seed).integers(0, len(series) - length + 1, size=(RESAMPLES, blocks))
    picks = (starts[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, : len(series)]
    return np.median(series[picks], axis=1)


def verdict(interval: tuple[float, float]) -> str:
    """``faster``, ``slower``, or ``tie`` where the interval of the speed-up contains 1."""
    low, high = interval
    return "faster" if low > 1 else "slower" if high < 1 else "tie"
