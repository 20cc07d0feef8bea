import math

import numpy as np
import pytest

from evotune.interval import latency_ci95_ms, ratio_ci95, verdict
from evotune.trial import Fidelity, Measurement

ULTRA = Fidelity(4, "ultra", 500)


def measured(samples, **context: float) -> Measurement:
    return Measurement(ULTRA, "measured", tuple(float(s) for s in samples), context=context)


def test_a_drift_shared_by_both_cancels_in_the_ratio():
    drift = np.exp(np.linspace(0, 0.5, 200))
    ratio, (low, high) = ratio_ci95(measured(3 * drift), measured(2 * drift))
    assert ratio == pytest.approx(1.5)
    assert low == pytest.approx(1.5)
    assert high == pytest.approx(1.5)


def test_the_interval_covers_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        slow, fast = (measured(c * np.exp(0.05 * rng.standard_normal(100))) for c in (1.2, 1.0))
        low, high = ratio_ci95(slow, fast)[1]
        covered += low <= 1.2 <= high
    assert 175 <= covered <= 200


def test_equal_code_is_a_tie_although_each_block_has_luck_of_its_own():
    """Sixteen blocks of 32 rounds, each of which moves a ratio of 1 by 1 %, far more than the rounds do."""
    rng = np.random.default_rng(0)
    verdicts = [verdict(ratio_ci95(*in_blocks(rng, 1.0))[1]) for _ in range(400)]
    assert verdicts.count("tie") >= 0.95 * 400
    assert all(verdict(ratio_ci95(*in_blocks(rng, 1.05))[1]) == "faster" for _ in range(50))


def in_blocks(rng, ratio: float) -> tuple[Measurement, Measurement]:
    luck = np.repeat(0.01 * rng.standard_normal(16), 32)
    slow, fast = (np.exp(0.001 * rng.standard_normal(512)) for _ in range(2))
    return measured(ratio * slow * np.exp(luck), blocks=16), measured(fast, blocks=16)


def test_the_interval_of_a_latency_holds_the_latency():
    """Most samples are slow, and in most blocks most are fast: the median of all is slow."""
    found = measured(([1.0] * 17 + [1.3] * 15) * 14 + [1.3] * 64, blocks=16)
    assert found.latency_ms == 1.3
    assert latency_ci95_ms(found) == (1.0, 1.3)


def test_one_block_in_sixteen_that_was_disturbed_hardly_widens_the_interval():
    rng = np.random.default_rng(0)
    slow, fast = (rng.uniform(1.0, 1.001, 512) for _ in range(2))
    slow[:32] *= 2
    low, high = ratio_ci95(measured(slow, blocks=16), measured(fast, blocks=16))[1]
    assert 0.999 < low <= high < 1.001


def test_measurements_at_different_times_are_not_taken_for_rounds():
    """Each alone has one block; what disturbed one did not disturb the other."""
    drift = np.exp(np.linspace(0, 0.5, 50))
    low, high = ratio_ci95(measured(2 * drift, blocks=1), measured(drift, blocks=1))[1]
    assert low < 1.9
    assert high > 2.1


def test_fewer_than_six_blocks_cannot_bound_anything_with_their_range():
    low, high = ratio_ci95(measured([2, 2.2, 2.4, 2.6] * 2, blocks=4), measured([1.0] * 8, blocks=4))[1]
    assert low < 2.1
    assert high > 2.5


def test_single_recorded_means_use_their_recorded_errors():
    slow, fast = (Measurement(ULTRA, "replayed", (t,), rel_sem=0.01) for t in (2.0, 1.0))
    ratio, (low, high) = ratio_ci95(slow, fast)
    assert ratio == 2.0
    assert high / low == pytest.approx(math.exp(2 * 1.959964 * 0.01 * 2**0.5))


def test_the_standard_error_of_a_median_is_near_that_of_a_normal_sample():
    rng = np.random.default_rng(1)
    medians = [np.median(1 + 0.1 * rng.standard_normal(50)) for _ in range(2000)]
    estimates = [measured(1 + 0.1 * rng.standard_normal(50)).relative_error for _ in range(300)]
    assert np.mean(estimates) == pytest.approx(np.std(medians), rel=0.15)
    low, high = latency_ci95_ms(measured([1.0] * 9))
    assert low == high == 1.0


def test_a_verdict_needs_an_interval_without_one():
    assert [verdict(i) for i in [(1.01, 1.2), (0.8, 0.9), (0.99, 1.3)]] == ["faster", "slower", "tie"]
