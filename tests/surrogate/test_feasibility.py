"""The chance of running, judged by what was tried."""

from __future__ import annotations

import numpy as np
import pytest

from evotune.surrogate.feasibility import PRIOR_SHARE, Feasibility
from evotune.surrogate.gp import Prior


def a_limit(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Points of which those with a large first feature fail; the other two do not matter."""
    x = np.random.default_rng(0).random((n, 3))
    return x, x[:, 0] < 0.6


def test_a_limit_is_found_between_points_never_tried():
    x, ok = a_limit()
    fresh = np.random.default_rng(1).random((200, 3))
    share = Feasibility(fresh, x, ok, Prior.of(3)).at(fresh)
    assert share[fresh[:, 0] < 0.5].min() > 0.5 > share[fresh[:, 0] > 0.7].max()


def test_nothing_is_certain():
    x, ok = a_limit()
    share = Feasibility(x, x, ok, Prior.of(3)).over_pool
    assert 0 < share.min() < share.max() < 1


def test_far_from_everything_the_prior_is_believed():
    x, ok = a_limit(10)
    assert Feasibility(x, x, ok, Prior.of(3)).at(np.full((1, 3), 1e3))[0] == pytest.approx(PRIOR_SHARE)


def test_the_pool_and_any_features_agree_also_after_more_trials():
    x, ok = a_limit()
    feasibility = Feasibility(x, x[:30], ok[:30], Prior.of(3))
    before = feasibility.over_pool
    for row, ran in zip(x[30:], ok[30:], strict=True):
        feasibility.add(row, bool(ran))
    np.testing.assert_allclose(feasibility.over_pool, feasibility.at(x), atol=1e-4)
    assert abs(feasibility.over_pool - before).max() > 0.05
