from itertools import pairwise, product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evotune.errors import UsageError
from evotune.space import ConfigSpace, Parameter

VALUES = {
    "tile": [16, 32, 64, 128],
    "unroll": [1, 2, 3, 5],
    "pad": [False, True],
    "layout": ["nn", "nt", "tn"],
    "scale": [0.5, 1.0],
}
CONSTRAINTS = [
    "tile * unroll <= limit",
    "layout != 'tn' or pad",
    "unroll % 2 == 1 or not pad",
    "8 < tile < 128 or scale == 1.0",
    "max(tile, 32) >= 32 and layout in ('nn', 'nt', 'tn')",
]


def make() -> ConfigSpace:
    return ConfigSpace.from_dict(VALUES, CONSTRAINTS, constants={"limit": 256})


def brute_force() -> list[dict]:
    configs = [dict(zip(VALUES, v, strict=True)) for v in product(*VALUES.values())]
    return [c for c in configs if all(eval(t, {"limit": 256, **c}) for t in CONSTRAINTS)]


def test_the_table_of_legal_configurations_is_the_filtered_product():
    space = make()
    assert [space.config(r) for r in range(space.cardinality)] == brute_force()


def test_every_legal_configuration_round_trips_through_key_row_and_encoding():
    space = make()
    configs = brute_force()
    assert [space.from_key(space.key(c)) for c in configs] == configs
    x = space.encode(configs)
    assert x.shape == (len(configs), 1 + 1 + 1 + 3 + 1)
    assert x.min() == 0.0
    assert x.max() == 1.0
    decoded = space.decode(x)
    assert decoded == configs
    assert all(type(d[n]) is type(c[n]) for d, c in zip(decoded, configs, strict=True) for n in c)


@given(st.lists(st.one_of(st.integers(-50, 50), st.floats(-9, 9), st.text(max_size=3), st.booleans()), min_size=1))
def test_any_list_of_values_round_trips(values):
    unique = list({(type(v), v): v for v in values}.values())
    space = ConfigSpace.from_dict({"p": unique, "q": [1, 2]})
    configs = [{"p": v, "q": 2} for v in unique]
    assert space.decode(space.encode(configs)) == configs


def test_powers_of_two_are_encoded_by_their_logarithm_and_other_numbers_by_rank():
    space = ConfigSpace.from_dict({"tile": [16, 64, 128], "n": [1, 10, 100]})
    x = space.encode([{"tile": t, "n": n} for t, n in [(16, 1), (64, 10), (128, 100)]])
    np.testing.assert_allclose(x[:, 0], [0, 2 / 3, 1])
    np.testing.assert_allclose(x[:, 1], [0, 0.5, 1])


def test_unordered_values_are_equally_far_from_each_other():
    space = ConfigSpace.from_dict({"layout": ["a", "b", "c"]})
    x = space.encode([{"layout": v} for v in "abc"])
    assert len({round(float(((x[i] - x[j]) ** 2).sum()), 9) for i, j in [(0, 1), (0, 2), (1, 2)]}) == 1


def test_neighbors_are_the_legal_configurations_with_one_difference():
    space = make()
    config = brute_force()[7]
    expected = [c for c in brute_force() if sum(c[n] != config[n] for n in c) == 1]
    assert sorted(map(str, space.neighbors(config))) == sorted(map(str, expected))


def test_all_violations_are_named_at_once():
    found = make().violations({"tile": 17, "unrol": 1, "pad": 1, "layout": "nn", "scale": 0.5})
    assert len(found) == 4
    text = "; ".join(found)
    for part in ("unrol", "did you mean 'unroll'", "17", "'unroll' is missing", "pad = 1"):
        assert part in text


@pytest.mark.parametrize("value", [True, 16.0, "16", None, np.int64(16)])
def test_a_value_of_another_type_is_refused_even_if_equal(value):
    config = {**brute_force()[0], "tile": value}
    assert any("tile" in v for v in make().violations(config))


def test_a_broken_constraint_is_quoted_in_the_message():
    config = {"tile": 128, "unroll": 5, "pad": False, "layout": "nn", "scale": 1.0}
    assert make().violations(config) == ["constraint 'tile * unroll <= limit' does not hold"]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("tile < n", "unknown parameters ['n']"),
        ("tile <", "not a Python expression"),
        ("__import__('os').system('true')", "unknown parameters ['__import__']"),
        ("tile.bit_length() < 3", "uses"),
        ("(lambda: tile)()", "uses"),
        ("[tile for tile in (1, 2)]", "uses"),
        ("~tile == 1", "uses Invert; allowed are"),
        ("tile in size", "uses in size, which is no list"),
        ("tile not in 5", "uses in 5, which is no list"),
        ("tile in [1] in [True]", "uses a list that follows no in"),
        ("tile == [1, 2]", "uses a list that follows no in"),
        ("abs(tile, tile) > 0", "uses abs of 2 values, which takes one"),
        ("min() > 0", "uses min of 0 values, which takes two or more"),
        ("max(tile) > 0", "uses max of 1 values"),
        ("mode < 5", "cannot be computed: '<' not supported"),
        ("mixed < 5", "cannot be computed: '<' not supported"),
        ("8 % mixed == 0", "cannot be computed"),
    ],
)
def test_a_constraint_that_cannot_be_used_is_refused_with_its_text(constraint, message):
    with pytest.raises(UsageError) as caught:
        ConfigSpace.from_dict(
            {"tile": [1, 2], "mode": ["a", "b"], "mixed": [1, 2, "auto"]}, [constraint], constants={"size": 4}
        )
    assert message in str(caught.value)
    assert constraint in str(caught.value)


