"""What trials nearby tell of the chance of running, and of other outcomes."""

from __future__ import annotations

import numpy as np

from evotune.surrogate.kernel import Levels
from evotune.surrogate.nearby import PRIOR_SHARE, Nearby

LEVELS = Levels([np.linspace(0, 1, 21)] * 3)


def a_limit(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Points of which those with a large first feature fail; the other two do not matter."""
    x = np.random.default_rng(0).random((n, 3))
    return LEVELS.indicate(x), x[:, 0] < 0.6


def test_a_limit_is_found_between_points_never_tried():
    x, ok = a_limit()
    fresh = np.random.default_rng(1).random((200, 3))
    there = LEVELS.indicate(fresh)
    share = Nearby(there, x, ok, LEVELS).at(there, PRIOR_SHARE)
    assert share[fresh[:, 0] < 0.5].min() > 0.5 > share[fresh[:, 0] > 0.7].max()


def test_nothing_is_certain():
    x, ok = a_limit()
    share = Nearby(x, x, ok, LEVELS).over_pool(PRIOR_SHARE)
    assert 0 < share.min() < share.max() < 1


def test_far_from_everything_the_belief_stays_as_it_was():
    x = LEVELS.indicate(np.array([[0.0, 0.0, 0.0], [0.05, 0.0, 0.0], [0.0, 0.05, 0.0], [0.05, 0.05, 0.0]]))
    nearby = Nearby(x, x, np.array([1.0, 0.0, 1.0, 0.0]), LEVELS)
    near, far = nearby.at(LEVELS.indicate(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])), 0.7)
    assert abs(far - 0.7) < abs(near - 0.7)


def test_a_part_of_the_pool_is_the_pool_without_the_rest():
    x, ok = a_limit()
    whole, part = (Nearby(x, x[:30], ok[:30], LEVELS) for _ in range(2))
    rows = np.array([3, 40, 50])
    part.focus(rows)
    for nearby in (whole, part):
        nearby.add(x[31], 1.0)
    np.testing.assert_allclose(part.over_pool(0.5), whole.over_pool(0.5)[rows], rtol=1e-6)


def test_the_pool_and_any_features_agree_also_after_more_trials():
    x, ok = a_limit()
    nearby = Nearby(x, x[:30], ok[:30], LEVELS)
    before = nearby.over_pool(PRIOR_SHARE)
    for row, ran in zip(x[30:], ok[30:], strict=True):
        nearby.add(row, float(ran))
    after = nearby.over_pool(PRIOR_SHARE)
    np.testing.assert_allclose(after, nearby.at(x, PRIOR_SHARE), atol=1e-4)
    assert abs(after - before).max() > 0.05
