"""What is said of the way a run went."""

from itertools import pairwise

import pytest

from evotune.report.course import climbed, course, finals, improvements, is_simulated
from tests.report.histories import CREATED_S, HIGH, LOW, MEDIUM, ULTRA, failed, history_of, timed, trial


def climb(number, tile, *ms, **rest):
    return trial(number, {"tile": tile, "stages": 1}, *map(timed, (LOW, MEDIUM, HIGH), ms), **rest)


def test_the_best_so_far_never_rises_while_trials_climb():
    history = history_of(climb(0, 1, 5, 5, 5), climb(1, 2, 9), climb(2, 4, 4, 4, 4.2), climb(3, 8, 4, 4, 4.1))
    best = [s.best_ms for s in course(history)]
    assert best == [5, 5, 4.2, 4.1]
    assert all(after <= before for before, after in pairwise(best))


def test_a_rough_timing_does_not_beat_a_careful_one():
    first, second = course(history_of(climb(0, 1, 5, 5, 5), climb(1, 2, 3)))
    assert (first.is_best, second.is_best) == (True, False)
    assert second.latency_ms == 3
    assert second.best_ms == 5


def test_a_configuration_that_fails_when_looked_at_closely_is_the_best_no_more():
    one, other = {"tile": 1}, {"tile": 2}
    history = history_of(
        trial(0, one, timed(LOW, 3), rank=1),
        trial(1, other, timed(LOW, 4), rank=1),
        trial(2, one, failed(MEDIUM, "incorrect", "nan"), rank=2),
    )
    assert [s.best_ms for s in course(history)] == [3, 3, 4]


def test_nothing_is_the_best_before_something_was_timed():
    (stop,) = course(history_of(trial(0, {"tile": 1}, failed(LOW, "run", "no"))))
    assert (stop.latency_ms, stop.best_ms, stop.is_best) == (None, None, False)


@pytest.mark.parametrize("provenance", ["measured", "replayed"])
def test_finals_are_told_from_the_climb(provenance):
    if provenance == "measured":  # more careful, and nobody says how long they took
        way, end = [timed(LOW, 2), timed(HIGH, 2)], [timed(ULTRA, 2.5, took_s=None)]
    else:  # the same number looked up again
        way, end = [timed(HIGH, 2, "replayed")], [timed(HIGH, 2, "replayed")]
    both = trial(0, {"tile": 1}, *way, *end)
    assert climbed(both) == tuple(way)
    assert finals(both) == tuple(end)


def test_a_new_best_says_what_it_changed_of_the_one_before():
    found = improvements(course(history_of(climb(0, 1, 5, 5, 5), climb(1, 2, 6), climb(2, 4, 4, 4, 4))))
    assert [i.stop.trial.number for i in found] == [0, 2]
    assert found[0].changed == {}
    assert found[1].changed == {"tile": (1, 4)}


def test_time_between_two_calls_of_a_run_does_not_count():
    history = history_of(
        climb(0, 1, 5),
        climb(1, 2, 6),
        attempts={0: (CREATED_S,), 1: (CREATED_S + 1, CREATED_S + 9000)},
        done_s={0: CREATED_S + 1, 1: CREATED_S + 9003},
    )
    assert [s.at_s for s in course(history)] == [1, 4]


def test_a_clock_that_jumps_back_gives_no_negative_seconds():
    history = history_of(climb(0, 1, 5), attempts={}, done_s={0: CREATED_S - 50})
    assert course(history)[0].at_s == 0


def test_seconds_of_a_replay_are_those_of_its_recording():
    trials = [trial(i, {"tile": i}, timed(HIGH, 2, "replayed", took_s=3.0)) for i in (1, 2)]
    history = history_of(*trials)
    assert is_simulated(history)
    assert [s.at_s for s in course(history)] == [3.5, 7.0]
    assert not is_simulated(history_of(climb(0, 1, 5)))


def test_shapes_have_no_best_in_common():
    history = history_of(climb(0, 1, 5, 5, 5), description={"shapes": {"small": {}, "long": {}}})
    assert [(s.latency_ms, s.best_ms, s.is_best) for s in course(history)] == [(5, None, False)]
