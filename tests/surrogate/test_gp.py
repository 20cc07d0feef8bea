"""The Gaussian process against scikit-learn's, finite differences and itself from scratch."""

from __future__ import annotations

from functools import reduce
from operator import mul

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Matern

from evotune.surrogate.gp import JITTER, Data, PoolPosterior, fit, objective
from evotune.surrogate.kernel import Hyper, Levels, Prior, matern32, matern52, rbf

THEIRS = {matern52: lambda ls: Matern(ls, nu=2.5), matern32: lambda ls: Matern(ls, nu=1.5), rbf: RBF}
LEVELS = Levels([np.linspace(0, 1, 41)] * 3)
# How much of a linear trend in the features the targets may hold.
SLOPE = 0.7
HYPER = Hyper(np.log([0.3, 0.8, 2.0]), np.log([0.5, 3.0, 1.0]), signal=0.4, noise=-4.0, decay=-1.5)
NONE_MATTERS = np.full(3, 1e9)


def some_rows(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 41, (n, 3)) / 40


def some_data(n: int = 25, *, fidelities: int = 1) -> Data:
    x, rng = some_rows(n, 5), np.random.default_rng(6)
    y = np.sin(5 * x[:, 0]) + x[:, 1] ** 2 + 0.05 * rng.standard_normal(n)
    below = (np.arange(n) % fidelities).astype(float)
    indicators = LEVELS.indicate(x).astype(float)
    return Data(indicators, (y - y.mean()) / y.std(), 0.02 * rng.random(n), below, SLOPE * x)


def posterior_over(pool: np.ndarray, data: Data, hyper: Hyper = HYPER, profile=matern52) -> PoolPosterior:
    return PoolPosterior(LEVELS.indicate(pool), SLOPE * pool, data, LEVELS, hyper, profile)


def sklearn_gp(data: Data, hyper: Hyper, profile) -> GaussianProcessRegressor:
    def factor(j: int):
        weight = float(np.exp(hyper.weights[j]))
        lengths = np.where(np.arange(3) == j, np.exp(hyper.lengths), NONE_MATTERS)
        one_feature = ConstantKernel(1.0) + ConstantKernel(weight) * THEIRS[profile](lengths)
        return ConstantKernel(1 / (1 + weight)) * one_feature

    kernel = reduce(mul, [factor(j) for j in range(3)], ConstantKernel(np.exp(hyper.signal)))
    kernel += ConstantKernel(SLOPE**2) * DotProduct(0.0, "fixed")
    alpha = np.exp(hyper.noise) + data.variance + JITTER
    x = data.trend / SLOPE
    return GaussianProcessRegressor(kernel, alpha=alpha, optimizer=None).fit(x, data.y)


@pytest.mark.parametrize("profile", THEIRS)
def test_the_posterior_is_that_of_scikit_learn(profile):
    data, query = some_data(), some_rows(40, 1)
    mean, std = sklearn_gp(data, HYPER, profile).predict(query, return_std=True)
    ours, variance = posterior_over(query, data, profile=profile).predict(LEVELS.indicate(query), SLOPE * query)
    np.testing.assert_allclose(ours, mean, atol=1e-7)
    np.testing.assert_allclose(np.sqrt(variance), std, atol=1e-6)


@pytest.mark.parametrize("profile", THEIRS)
def test_the_posterior_over_a_pool_is_that_of_scikit_learn_in_single_precision(profile):
    data, pool = some_data(), some_rows(40, 1)
    mean, std = sklearn_gp(data, HYPER, profile).predict(pool, return_std=True)
    posterior = posterior_over(pool, data, profile=profile)
    np.testing.assert_allclose(posterior.mean, mean, atol=5e-5)
    np.testing.assert_allclose(posterior.variance, std**2, atol=5e-5)


@pytest.mark.parametrize("profile", THEIRS)
def test_the_evidence_is_that_of_scikit_learn(profile):
    data, prior = some_data(), Prior.additive(3)
    flat = Prior(prior.mean, Hyper(np.full(3, 1e6), np.full(3, 1e6), 1e6, 1e6, 1e6))
    other = Hyper(np.log([0.5, 0.5, 0.5]), np.zeros(3), signal=-0.2, noise=-3.0)
    ours = [objective(h.vector(), data, LEVELS, flat, profile)[0] for h in (HYPER, other)]
    theirs = [-sklearn_gp(data, h, profile).log_marginal_likelihood_value_ for h in (HYPER, other)]
    assert ours[0] - ours[1] == pytest.approx(theirs[0] - theirs[1], abs=1e-5)


@pytest.mark.parametrize("profile", THEIRS)
def test_the_gradient_is_the_finite_difference(profile):
    data, prior, at = some_data(fidelities=3), Prior.additive(3), HYPER.vector()
    _, gradient = objective(at, data, LEVELS, prior, profile)
    for j, step in enumerate(1e-5 * np.eye(len(at))):
        up, down = (objective(at + s, data, LEVELS, prior, profile)[0] for s in (step, -step))
        assert gradient[j] == pytest.approx((up - down) / 2e-5, abs=1e-5), f"hyper-parameter {j}"


