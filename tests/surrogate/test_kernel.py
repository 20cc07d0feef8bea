"""The product of features' kernels by tables, against the formula written out and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evotune.surrogate.kernel import PROFILES, Factors, Hyper, Levels, Prior, matern52

LEVELS = Levels([np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0]), np.linspace(0, 1, 7)])
HYPER = Hyper(np.log([0.3, 0.8, 2.0]), np.log([0.2, 5.0, 1.0]))


def some_rows(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.choice(values, n) for values in LEVELS.values])


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_tables_give_the_product_of_one_plus_each_features_kernel(profile):
    a, b = some_rows(20), some_rows(30, seed=1)
    table = LEVELS.table(Factors.of(LEVELS, HYPER, profile).log)
    found = np.exp(LEVELS.indicate(a) @ table @ LEVELS.indicate(b).T)
    wanted = np.ones((20, 30))
    for j, (length, weight) in enumerate(zip(np.exp(HYPER.lengths), np.exp(HYPER.weights), strict=True)):
        c, _ = profile(((a[:, None, j] - b[None, :, j]) / length) ** 2)
        wanted *= (1 + weight * c) / (1 + weight)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("which", ["lengths", "weights"])
def test_derivatives_are_finite_differences(profile, which):
    factors = Factors.of(LEVELS, HYPER, profile)
    found = factors.by_length if which == "lengths" else factors.by_weight
    for j in range(LEVELS.dimensions):
        step = 1e-6 * (np.arange(LEVELS.dimensions) == j)
        moved = {"lengths": HYPER.lengths, "weights": HYPER.weights}
        up, down = (Hyper(**{**moved, which: moved[which] + s}) for s in (step, -step))
        difference = Factors.of(LEVELS, up, profile).log - Factors.of(LEVELS, down, profile).log
        mine = LEVELS.pairs.feature == j
        np.testing.assert_allclose(found[mine], difference[mine] / 2e-6, atol=1e-6)
        assert not difference[~mine].any(), "another feature's table moved"


def test_large_weights_leave_the_product_kernel_and_small_ones_a_sum():
    far = np.array([0.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])
    ends = LEVELS.indicate(np.array(far))

    def correlation(weight: float) -> float:
        hyper = Hyper(np.log([0.2, 0.2, 0.2]), np.full(3, np.log(weight)))
        return float(np.exp(ends @ LEVELS.table(Factors.of(LEVELS, hyper, matern52).log) @ ends.T)[0, 1])

    assert correlation(1e4) < 0.01, "one feature apart is far apart"
    assert correlation(0.01) > 0.98, "the other features' effects are shared"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_row_is_at_the_nearest_level_of_each_feature(column):
    x = np.column_stack([column, column, column])
    indicators = LEVELS.indicate(x)
    assert (indicators.sum(1) == LEVELS.dimensions).all()
    for j, values in enumerate(LEVELS.values):
        block = indicators[:, LEVELS.starts[j] : LEVELS.starts[j + 1]]
        chosen = values[block.argmax(1)]
        np.testing.assert_allclose(abs(chosen - x[:, j]), abs(values - x[:, j, None]).min(1), atol=1e-12)


def test_a_vector_of_hyper_parameters_comes_back():
    again = Hyper.of(HYPER.vector())
    np.testing.assert_array_equal(again.vector(), HYPER.vector())
    np.testing.assert_array_equal(again.weights, HYPER.weights)


def test_one_prior_expects_single_effects_and_the_other_local_ones():
    additive, local = Prior.additive(3), Prior.local(3, length=1.2)
    assert np.exp(additive.mean.weights).max() < 1 < np.exp(local.mean.weights).min()
    np.testing.assert_allclose(np.exp(local.mean.lengths), 1.2)
