"""How sure a latency, or a ratio of two, is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evotune.space import Array
from evotune.trial import BLOCKS, Measurement

Z95 = 1.959964
MAX_BLOCKS = 16
# Of an interval's missing the median on one side. With 2.5 %, ten intervals in 180 of equal code left 1 out, where
# four at most should have: neighbouring blocks resemble each other a little.
CHANCE = 0.005
MIN_BLOCKS = 6  # the range of fewer covers less than 95 %


def latency_ci95_ms(measurement: Measurement) -> tuple[float, float]:
    """95 % interval of a median latency, from its blocks, or else from its standard error."""
    if BLOCKS in measurement.context and (blocks := _blocks(measurement)) >= MIN_BLOCKS:
        parts = np.array_split(np.array(measurement.samples_ms), blocks)
        _, low, high = _of_medians([float(np.median(part)) for part in parts])
        # The median of all samples is not that of the blocks' medians, and may lie beside them.
        return min(low, measurement.latency_ms), max(high, measurement.latency_ms)
    centre, spread = measurement.latency_ms, Z95 * measurement.relative_error
    return centre * math.exp(-spread), centre * math.exp(spread)


def ratio_ci95(slow: Measurement, fast: Measurement) -> tuple[float, tuple[float, float]]:
    """``slow / fast`` and its 95 % interval.

    With samples taken in alternating rounds (``samples_ms[i]`` of both belong to round i), what both
    shared cancels. Rounds of one block resemble each other more than those of another, because code and
    data lie elsewhere in memory there. So a block counts as one observation: the interval is that of
    the median of blocks, from their order, whatever their distribution (Thompson 1936). Otherwise it is
    the ratio of medians with both standard errors.
    """
    blocks, rounds = _blocks(slow), len(slow.samples_ms)
    if blocks >= MIN_BLOCKS and (blocks, rounds) == (_blocks(fast), len(fast.samples_ms)):
        parts = np.array_split(np.log(slow.samples_ms) - np.log(fast.samples_ms), blocks)
        centre, low, high = _of_medians([_median_of_turns(part) for part in parts])
        return math.exp(centre), (math.exp(low), math.exp(high))
    ratio = slow.latency_ms / fast.latency_ms
    spread = Z95 * math.hypot(slow.relative_error, fast.relative_error)
    return ratio, (ratio * math.exp(-spread), ratio * math.exp(spread))


def _blocks(measurement: Measurement) -> int:
    """Into how many parts of equal or nearly equal length the samples fall."""
    return int(measurement.context.get(BLOCKS, min(MAX_BLOCKS, len(measurement.samples_ms))))


def _of_medians(medians: Sequence[float]) -> tuple[float, float, float]:
    """Median of the blocks' medians, and the ends of an interval that covers it 95 times in 100, or more often."""
    ordered, cut = sorted(medians), _tail(len(medians))
    return float(np.median(ordered)), ordered[cut], ordered[-1 - cut]


def _median_of_turns(rounds: Array) -> float:
    """Who went second in a round goes first in the next; the mean of the two is free of that."""
    if len(rounds) > 1:
        rounds = rounds[: len(rounds) // 2 * 2].reshape(-1, 2).mean(axis=1)
    return float(np.median(rounds))


def _tail(blocks: int) -> int:
    """How many observations are left out at either end: each lies below the median like a coin's head, and
    so many heads or fewer are a chance of :data:`CHANCE` at most. Of 16 it is two, of fewer than 12 none."""
    chances = np.cumsum([math.comb(blocks, i) for i in range(blocks)]) / 2.0**blocks
    return max(0, int(np.searchsorted(chances, CHANCE, side="right")) - 1)


def verdict(interval: tuple[float, float]) -> str:
    """``faster``, ``slower``, or ``tie`` where the interval of the speed-up contains 1."""
    low, high = interval
    return "faster" if low > 1 else "slower" if high < 1 else "tie"