@pytest.mark.parametrize(
    "constraint",
    [
        "a in [1, b] or a not in (0, -2)",
        "2 ** a < 1",
        "a ** 2 == 4",
        "a % 2 == 1 and -a < +b",
        "f + g == 1",
        "f + g + 1 >= 2 - f * g",
        "-f < 0",
        "min(a, b, 1) <= abs(a - b)",
        "1 if f else a > 0",
    ],
)
def test_a_constraint_says_of_configurations_what_python_says_of_them(constraint):
    values = {"a": [-2, -1, 0, 1, 3], "b": [0, 1, 2], "f": [False, True], "g": [False, True]}
    space = ConfigSpace.from_dict(values, [constraint])
    rows = [dict(zip(values, row, strict=True)) for row in product(*values.values())]
    right = [row for row in rows if eval(constraint, {}, row)]
    assert [space.config(i) for i in range(space.cardinality)] == right
    assert [row for row in rows if not space.violations(row)] == right


@pytest.mark.parametrize("given", [4, "nt", None])
def test_a_parameter_without_a_list_of_values_is_refused(given):
    with pytest.raises(UsageError, match=r"w: .* is no list of values; .* give \["):
        ConfigSpace.from_dict({"w": given})


@pytest.mark.parametrize(
    "values", [{}, {"a": []}, {"a": [1, 1]}, {"a": [None]}, {"a": [float("nan")]}, {"a b": [1]}]
)
def test_a_space_without_a_choice_or_with_odd_values_is_refused(values):
    with pytest.raises(UsageError):
        ConfigSpace.from_dict(values)


def test_a_space_without_a_legal_configuration_says_so():
    space = ConfigSpace.from_dict({"a": [1, 2]}, ["a > 2"])
    for use in (lambda: space.default, lambda: space.keys, lambda: space.sample(Random(0), 1)):
        with pytest.raises(UsageError, match="no legal configuration"):
            use()


def test_an_illegal_default_is_refused():
    with pytest.raises(UsageError, match="a = 3"):
        ConfigSpace.from_dict({"a": [1, 2]}, default={"a": 3})


def test_constraints_are_obeyed_where_combinations_are_more_than_can_be_numbered():
    """Flipping an early one of 70 bits leaves a number of 64 bits as it was."""
    names = [f"p{i}" for i in range(70)]
    same = [f"{a} == {b}" for a, b in pairwise(names)]
    space = ConfigSpace.from_dict({name: [0, 1] for name in names}, [*same, "p69 == 1"])
    ones = dict.fromkeys(names, 1)
    assert [space.config(row) for row in range(space.cardinality)] == [ones]
    assert space.violations(ones) == []
    assert space.violations({**ones, "p0": 0}) == ["constraint 'p0 == p1' does not hold"]


def test_a_space_too_large_to_enumerate_is_sampled_legally_and_can_dead_end():
    values = {f"p{i}": list(range(10)) for i in range(16)}
    constraints = [f"p{i} + p{i + 1} >= 12" for i in range(15)]
    space = ConfigSpace.from_dict(values, constraints)
    assert not space.is_enumerable
    assert space.cardinality == 10**16
    configs = space.sample(Random(3), 50)
    assert not any(space.violations(c) for c in configs)
    assert configs == space.sample(Random(3), 50)
    assert len({str(c) for c in configs}) > 45
    with pytest.raises(UsageError, match="too many"):
        _ = space.keys
    impossible = ConfigSpace.from_dict(values, [*constraints, "p0 + p1 > 18"])
    with pytest.raises(UsageError, match="no legal configuration"):
        impossible.sample(Random(0), 1)


def test_constraints_see_division_by_zero_as_python_short_circuit_would():
    space = ConfigSpace.from_dict({"n": [0, 2, 3]}, ["n == 0 or 6 % n == 0"])
    assert space.cardinality == 3


def test_booleans_and_text_are_not_ordered_and_numbers_are():
    assert Parameter.of([1, 2]).ordered
    assert not Parameter.of([True, False]).ordered
    assert not Parameter.of(["a", "b"]).ordered
    assert Parameter.of([1, 2, 8]).is_log
    assert not Parameter.of([0, 2, 8]).is_log
