"""Helion's spaces as ours; skipped with the reason where Helion is not installed."""

import math
from contextlib import contextmanager
from functools import cache
from random import Random

import pytest

from evotune.errors import UsageError
from evotune.space import Parameter

pytest.importorskip("helion", reason="needs helion; pip install helion", exc_type=ImportError)

from helion.autotuner.config_fragment import (
    EnumFragment,
    IntegerFragment,
    ListOf,
    PermutationFragment,
    PowerOfTwoFragment,
)
from simulated import GPUS, KERNELS, bound

from evotune.helion.headless import pretended
from evotune.helion.space import MOST_NUMBERS, HelionSpace, _tunable

EVERY = pytest.mark.parametrize("gpu", ["h100", "b200"])
EACH = pytest.mark.parametrize("kernel", KERNELS)


@cache
def made(kernel, gpu):
    with bound(kernel, gpu) as (found, _):
        return HelionSpace(found.config_spec.create_config_generation())


@contextmanager
def space(kernel, gpu):
    """While Helion takes that GPU for this machine's: it asks whenever it makes a configuration."""
    found = made(kernel, gpu)
    with pretended(GPUS[gpu]):
        yield found


@EVERY
@EACH
def test_a_configuration_comes_back_as_what_helion_makes_of_it(kernel, gpu):
    with space(kernel, gpu) as found:
        for config in found.space.sample(Random(0), 25):
            helions = found.config(config)
            canonical = found.canonical(config)
            assert canonical == found.from_config(helions)
            assert found.canonical(canonical) == canonical
            assert found.config(canonical) == helions  # one kernel, one name


@EVERY
@EACH
def test_what_helion_starts_from_is_legal_and_comes_back_as_it_was(kernel, gpu):
    with space(kernel, gpu) as found:
        assert len(found.seeds) >= 2
        assert found.space.default == found.seeds[0]
        for seed in found.seeds:
            assert found.space.violations(seed) == []
            assert found.from_config(found.config(seed)) == seed


@EVERY
@EACH
def test_most_that_is_drawn_is_left_as_it_is(kernel, gpu):
    with space(kernel, gpu) as found:
        drawn = found.space.sample(Random(1), 200)
        kept = sum(found.canonical(config) == config for config in drawn)
    assert kept > 0.55 * len(drawn)  # 26 to 60 % without the rules
    flat = sum(config["pid_type"] == "flat" for config in drawn)
    assert 0.2 * len(drawn) < flat < 0.5 * len(drawn)  # one of three, and not crowded out by its conditions


def test_what_is_tuned_is_what_helion_tunes_for_that_gpu():
    h100, b200 = made("matmul", "h100"), made("matmul", "b200")
    assert "range_warp_specializes_0" in b200.space.names
    assert "range_warp_specializes_0" not in h100.space.names
    assert h100.space.parameters["block_sizes_0"] == Parameter(tuple(2**i for i in range(4, 13)), ordered=True)
    assert h100.names_of("indexing") == ["indexing_0", "indexing_1", "indexing_2"]
    assert h100.space.parameters["maxnreg"].values == ("None", 32, 64, 128, 256)
    assert b200.space.cardinality > 1e15
    assert "reduction_loops_0" in made("rms_norm", "h100").space.names


@pytest.mark.parametrize(
    "fragment",
    [
        EnumFragment((None, False, True, 1, "True", 2.5)),
        EnumFragment((None, "None")),
        PowerOfTwoFragment(1, 64, 4),
        IntegerFragment(-3, 3, 0),
        PermutationFragment(1),
        PermutationFragment(4),
        ListOf(EnumFragment(("", "first")), 3),
        ListOf(EnumFragment(("", "first")), 0),
    ],
)
def test_every_value_of_a_fragment_has_a_place_of_its_own(fragment):
    tunable = _tunable("p", fragment, [fragment.default()], is_fixed=False)
    sizes = [len(p.values) for p in tunable.parameters.values()]
    assert math.prod(sizes) == fragment.cardinality()
    rng = Random(0)
    found = set()
    for _ in range(50 * math.prod(sizes)):
        values = [rng.choice(p.values) for p in tunable.parameters.values()]
        raw = tunable.join(values)
        assert tunable.split(raw) == values
        found.add(repr(raw))
    assert len(found) == fragment.cardinality()


def test_a_wide_range_is_listed_in_steps_with_its_ends_and_the_values_of_seeds():
    (parameter,) = _tunable("n", IntegerFragment(1, 10_000, 100), [100, 4321], is_fixed=False).parameters.values()
    assert {1, 10_000, 100, 4321} <= set(parameter.values)
    assert len(parameter.values) <= MOST_NUMBERS + 2
    assert list(parameter.values) == sorted(parameter.values)


def test_what_an_override_fixes_has_one_value():
    with bound() as (found, _):
        generation = found.config_spec.create_config_generation(overrides={"num_warps": 8})
        fixed = HelionSpace(generation)
        assert fixed.space.parameters["num_warps"].values == (8,)
        assert {fixed.config(c).config["num_warps"] for c in fixed.space.sample(Random(0), 20)} == {8}


def test_a_choice_that_the_space_has_not_is_refused_with_what_it_has():
    with pytest.raises(UsageError, match=r"'x'.*\[None, 'a'\]"):
        _tunable("p", EnumFragment((None, "a")), [None], is_fixed=False).split("x")
