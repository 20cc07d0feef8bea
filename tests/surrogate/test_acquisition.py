"""Acquisitions against numerical integration of what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from evotune.surrogate.acquisition import (
    log_expected_improvement,
    log_optimistic_improvement,
    log_probability_of_improvement,
    weigh,
)

CASES = [(0.0, 1.0, 0.0), (1.0, 0.5, 0.2), (-3.0, 0.1, -2.0), (2.0, 0.4, 0.5)]
ALL = [log_expected_improvement, log_probability_of_improvement, log_optimistic_improvement]


@pytest.mark.parametrize(("mean", "std", "best"), CASES)
def test_expected_improvement_is_the_integral(mean, std, best):
    expected, _ = quad(lambda f: (best - f) * norm.pdf(f, mean, std), mean - 12 * std, best, epsabs=1e-13)
    ours = log_expected_improvement(np.array([mean]), np.array([std]), best)[0]
    assert ours == pytest.approx(np.log(expected), abs=1e-5)


@pytest.mark.parametrize(("mean", "std", "best"), CASES)
def test_probability_of_improvement_is_the_integral(mean, std, best):
    ours = log_probability_of_improvement(np.array([mean]), np.array([std]), best)[0]
    assert np.exp(ours) == pytest.approx(norm.cdf(best, mean, std), rel=1e-9)


def test_expected_improvement_stays_finite_and_ordered_where_it_is_hopeless():
    mean = np.linspace(0, 60, 4001)
    log_ei = log_expected_improvement(mean, np.ones_like(mean), 0.0)
    assert np.isfinite(log_ei).all()
    assert (np.diff(log_ei) < 0).all(), "no jump where the tail takes over"


def test_optimism_orders_like_the_lower_confidence_bound():
    rng = np.random.default_rng(0)
    mean, std = rng.standard_normal(50), rng.random(50)
    ours = log_optimistic_improvement(mean, std, 0.3, beta=1.5)
    assert (np.argsort(-ours) == np.argsort(mean - 1.5 * std)).all()


@pytest.mark.parametrize("acquisition", ALL)
def test_every_acquisition_prefers_less_loss_more_doubt_when_behind_and_cheap_sure_trials(acquisition):
    mean, std = np.array([1.0, 0.5, 1.0]), np.array([0.3, 0.3, 0.6])
    worse, better, doubtful = acquisition(mean, std, 0.0)
    assert worse < better
    assert worse < doubtful
    same = acquisition(np.full(3, 1.0), np.full(3, 0.3), 0.0)
    sure, unsure, dear = weigh(same, np.array([1.0, 0.5, 1.0]), np.array([1.0, 1.0, 3.0]))
    assert sure - unsure == pytest.approx(np.log(2))
    assert sure - dear == pytest.approx(np.log(3))
