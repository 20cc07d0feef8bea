import pytest

from evotune.compare.best import Best, best_found, format_best
from evotune.compare.comparison import Comparison
from tests.compare.test_score import make_recording, make_run


def found(runs, budget=5):
    rows = best_found(Comparison(runs, [make_recording()], budget, {}))
    return {row.method: row for row in rows}, [row.method for row in rows]


def test_each_method_is_told_by_its_best_when_it_had_it_and_how_it_compares_with_pattern_search():
    # Latencies are 8, none, 2, 5, 3 ms for x = 1 to 5.
    pattern = [make_run([1, 4, 5], method="pattern", seed=s) for s in (0, 1, 2)]
    mine = [make_run(xs, seed=s) for s, xs in enumerate([[5, 3], [1, 2, 3], [1, 4, 2]])]
    rows, order = found([*pattern, *mine])
    assert order == ["m", "pattern"]
    # Pattern search has its 3 ms after 3. The others are as fast after 1, after 3, and never.
    assert rows["m"] == Best("toy", "m", 2.0, 2, 3, 3 / 2, 3 / 3, {"x": 3})
    assert rows["pattern"] == Best("toy", "pattern", 3.0, 3, 3, 1.0, 1.0, {"x": 5})


def test_a_search_that_never_gets_there_is_not_sooner():
    rows, _ = found([make_run([5], method="pattern"), make_run([1, 4])])
    assert rows["m"].sooner == 0
    assert rows["m"].speedup == pytest.approx(3 / 5)


def test_without_pattern_search_nothing_is_said_against_it():
    rows, _ = found([make_run([1, 3])])
    assert (rows["m"].speedup, rows["m"].sooner) == (None, None)
    assert format_best(list(rows.values())).splitlines()[2].split() == ["m", "2", "2", "2", "-", "-"]


def test_a_search_that_found_nothing_that_works_has_no_latency():
    rows, order = found([make_run([2], method="unlucky"), make_run([1]), make_run([4], method="pattern")])
    assert order == ["pattern", "m", "unlucky"]
    assert rows["unlucky"] == Best("toy", "unlucky", None, None, 1, 0.0, 0.0, None)
    assert "unlucky -" in format_best(list(rows.values()))


def test_a_repeat_is_no_evaluation_and_what_is_beyond_the_budget_does_not_count():
    rows, _ = found([make_run([1, 1, 4, 3])], budget=2)
    assert (rows["m"].latency_ms, rows["m"].reached, rows["m"].evaluations) == (5.0, 2, 2)


def test_the_table_names_the_space_and_every_configuration():
    text = format_best(best_found(Comparison([make_run([3])], [make_recording()], 2, {})))
    first, head, row, _, config = text.splitlines()
    assert first.startswith("toy:")
    assert head.split() == ["method", "latency_ms", "found", "at", "evaluations", "speedup", "sooner"]
    assert len(head) == len(row)
    assert config.split() == ["m", "x=3"]
