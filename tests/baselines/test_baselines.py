import itertools
import math
from random import Random
from statistics import mean

import pytest

from evotune.baselines import (
    BASELINES,
    DifferentialEvolution,
    GeneticAlgorithm,
    PatternSearch,
    RandomSearch,
    SimulatedAnnealing,
)
from evotune.compare import synthetic
from evotune.proposers.base import Feedback
from evotune.session import searcher
from evotune.settings import load
from evotune.space import ConfigSpace
from evotune.trial import Candidate

VALUES = {"block_m": [16, 32, 64, 128], "block_n": [16, 32, 64, 128], "stages": [1, 2, 3], "layout": ["nt", "tn"]}
SPACE = ConfigSpace.from_dict(VALUES, ["block_m * block_n <= 4096", "stages > 1 or layout == 'nt'"])
LEGAL = {c for c in itertools.product(*VALUES.values()) if c[0] * c[1] <= 4096 and (c[2] > 1 or c[3] == "nt")}
EVERY = pytest.mark.parametrize("name", BASELINES)


def loss(config):
    """Log latency of a bowl whose bottom is 64, 32, 2, tn; one corner fails."""
    if config["block_m"] == config["block_n"] == 16:
        return None
    bowl = abs(math.log2(config["block_m"]) - 6) + 1.5 * abs(math.log2(config["block_n"]) - 5)
    return 0.3 * bowl + 0.2 * abs(config["stages"] - 2) + 0.1 * (config["layout"] == "nt")


def run(search, n, *, loss=loss, slots=1):
    """What a search proposes while up to ``slots`` are in flight, told in a shuffled order."""
    proposed, flying, rng = [], [], Random(0)
    while len(proposed) < n or flying:
        while len(flying) < slots and len(proposed) < n:
            candidate = search.ask([c.config for _, c in flying])
            if candidate is None:
                n = len(proposed)
                break
            flying.append((len(proposed), candidate))
            proposed.append(candidate)
        if flying:
            number, candidate = flying.pop(rng.randrange(len(flying)))
            search.tell([Feedback(number, candidate, loss(candidate.config))])
    return proposed


def values(candidates):
    return [tuple(c.config.values()) for c in candidates]


@EVERY
@pytest.mark.parametrize("slots", [1, 7])
def test_every_legal_configuration_is_proposed_once_and_then_nothing(name, slots):
    search = BASELINES[name](SPACE, 3)
    found = values(run(search, 10_000, slots=slots))
    assert sorted(found) == sorted(LEGAL)
    assert search.ask([]) is None


@EVERY
def test_the_first_proposal_is_the_default(name):
    first = BASELINES[name](SPACE, 1).ask([])
    assert first.config == SPACE.default
    assert first.origin == "default"


