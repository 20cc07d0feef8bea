"""What the encodings say about configurations."""

from __future__ import annotations

import numpy as np
import pytest

from evotune.space import ConfigSpace
from evotune.surrogate.features import Encoding, alignment

CONV = ConfigSpace.from_dict(
    {
        "block_x": [16, 32, 48, 64, 96, 112, 128],
        "block_y": [1, 2, 4, 8],
        "layout": ["nt", "tn", "nn"],
        "pad": [0, 1],
    },
    ["block_x * block_y <= 512", "(block_x + halo) * block_y < 600"],
    constants={"halo": 14},
)


@pytest.mark.parametrize("scale", ["log2", "declared"])
@pytest.mark.parametrize("products", [True, False])
def test_features_span_the_unit_interval_over_the_reference(scale, products):
    x = Encoding(CONV, CONV.keys, scale, products=products).features(CONV.keys)
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x.min(0), 0.0)
    assert set(np.round(x.max(0), 6)) <= {1.0, round(0.5**0.5, 6)}


def test_alignment_is_the_number_of_trailing_zero_bits():
    values = np.arange(1, 300)
    expected = [len(bin(v)) - len(bin(v).rstrip("0")) for v in values]
    np.testing.assert_array_equal(alignment(values.astype(float)), expected)


def test_48_and_112_share_their_alignment_and_differ_from_64():
    declared = Encoding(CONV, CONV.keys, "declared", products=False).features
    at = {v: declared(np.array([[CONV.parameters["block_x"].index(v), 0, 0, 0]]))[0, 1] for v in (48, 64, 112)}
    assert at[48] == at[112] < at[64]


def test_the_same_number_of_threads_is_the_same_feature():
    space = ConfigSpace.from_dict({"x": [16, 32, 64], "y": [16, 32, 64]}, ["x * y <= 4096"])
    encoding = Encoding(space, space.keys)
    assert encoding.dimensions == 3
    wide, tall, small = encoding.features(np.array([[2, 0], [0, 2], [0, 0]]))
    assert wide[2] == tall[2] > small[2] == 0.0


def test_every_product_counts_once_and_constants_count_in():
    with_products = Encoding(CONV, CONV.keys).dimensions
    assert with_products - Encoding(CONV, CONV.keys, products=False).dimensions == 2


def test_unordered_values_are_equally_far_from_each_other():
    space = ConfigSpace.from_dict({"layout": ["a", "b", "c", "d"]})
    x = Encoding(space, space.keys).features(space.keys)
    distances = ((x[:, None] - x[None]) ** 2).sum(2)
    np.testing.assert_allclose(distances, 1.0 - np.eye(4), atol=1e-12)


def test_the_two_scales_disagree_on_what_is_near():
    space = ConfigSpace.from_dict({"n": [1, 2, 100]})
    log2, declared = (Encoding(space, space.keys, s).features(space.keys)[:, 0] for s in ("log2", "declared"))
    assert log2[1] == pytest.approx(np.log2(2) / np.log2(100))
    assert declared[1] == 0.5


def test_zeros_negatives_strings_in_products_and_constant_parameters_are_no_obstacle():
    space = ConfigSpace.from_dict(
        {"a": [0, 1, 2, 4], "b": [-2, 3], "c": [0.5, 1.5], "d": ["x", "y"], "e": [7]},
        ["a * b <= 100", "a * (d == 'x') < 9", "a * b * c * e < 1000"],
    )
    assert np.isfinite(Encoding(space, space.keys).features(space.keys)).all()


def test_rows_are_indicators_of_the_levels_of_their_features_however_many_are_asked_for():
    encoding = Encoding(CONV, CONV.keys)
    x, all_at_once = encoding.features(CONV.keys), encoding(CONV.keys)
    one_by_one = np.concatenate([encoding(CONV.keys[i : i + 1]) for i in range(len(CONV.keys))])
    np.testing.assert_array_equal(all_at_once, one_by_one)
    for j, values in enumerate(encoding.levels.values):
        start, end = encoding.levels.starts[j : j + 2]
        np.testing.assert_allclose(all_at_once[:, start:end] @ values, x[:, j], atol=1e-6)


def test_a_feature_with_hundreds_of_values_is_told_apart_coarsely():
    space = ConfigSpace.from_dict({"a": list(range(1, 40)), "b": list(range(1, 40))}, ["a * b < 1000"])
    encoding = Encoding(space, space.keys)
    product = encoding.features(space.keys)[:, -1]
    levels = encoding.levels.values[-1]
    assert len(levels) <= 32 < len(np.unique(product))
    assert np.abs(product[:, None] - levels).min(1).max() < 0.017
