"""The multi-fidelity search: who is promoted, who is not, and what it spends."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from evotune import MultiFidelityBayesianSearch
from evotune.compare import synthetic
from evotune.errors import UsageError
from evotune.proposers import Feedback, multifidelity
from evotune.proposers.schedule import PRESETS, Schedule
from evotune.space import ConfigSpace

SPACE = synthetic.space()
RANKS = [1, 2, 3, 4]
SPREAD = {1: 0.03, 2: 0.015, 3: 0.008, 4: 0.003}


def truth(config):
    return math.log(synthetic.latency_ms(config))


def answer(number, candidate, loss=truth):
    """A trial of a candidate, with noise that falls with the fidelity."""
    rank, exact = candidate.fidelity_rank, loss(candidate.config)
    if exact is None:
        return Feedback(number, candidate, None, failure="run: no")
    noise = Random(f"{sorted(candidate.config.items())}:{rank}").gauss(0, SPREAD[rank])
    return Feedback(number, candidate, exact + noise, SPREAD[rank] ** 2, rank)


def run(search, n, *, loss=truth, told=()):
    """Trials until there are ``n``, or nothing is left to ask."""
    trials = list(told)
    search.tell(trials)
    while len(trials) < n and (candidate := search.ask(())) is not None:
        trials.append(answer(len(trials), candidate, loss))
        search.tell(trials[-1:])
    return trials


def at(trials, rank, *, promoted=None):
    """Trials at a fidelity; those promoted to it, or those new there."""
    found = [t for t in trials if t.candidate.fidelity_rank == rank]
    return found if promoted is None else [t for t in found if (t.candidate.parent is not None) == promoted]


def key(trial):
    return SPACE.key(trial.config)


@pytest.fixture
def patient(monkeypatch):
    """Nobody is ruled out and no phase ends early."""
    monkeypatch.setattr(multifidelity, "BOUND", math.inf)
    monkeypatch.setattr(multifidelity, "LEAST_GAIN", 1e-300)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_schedule_measures_as_many_at_each_fidelity_as_it_says(patient, seed):
    trials = run(MultiFidelityBayesianSearch(SPACE, seed), PRESETS["default"].evaluations)
    origins = Counter((t.candidate.fidelity_rank, t.candidate.origin, t.candidate.parent is None) for t in trials)
    assert origins == {
        (1, "default", True): 1,
        (1, "random", True): 19,
        (1, "surrogate", True): 10,
        (2, "surrogate", False): 8,
        (2, "surrogate", True): 5,
        (3, "surrogate", False): 5,
        (3, "surrogate", True): 3,
        (4, "surrogate", False): 3,
    }
    assert [t.candidate.fidelity_rank for t in trials] == [1] * 30 + [2] * 13 + [3] * 8 + [4] * 3
    assert trials[0].config == SPACE.default


def test_a_promotion_is_of_the_same_configuration_and_names_its_last_trial_as_parent(patient):
    trials = run(MultiFidelityBayesianSearch(SPACE, 0), 70)
    for trial in trials:
        before = [t for t in trials[: trial.number] if t.config == trial.config]
        assert trial.candidate.parent == (before[-1].number if before else None)
        assert all(t.candidate.fidelity_rank < trial.candidate.fidelity_rank for t in before)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_of_each_phase_are_promoted_and_none_of_its_slower_half(patient, seed):
    trials = run(MultiFidelityBayesianSearch(SPACE, seed), 54)
    for rank in (2, 3, 4):
        below = {key(t): t.loss for t in trials if t.candidate.fidelity_rank < rank}  # the last, most careful one
        ranked = sorted(below, key=lambda k: below[k])
        promoted = {key(t) for t in at(trials, rank, promoted=True)}
        assert ranked[0] in promoted
        assert not promoted & set(ranked[len(ranked) // 2 :])


def test_a_candidate_that_cannot_win_is_not_measured_again():
    def cliff(config):
        """Only these few are any good, and everything else is five times slower."""
        good = config["BLOCK_M"] == SPACE.default["BLOCK_M"] and config["num_warps"] >= 4
        return 0.01 * config["num_stages"] if good else math.log(5) + 0.1 * truth(config)

    trials = run(MultiFidelityBayesianSearch(SPACE, 3), 54, loss=cliff)
    again = [t for t in trials if t.candidate.parent is not None]
    assert again
    assert all(cliff(t.config) < 1 for t in again)
    assert any(cliff(t.config) > 1 for t in at(trials, 1))


def test_a_phase_that_promises_nothing_more_ends_early_and_what_it_saves_is_spent(monkeypatch):
    monkeypatch.setattr(multifidelity, "LEAST_GAIN", 1e9)
    trials = run(MultiFidelityBayesianSearch(SPACE, 0), 54)
    assert len(trials) == 54
    first_promotion = next(t.number for t in trials if t.candidate.parent is not None)
    assert 20 <= first_promotion < 30  # none of those that are to be far apart is left out
    assert len(at(trials, 1)) > 30


def test_what_is_left_of_the_budget_promotes_the_favourite_or_measures_something_new():
    trials = run(MultiFidelityBayesianSearch(SPACE, 1), 150)
    assert len(trials) == 150
    later = trials[54:]
    assert {t.candidate.fidelity_rank for t in later if t.candidate.parent is None} <= {1, 2, 3}
    assert sum(t.candidate.fidelity_rank == 1 for t in later) > len(later) / 2
    for trial in (t for t in later if t.candidate.parent is not None):
        last = {key(t): t.loss for t in trials[: trial.number]}
        assert last[key(trial)] < min(last.values()) + 0.1
    most_careful = {key(t): t for t in trials}.values()
    best = min((t for t in most_careful if t.candidate.fidelity_rank == 4), key=lambda t: t.loss)
    assert truth(best.config) < math.log(1.2 * synthetic.OPTIMUM_MS)


@pytest.mark.parametrize("cut", [1, 12, 25, 30, 36, 43, 50, 56])
def test_a_search_that_is_told_the_past_goes_on_as_if_it_had_asked(whole, cut):
    resumed = run(MultiFidelityBayesianSearch(SPACE, 5), 62, told=whole[:cut])
    assert [t.candidate for t in resumed] == [t.candidate for t in whole]


@pytest.fixture(scope="module")
def whole():
    return run(MultiFidelityBayesianSearch(SPACE, 5), 62)


def test_the_seed_decides_also_in_another_process_with_another_hash_seed(whole):
    code = (
        "from tests.proposers.test_multifidelity import *\n"
        "for t in run(MultiFidelityBayesianSearch(SPACE, 5), 45): print(t.candidate.fidelity_rank, key(t))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == [f"{t.candidate.fidelity_rank} {key(t)}" for t in whole[:45]]
    other = run(MultiFidelityBayesianSearch(SPACE, 6), 10)
    assert [key(t) for t in other] != [key(t) for t in whole[:10]]


def test_promotion_waits_for_what_is_in_flight_and_nothing_is_asked_for_twice(patient):
    search, asked, flying, trials = MultiFidelityBayesianSearch(SPACE, 0), [], [], []
    waited, rng, most_rising = 0, Random(1), 0
    while len(trials) < 60:
        candidate = search.ask([c.config for c in flying]) if len(flying) < 5 else None
        if candidate is not None:
            assert candidate.config not in [c.config for c in flying]
            if candidate.fidelity_rank == 2 and not at(trials, 2):
                assert len(at(trials, 1)) == 30
            asked.append(candidate)
            flying.append(candidate)
            most_rising = max(most_rising, sum(c.fidelity_rank == 2 for c in flying))
            continue
        waited += len(flying) < 5
        trials.append(answer(len(trials), flying.pop(rng.randrange(len(flying)))))
        search.tell(trials[-1:])
    pairs = [(key(t), t.candidate.fidelity_rank) for t in trials]
    assert len(set(pairs)) == len(pairs)
    assert waited
    assert most_rising > 1  # the wait is for the phase before, not for each promotion
    promoted = Counter(c.fidelity_rank for c in asked[:54] if c.parent is not None)
    assert promoted == {2: 8, 3: 5, 4: 3}


def test_a_ladder_of_one_fidelity_measures_every_configuration_once():
    trials = run(MultiFidelityBayesianSearch(SPACE, 0, ranks=[3]), 80)
    assert {t.candidate.fidelity_rank for t in trials} == {3}
    assert len({key(t) for t in trials}) == 80
    assert sum(t.candidate.origin == "random" for t in trials) == 19


def test_what_a_ladder_lacks_is_measured_at_the_next_fidelity_that_it_has(patient):
    trials = run(MultiFidelityBayesianSearch(SPACE, 0, ranks=[1, 3]), 46)
    assert len(at(trials, 1)) == 30
    assert len(at(trials, 3, promoted=True)) == 8
    assert len(at(trials, 3, promoted=False)) == 8


def test_a_ladder_that_does_not_rise_is_refused():
    for ranks in ([], [2, 1], [1, 1]):
        with pytest.raises(UsageError, match="must rise"):
            MultiFidelityBayesianSearch(SPACE, 0, ranks=ranks)


def test_a_failed_configuration_is_never_promoted():
    def fragile(config):
        return None if config["BLOCK_M"] >= 128 else truth(config)

    trials = run(MultiFidelityBayesianSearch(SPACE, 2), 60, loss=fragile)
    assert any(t.loss is None for t in trials)
    assert all(fragile(t.config) is not None for t in trials if t.candidate.parent is not None)


def test_where_everything_fails_each_configuration_is_measured_once():
    space = ConfigSpace.from_dict({"a": range(4), "b": range(3)})
    trials = run(MultiFidelityBayesianSearch(space, 0), 100, loss=lambda _: None)
    assert sorted(tuple(t.config.values()) for t in trials) == [(a, b) for a in range(4) for b in range(3)]


def test_a_small_space_is_searched_to_the_end_and_its_best_is_measured_most_carefully():
    space = ConfigSpace.from_dict({"a": range(6), "b": range(4)})
    trials = run(MultiFidelityBayesianSearch(space, 0), 500, loss=lambda c: 0.3 * abs(c["a"] - 4) + 0.2 * c["b"])
    assert len(trials) < 4 * space.cardinality
    assert len({space.key(t.config) for t in trials}) == space.cardinality
    assert {"a": 4, "b": 0} in [t.config for t in at(trials, 4)]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("budget", [1, 3, 7, 20, 53])
def test_a_schedule_is_made_smaller_in_proportion_to_the_budget(preset, budget):
    whole, fitted = PRESETS[preset], PRESETS[preset].fitted(budget)
    assert fitted.evaluations == budget
    share = budget / whole.evaluations
    assert abs(fitted.n_medium_fidelity - whole.n_medium_fidelity * share) <= 0.5
    assert fitted.n_low_fidelity >= fitted.n_medium_fidelity >= fitted.n_high_fidelity >= fitted.n_ultra_fidelity
    assert fitted.fidelity_ultra == whole.fidelity_ultra
    assert whole.fitted(2000) == whole


def test_the_presets_are_the_default_and_the_original_study():
    assert PRESETS["default"] == Schedule(30, 13, 8, 3, 5, 15, 50, 500)
    assert PRESETS["study"] == Schedule(600, 300, 80, 20, 5, 15, 50, 50)
    assert Schedule.of("study", n_low_fidelity=10, fidelity_low=None) == Schedule(
        10, 300, 80, 20, fidelity_ultra=50
    )


def test_repetitions_may_not_fall_from_fidelity_to_fidelity():
    with pytest.raises(UsageError, match=r"must not fall, found \[50, 15, 50, 500\]"):
        Schedule.of("default", fidelity_low=50)