@EVERY
def test_the_seed_decides_what_is_proposed(name):
    one, same, other = (values(run(BASELINES[name](SPACE, seed), 25)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@EVERY
@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_search_that_is_told_the_past_goes_on_as_if_it_had_asked(name, cut):
    whole = run(BASELINES[name](SPACE, 5), 40)
    resumed = BASELINES[name](SPACE, 5)
    resumed.tell([Feedback(i, c, loss(c.config)) for i, c in enumerate(whole[:cut])])
    told = []
    for number in range(cut, 40):
        told.append(resumed.ask([]))
        resumed.tell([Feedback(number, told[-1], loss(told[-1].config))])
    assert told == whole[cut:]


@EVERY
def test_configurations_in_flight_that_somebody_else_asked_for_are_not_proposed(name):
    pending = [SPACE.config(i) for i in range(0, SPACE.cardinality, 2)]
    search = BASELINES[name](SPACE, 0)
    found = []
    while (candidate := search.ask(pending)) is not None:
        found.append(candidate.config)
    assert len(found) == SPACE.cardinality - len(pending)
    assert all(c not in pending for c in found)


@EVERY
def test_a_space_where_everything_fails_is_searched_to_the_end(name):
    found = run(BASELINES[name](SPACE, 0), 10_000, loss=lambda _: None)
    assert len(found) == len(LEGAL)
    assert {c.origin for c in found} <= {"default", "random"}  # a failure is nobody's parent


@EVERY
def test_a_space_too_large_to_enumerate_gives_new_legal_configurations(name):
    space = ConfigSpace.from_dict({f"p{i}": range(12) for i in range(12)}, ["p0 + p1 + p2 < 20"])
    found = run(BASELINES[name](space, 0), 150, loss=lambda c: float(sum(c.values())))
    assert len(set(values(found))) == 150
    assert not any(space.violations(c.config) for c in found)


@EVERY
def test_proposals_carry_a_program_and_a_parent_that_was_told(name):
    found = run(BASELINES[name](SPACE, 0), 60)
    for number, candidate in enumerate(found):
        assert "def get_kernel_config" in candidate.program
        assert (candidate.parent is None) == (candidate.origin in ("default", "random"))
        assert candidate.parent is None or candidate.parent < number


@pytest.mark.parametrize("name", [n for n in BASELINES if n != "random"])
def test_every_method_finds_more_than_random_search_does(name):
    def best(make):
        told = []
        for seed in range(8):
            space = synthetic.space()
            found = run(make(space, seed), 150, loss=lambda c: math.log(synthetic.latency_ms(c)))
            told.append(min(math.log(synthetic.latency_ms(c.config)) for c in found))
        return mean(told)

    assert best(BASELINES[name]) < best(RandomSearch)


def test_random_search_draws_uniformly():
    firsts = [values(run(RandomSearch(SPACE, seed), 2))[1] for seed in range(2000)]
    expected = 2000 / (len(LEGAL) - 1)
    chi2 = sum((firsts.count(c) - expected) ** 2 / expected for c in LEGAL - {tuple(SPACE.default.values())})
    assert chi2 < 120  # 66 degrees of freedom: p < 1e-4


def test_pattern_search_measures_each_step_from_the_best_and_moves_to_the_best_of_them():
    space = ConfigSpace.from_dict(
        {"a": [1, 2, 3, 4, 5], "layout": ["x", "y", "z"]}, default={"a": 3, "layout": "x"}
    )
    cost = {"x": 0.0, "y": 0.3, "z": -0.2}
    search = PatternSearch(space, 0, population=1, copies=1)
    found = values(run(search, 9, loss=lambda c: c["a"] + cost[c["layout"]]))
    assert found[0] == (3, "x")
    assert set(found[1:5]) == {(2, "x"), (4, "x"), (3, "y"), (3, "z")}
    assert set(found[5:8]) == {(1, "x"), (2, "y"), (2, "z")}  # one step from (2, x), and not seen
    assert set(found[8:]) <= {(1, "y"), (1, "z")}


def test_pattern_search_descends_from_trials_that_it_is_given_and_then_draws_a_population():
    space = ConfigSpace.from_dict({"a": range(30), "b": range(5)}, default={"a": 20, "b": 0})
    configs = [{"a": 20, "b": 0}, {"a": 9, "b": 4}, {"a": 28, "b": 3}]
    given = [Feedback(n, Candidate(c, "", "random"), float(abs(c["a"] - 12))) for n, c in enumerate(configs)]
    search = PatternSearch(space, 0, copies=1, population=10, start=given)
    assert search.populations == 0
    found = run(search, 3, loss=lambda c: float(abs(c["a"] - 12)))
    assert set(values(found)) == {(8, 4), (10, 4), (9, 3)}
    assert [c.parent for c in found] == [1, 1, 1]
    while search.populations == 0:
        found += run(search, 1, loss=lambda c: float(abs(c["a"] - 12)))
    assert min(abs(c.config["a"] - 12) for c in found) == 0


def test_pattern_search_moves_two_block_sizes_at_once():
    space = ConfigSpace.from_dict(
        {"BLOCK_M": [16, 32], "BLOCK_N": [16, 32]},
        ["BLOCK_M * BLOCK_N == 512"],
        default={"BLOCK_M": 16, "BLOCK_N": 32},
    )
    found = run(PatternSearch(space, 0, population=1), 2, loss=lambda _: 0.0)
    assert values(found) == [(16, 32), (32, 16)]
    assert found[1].parent == 0


def test_annealing_cools_geometrically_and_accepts_what_is_worse_as_often_as_metropolis_says():
    search = SimulatedAnnealing(SPACE, 0, start_temperature=1.0, end_temperature=0.01, evaluations=20)
    run(search, 10)
    assert search.temperature == pytest.approx(0.1)
    stayed = 0
    for seed in range(1000):
        walker = SimulatedAnnealing(SPACE, seed, start_temperature=0.5, end_temperature=0.5)
        start = walker.ask([])
        walker.tell([Feedback(0, start, 0.0)])
        step = walker.ask([])
        walker.tell([Feedback(1, step, 0.25)])
        stayed += walker.ask([]).parent == 0
    assert stayed / 1000 == pytest.approx(1 - math.exp(-0.5), abs=0.05)


def test_annealing_starts_anew_where_all_neighbours_are_known():
    search = SimulatedAnnealing(SPACE, 0, start_temperature=1e-9, end_temperature=1e-9)
    cost = {c: i for i, c in enumerate(sorted(LEGAL))}  # one long slope down to 16, 16, 1, nt
    found = run(search, len(LEGAL), loss=lambda c: float(cost[tuple(c.values())]))
    first = next(i for i, c in enumerate(found) if c.origin == "random")
    losses = [cost[v] for v in values(found)]
    assert losses[first] > min(losses[:first])
    assert found[first + 1].parent == first


def test_without_mutation_children_take_each_value_from_one_of_the_population():
    search = GeneticAlgorithm(SPACE, 2, population=4, mutation=0.0)
    found = run(search, 8)
    parents = sorted((c for c in found[:4] if loss(c.config) is not None), key=lambda c: loss(c.config))
    child = found[4]
    assert child.origin == "crossover"
    for name, value in child.config.items():
        assert value in {p.config[name] for p in parents}


def test_the_first_parent_of_a_child_is_among_the_best_of_all_trials():
    found = run(GeneticAlgorithm(SPACE, 1, population=5), 50)
    losses = [(loss(c.config), i) for i, c in enumerate(found)]
    for number, candidate in enumerate(found):
        if candidate.origin == "crossover":
            best = sorted(x for x in losses[:number] if x[0] is not None)[:5]
            assert candidate.parent in {i for _, i in best}


def test_a_child_of_differential_evolution_takes_the_place_of_its_parent_only_if_it_is_better():
    def lineage(child_loss):
        search = DifferentialEvolution(SPACE, 0, population=4)
        found = [search.ask([])]
        search.tell([Feedback(0, found[0], 0.0)])
        while len(found) < 4:
            found.append(search.ask([]))
            search.tell([Feedback(len(found) - 1, found[-1], 0.0)])
        parents = set()
        for number in range(4, 12):
            child = search.ask([])
            parents.add(child.parent)
            search.tell([Feedback(number, child, child_loss)])
        return parents - {None}

    assert lineage(child_loss=1.0) <= {0, 1, 2, 3}
    assert not lineage(child_loss=-1.0) <= {0, 1, 2, 3}
    assert lineage(child_loss=None) <= {0, 1, 2, 3}


def test_annealing_cools_over_the_budget_of_the_run():
    search = searcher(SPACE, load(None, {"run.search": "annealing", "run.max_evaluations": 10}, {}))
    run(search, 10)
    assert search.temperature == pytest.approx(0.0001)
