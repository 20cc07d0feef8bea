"""Parameters as Helion's fragments; skipped with the reason where Helion is not installed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evotune.space import ConfigSpace, Parameter

pytest.importorskip("helion", reason="needs helion; pip install helion", exc_type=ImportError)

from evotune.helion.fragments import Fragments

SCALARS = st.one_of(
    st.booleans(), st.integers(-5, 300), st.floats(-9, 9, allow_nan=False), st.sampled_from(["nt", "tn", "1", ""])
)
POWERS = st.tuples(st.integers(0, 6), st.integers(0, 5)).map(
    lambda found: Parameter(tuple(2**i for i in range(found[0], found[0] + found[1] + 1)), ordered=True)
)
VALUES = st.lists(SCALARS, min_size=1, max_size=6, unique_by=lambda v: (type(v), v))
# A type alone does not say whether there is an order, and 1 and True, or 1 and 1.0, may be together.
PARAMETERS = st.one_of(POWERS, VALUES.map(Parameter.of), VALUES.map(lambda v: Parameter(tuple(v), ordered=False)))


@st.composite
def spaces(draw):
    parameters = {f"p{i}": p for i, p in enumerate(draw(st.lists(PARAMETERS, min_size=1, max_size=4)))}
    default = {n: draw(st.sampled_from(p.values)) for n, p in parameters.items()}
    return ConfigSpace(parameters, default=default)


def fragment(values, default, *, in_steps=True, ordered=None):
    parameter = Parameter.of(values) if ordered is None else Parameter(tuple(values), ordered)
    space = ConfigSpace({"p": parameter}, default={"p": default})
    return Fragments(space, in_steps=in_steps).tunables["p"].fragment


@given(spaces(), st.booleans(), st.data())
def test_a_configuration_comes_back_from_helion_as_it_was(space, in_steps, data):
    fragments = Fragments(space, in_steps=in_steps)
    config = {n: data.draw(st.sampled_from(p.values)) for n, p in space.parameters.items()}
    back = space.from_key(fragments.key(fragments.from_key(space.key(config))))
    assert [(type(v), v) for v in back.values()] == [(type(v), v) for v in config.values()]


@given(spaces(), st.booleans())
def test_helion_starts_at_the_default_and_draws_every_value(space, in_steps):
    fragments = Fragments(space, in_steps=in_steps)
    defaults = {n: t.fragment.default() for n, t in fragments.tunables.items()}
    assert fragments.key(defaults) == space.key(space.default)
    for name, parameter in space.parameters.items():
        tunable = fragments.tunables[name]
        assert sorted(map(str, tunable.fragment.search_values())) == sorted(map(str, tunable.values))
        assert tunable.fragment.cardinality() == len(parameter.values)


def test_powers_of_two_are_halved_and_doubled_and_seen_as_log2():
    found = fragment([16, 32, 64, 128], 32)
    assert type(found).__name__ == "PowerOfTwoFragment"
    assert sorted(found.pattern_neighbors(64)) == [32, 128]
    assert found.encode(64) == [math.log2(64)]


@pytest.mark.parametrize("values", [[16, 32, 48, 64], [1, 2, 8], [8, 4, 2, 1], [1.0, 2.0, 4.0], [0.5, 0.1, 0.9]])
def test_other_ordered_values_are_stepped_through_in_their_order(values):
    found = fragment(values, values[1])
    assert type(found).__name__ == "IntegerFragment"
    assert sorted(found.pattern_neighbors(1)) == [0, 2]
    assert found.encode(1) == [1.0]


@pytest.mark.parametrize(("values", "ordered"), [([16, 32, 64], True), ([1, 3, 7], True), (["x", "y", "z"], False)])
def test_not_in_steps_any_value_is_a_neighbour(values, ordered):
    found = fragment(values, values[1], in_steps=False, ordered=ordered)
    assert type(found).__name__ == "EnumFragment"
    assert sorted(found.pattern_neighbors(1)) == [0, 2]
    assert sorted(found.encode(2)) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(("default", "kind"), [(False, "BooleanFragment"), (True, "EnumFragment")])
def test_a_boolean_that_is_true_by_default_is_a_choice(default, kind):
    assert type(fragment([False, True], default)).__name__ == kind
