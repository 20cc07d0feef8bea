import math

import numpy as np
import pytest

from evotune.interval import latency_ci95_ms, ratio_ci95, verdict
from evotune.trial import Fidelity, Measurement

ULTRA = Fidelity(4, "ultra", 500)


def measured(samples) -> Measurement:
    return Measurement(ULTRA, "measured", tuple(float(s) for s in samples))


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
