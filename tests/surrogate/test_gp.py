"""The Gaussian process against scikit-learn's, finite differences and itself from scratch."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern

from evotune.surrogate.gp import JITTER, Data, Hyper, PoolPosterior, Prior, fit, matern32, matern52, objective, rbf

THEIRS = {matern52: lambda ls: Matern(ls, nu=2.5), matern32: lambda ls: Matern(ls, nu=1.5), rbf: RBF}


def some_data(n: int = 25, d: int = 3, *, fidelities: int = 1) -> Data:
    rng = np.random.default_rng(5)
    x = rng.random((n, d))
    y = np.sin(5 * x[:, 0]) + x[:, 1] ** 2 + 0.05 * rng.standard_normal(n)
    below = np.arange(n) % fidelities
    return Data(x, (y - y.mean()) / y.std(), 0.02 * rng.random(n), below.astype(float))


def sklearn_gp(data: Data, hyper: Hyper, profile) -> GaussianProcessRegressor:
    kernel = ConstantKernel(np.exp(hyper.signal)) * THEIRS[profile](np.exp(hyper.lengths))
    alpha = np.exp(hyper.noise) + data.variance + JITTER
    return GaussianProcessRegressor(kernel, alpha=alpha, optimizer=None).fit(data.x, data.y)


HYPER = Hyper(np.log([0.3, 0.8, 2.0]), signal=0.4, noise=-4.0, decay=-1.5)


@pytest.mark.parametrize("profile", THEIRS)
def test_the_posterior_is_that_of_scikit_learn(profile):
    data, query = some_data(), np.random.default_rng(1).random((40, 3))
    mean, std = sklearn_gp(data, HYPER, profile).predict(query, return_std=True)
    ours, variance = PoolPosterior(query, data, HYPER, profile).predict(query)
    np.testing.assert_allclose(ours, mean, atol=1e-8)
    np.testing.assert_allclose(np.sqrt(variance), std, atol=1e-7)


@pytest.mark.parametrize("profile", THEIRS)
def test_the_posterior_over_a_pool_is_that_of_scikit_learn_in_single_precision(profile):
    data, pool = some_data(), np.random.default_rng(1).random((40, 3))
    mean, std = sklearn_gp(data, HYPER, profile).predict(pool, return_std=True)
    posterior = PoolPosterior(pool, data, HYPER, profile)
    np.testing.assert_allclose(posterior.mean, mean, atol=2e-5)
    np.testing.assert_allclose(posterior.variance, std**2, atol=2e-5)


@pytest.mark.parametrize("profile", THEIRS)
def test_the_evidence_is_that_of_scikit_learn(profile):
    data, prior = some_data(), Prior.of(3)
    flat = Prior(prior.mean, Hyper(np.full(3, 1e6), 1e6, 1e6, 1e6))
    other = Hyper(np.log([0.5, 0.5, 0.5]), signal=-0.2, noise=-3.0)
    ours = [objective(h.vector(), data, flat, profile)[0] for h in (HYPER, other)]
    theirs = [-sklearn_gp(data, h, profile).log_marginal_likelihood_value_ for h in (HYPER, other)]
    assert ours[0] - ours[1] == pytest.approx(theirs[0] - theirs[1], abs=1e-6)


@pytest.mark.parametrize("profile", THEIRS)
def test_the_gradient_is_the_finite_difference(profile):
    data, prior, at = some_data(fidelities=3), Prior.of(3), HYPER.vector()
    _, gradient = objective(at, data, prior, profile)
    for j, step in enumerate(1e-5 * np.eye(len(at))):
        up, down = (objective(at + s, data, prior, profile)[0] for s in (step, -step))
        assert gradient[j] == pytest.approx((up - down) / 2e-5, abs=1e-5), f"hyper-parameter {j}"


def test_fitting_finds_which_feature_matters():
    found = fit(some_data(60), Prior.of(3).mean, Prior.of(3), iterations=60)
    assert np.argmax(found.lengths) == 2, "the third feature has no effect"
    assert found.lengths[0] < found.lengths[1], "the sine bends more than the parabola"


def test_one_observation_at_a_time_is_all_at_once():
    data, pool = some_data(30, fidelities=2), np.random.default_rng(1).random((50, 3))
    whole = PoolPosterior(pool, data, HYPER)
    grown = PoolPosterior(pool, Data(data.x[:2], data.y[:2], data.variance[:2], data.below[:2]), HYPER)
    for i in range(2, 30):
        grown.add(data.x[i], data.y[i], data.variance[i], data.below[i])
    np.testing.assert_allclose(grown.mean, whole.mean, atol=1e-4)
    np.testing.assert_allclose(grown.variance, whole.variance, atol=1e-4)
    for ours, theirs in zip(grown.predict(pool), whole.predict(pool), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_repeated_observations_do_not_break_the_posterior():
    data = some_data(5)
    posterior = PoolPosterior(data.x, data, Hyper(np.full(3, 3.0), signal=4.0, noise=-9.0))
    for _ in range(40):
        posterior.add(data.x[0], 1.0)
    assert np.isfinite(posterior.mean).all()
    assert posterior.predict(data.x[:1])[0][0] == pytest.approx(1.0, abs=0.1)


def test_low_fidelity_informs_the_top_fidelity_but_less_than_the_top_itself():
    x = np.linspace(0, 1, 30)[:, None]
    y = np.sin(6 * x[:, 0])
    truth = y[::2]
    few = Data(x[[0, 29]], y[[0, 29]], np.zeros(2), np.zeros(2))

    def with_more(below: float) -> float:
        posterior = PoolPosterior(x[::2], few, Hyper(np.log([0.3]), noise=-6.0))
        for i in range(1, 29, 2):
            posterior.add(x[i], y[i], 0.0, below)
        return float(np.abs(posterior.mean - truth).mean())

    alone = float(np.abs(PoolPosterior(x[::2], few, Hyper(np.log([0.3]), noise=-6.0)).mean - truth).mean())
    assert with_more(0.0) < with_more(1.0) < with_more(2.0) < alone
