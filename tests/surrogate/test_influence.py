"""What single parameters explain of a known function."""

import numpy as np
import pytest

from evotune.space import ConfigSpace
from evotune.surrogate.influence import MOST_VALUES, axes, explained


def test_a_sum_is_shared_by_the_variances_of_its_terms():
    space = ConfigSpace.from_dict({"a": range(4), "b": range(4), "c": range(4), "one": [7]})
    a, b, _, _ = space.keys.T.astype(float)
    # Both have the same variance, so that of 3 a is nine times that of b.
    found = explained(space, space.keys, 3 * a + b)
    assert found == pytest.approx({"a": 0.9, "b": 0.1, "c": 0.0})
    assert list(found) == ["a", "b", "c"]


def test_what_parameters_do_only_together_is_explained_by_none():
    space = ConfigSpace.from_dict({"a": [0, 1], "b": [0, 1]})
    a, b = space.keys.T
    assert explained(space, space.keys, np.logical_xor(a, b).astype(float)) == pytest.approx({"a": 0.0, "b": 0.0})


def test_of_a_constant_nothing_is_to_be_explained():
    space = ConfigSpace.from_dict({"a": range(3), "b": range(2)})
    assert explained(space, space.keys, np.full(6, 2.5)) == {"a": 0.0, "b": 0.0}


def test_axes_come_in_order_until_their_pairs_have_too_many_cells():
    space = ConfigSpace.from_dict({"a": range(100), "b": range(10), "c": range(10), "d": [1]})
    found = axes(space, ["a", "b", "c"], most_cells=MOST_VALUES * 10)
    assert [(axis.name, len(axis.values)) for axis in found] == [("a", MOST_VALUES), ("b", 10)]
    assert (found[0].values[0], found[0].values[-1]) == (0, 99)
    assert [axis.name for axis in axes(space, ["d"], 10)] == ["d"]