def test_fitting_finds_which_feature_matters():
    prior, data = Prior.local(3), some_data(60)
    without_trend = Data(data.x, data.y, data.variance, data.below, np.empty((60, 0)))
    found = fit(without_trend, LEVELS, prior.mean, prior, iterations=60)
    assert np.argmax(found.lengths) == 2, "the third feature has no effect"
    assert found.lengths[0] < found.lengths[1], "the sine bends more than the parabola"


def test_effects_of_single_features_are_learned_from_few_observations():
    """Eight features that matter alone: 20 observations, none of them near another."""
    rng = np.random.default_rng(0)
    levels = Levels([np.linspace(0, 1, 9)] * 8)
    x = rng.integers(0, 9, (220, 8)) / 8
    y = (np.sin(3 * x) * np.arange(1, 9)).sum(1)
    y = (y - y.mean()) / y.std()
    seen, rest = x[:20], x[20:]
    data = Data(levels.indicate(seen).astype(float), y[:20], np.zeros(20), np.zeros(20), np.empty((20, 0)))

    def correlation(prior: Prior) -> float:
        posterior = PoolPosterior(
            levels.indicate(rest), np.empty((200, 0)), data, levels, fit(data, levels, prior.mean, prior)
        )
        return float(np.corrcoef(posterior.mean, y[20:])[0, 1])

    assert correlation(Prior.additive(8)) > correlation(Prior.local(8)) + 0.03


def test_one_observation_at_a_time_is_all_at_once():
    data, pool = some_data(30, fidelities=2), some_rows(50, 1)
    whole = posterior_over(pool, data)
    grown = posterior_over(pool, Data(data.x[:2], data.y[:2], data.variance[:2], data.below[:2], data.trend[:2]))
    for i in range(2, 30):
        grown.add(data.x[i], data.trend[i], data.y[i], data.variance[i], data.below[i])
    np.testing.assert_allclose(grown.mean, whole.mean, atol=1e-4)
    np.testing.assert_allclose(grown.variance, whole.variance, atol=1e-4)
    query = LEVELS.indicate(pool), SLOPE * pool
    for ours, theirs in zip(grown.predict(*query), whole.predict(*query), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_a_part_of_the_pool_goes_on_as_the_whole_would():
    data, pool = some_data(10), some_rows(50, 1)
    whole, part = posterior_over(pool, data), posterior_over(pool, data)
    rows = np.array([1, 7, 30])
    part.focus(rows)
    for posterior in (whole, part):
        posterior.add(LEVELS.indicate(pool[:1])[0], SLOPE * pool[0], -1.0)
    np.testing.assert_allclose(part.mean, whole.mean[rows], atol=1e-5)
    np.testing.assert_allclose(part.variance, whole.variance[rows], atol=1e-5)


@pytest.mark.parametrize("fidelities", [1, 3])
def test_imagining_is_observing_what_is_expected_one_after_another(fidelities):
    pool, waiting = some_rows(50, 1), some_rows(40, 2)
    at_once = posterior_over(pool, some_data(fidelities=fidelities))
    one_by_one = posterior_over(pool, some_data(fidelities=fidelities))
    expected = at_once.mean.copy()
    x, trend = LEVELS.indicate(waiting), SLOPE * waiting
    at_once.imagine(x, trend)
    for row, share in zip(x, trend, strict=True):
        one_by_one.add(row, share, float(one_by_one.predict(row[None], share[None])[0][0]))
    for posterior in (at_once, one_by_one):
        posterior.add(LEVELS.indicate(pool[:1])[0], SLOPE * pool[0], 1.5)
    np.testing.assert_allclose(at_once.variance, one_by_one.variance, atol=1e-4)
    np.testing.assert_allclose(at_once.mean, one_by_one.mean, atol=1e-4)
    assert np.abs(at_once.mean - expected).max() > 0.01
    for ours, theirs in zip(at_once.predict(x, trend), one_by_one.predict(x, trend), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_repeated_observations_do_not_break_the_posterior():
    data = some_data(5)
    x = data.trend / SLOPE
    posterior = posterior_over(x, data, Hyper(np.full(3, 3.0), np.zeros(3), signal=4.0, noise=-9.0))
    for _ in range(40):
        posterior.add(data.x[0], data.trend[0], 1.0)
    assert np.isfinite(posterior.mean).all()
    assert posterior.predict(data.x[:1], data.trend[:1])[0][0] == pytest.approx(1.0, abs=0.1)


def test_low_fidelity_informs_the_top_fidelity_but_less_than_the_top_itself():
    values = np.linspace(0, 1, 30)
    levels = Levels([values])
    x, y = levels.indicate(values[:, None]), np.sin(6 * values)
    truth = y[::2]
    few = Data(x[[0, 29]], y[[0, 29]], np.zeros(2), np.zeros(2), np.empty((2, 0)))
    hyper, no_trend = Hyper(np.log([0.3]), np.log([50.0]), noise=-6.0), np.empty((15, 0))

    def with_more(below: float | None) -> float:
        posterior = PoolPosterior(x[::2], no_trend, few, levels, hyper)
        for i in range(1, 29, 2):
            if below is not None:
                posterior.add(x[i], no_trend[0], y[i], 0.0, below)
        return float(np.abs(posterior.mean - truth).mean())

    assert with_more(0.0) < with_more(1.0) < with_more(2.0) < with_more(None)
