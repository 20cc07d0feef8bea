import itertools
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest

from evotune.compare import synthetic
from evotune.compare.runs import SearchRun
from evotune.compare.score import Course, Landscape, format_table, score
from evotune.errors import UsageError
from evotune.replay import OK, Recording, Row
from evotune.space import ConfigSpace

TIMES_MS = {1: 8.0, 2: None, 3: 2.0, 4: 5.0, 5: 3.0}
COST_S = {1: 1.0, 2: 0.5, 3: 2.0, 4: 1.5, 5: 1.0}
OPTIMUM_MS, MEDIAN_MS = 2.0, 4.0


def make_recording(times_ms=TIMES_MS, name="toy"):
    space = ConfigSpace.from_dict({"x": list(times_ms)})
    rows = {
        (i,): Row(ms, OK if ms else "2", 600 * COST_S[x], 400 * COST_S[x], 0.01)
        for i, (x, ms) in enumerate(times_ms.items())
    }
    return Recording(Path(name), {}, space, rows)


def make_run(xs, *, method="m", seed=0, overhead_s=0.0, space="toy"):
    return SearchRun(space, method, seed, overhead_s, tuple(({"x": x}, TIMES_MS.get(x)) for x in xs))


def best_so_far(xs):
    """By definition: failures count, and the median stands in while there is nothing else."""
    out = []
    for k in range(1, len(xs) + 1):
        worked = [TIMES_MS[x] for x in xs[:k] if TIMES_MS[x]]
        out.append(min(worked) if worked else MEDIAN_MS)
    return out


def test_the_random_curve_is_the_mean_over_all_orders():
    expected = np.mean([best_so_far(order) for order in itertools.permutations(TIMES_MS)], axis=0)
    assert Landscape(make_recording()).random_ms(5) == pytest.approx(expected)
    assert Landscape(make_recording()).random_ms(7)[4:] == pytest.approx([OPTIMUM_MS] * 3)


def test_the_score_is_the_share_of_the_area_between_random_search_and_the_optimum():
    runs = [make_run([1, 2, 4, 3]), make_run([2, 5, 1, 4], seed=1)]
    (row,) = score(runs, [make_recording()], 4)
    random_ms = Landscape(make_recording()).random_ms(4)
    curve = np.mean([best_so_far([1, 2, 4, 3]), best_so_far([2, 5, 1, 4])], axis=0)
    by_hand = mean((random_ms - curve) / (random_ms - OPTIMUM_MS))
    assert row.score == pytest.approx(by_hand)
    assert row.worst == row.score == row.per_space["toy"]
    assert row.seeds == 2
    assert row.within_5pct == 0.5


def test_the_optimum_at_once_scores_one_and_the_worst_first_scores_below_zero():
    rows = score([make_run([3], method="lucky"), make_run([1], method="poor")], [make_recording()], 4)
    assert [r.method for r in rows] == ["lucky", "poor"]
    assert rows[0].score == pytest.approx(1.0)
    assert rows[1].score < 0


def test_a_repeat_is_free_and_a_failure_counts():
    landscape = Landscape(make_recording())
    course = landscape.course(make_run([1, 1, 2, 1, 4]), 3)
    assert course.best_ms.tolist() == [8.0, 8.0, 5.0]
    assert course.seconds == pytest.approx([1.0, 1.5, 3.0])


def test_on_the_synthetic_landscape_a_promotion_counts():
    landscape = Landscape(synthetic.recording())
    config = synthetic.space().default
    run = SearchRun("synthetic", "m", 0, 0.0, ((config, 1.0), (config, 1.0), (synthetic.OPTIMUM, 0.5)))
    default_ms = synthetic.latency_ms(config)
    assert landscape.course(run, 3).best_ms.tolist() == [default_ms, default_ms, synthetic.OPTIMUM_MS]
    assert len(landscape.course(run, 2).seconds) == 2


def test_latencies_are_those_of_the_recording_whatever_a_run_says():
    liar = SearchRun("toy", "m", 0, 0.0, (({"x": 1}, 0.001),))
    assert Landscape(make_recording()).course(liar, 2).best_ms.tolist() == [8.0, 8.0]


def test_time_counts_what_was_recorded_and_the_searchs_own():
    landscape = Landscape(make_recording())
    course = landscape.course(make_run([4, 3], overhead_s=1.0), 2)
    assert course.seconds == pytest.approx([2.0, 4.5])
    assert course.best_at(np.array([1.9, 2.0, 4.4, 4.5]), MEDIAN_MS).tolist() == [4.0, 5.0, 5.0, 2.0]
    slow, quick = make_run([5, 3], overhead_s=4.0, method="slow"), make_run([5, 3], method="quick")
    by_method = {r.method: r for r in score([slow, quick], [make_recording()], 4)}
    assert by_method["slow"].score == by_method["quick"].score
    assert by_method["slow"].time_score < by_method["quick"].time_score
    assert by_method["slow"].overhead_ms == pytest.approx(2000.0)


def test_the_time_score_follows_its_definition():
    landscape = Landscape(make_recording())
    course = Course(np.array([5.0, 2.0, 2.0]), np.array([1.0, 4.0]))
    random_ms = landscape.random_ms(3)
    shares = []
    for at in np.linspace(1, 3, 200):  # in average evaluations
        second = at * mean(COST_S.values())
        known = MEDIAN_MS if second < 1.0 else 5.0 if second < 4.0 else 2.0
        expected = np.interp(at, [1, 2, 3], random_ms)
        shares.append((expected - known) / (expected - OPTIMUM_MS))
    assert landscape.time_gain(random_ms, [course]) == pytest.approx(mean(shares))


def test_ratios_are_optimum_over_best_at_the_marks_that_the_budget_reaches():
    (row,) = score([make_run([4, 5, 3])], [make_recording()], 12)
    assert row.ratios == {10: 1.0}


def test_a_space_where_random_search_is_at_the_optimum_too_gives_nothing_to_win():
    times = dict.fromkeys(COST_S, 3.0)
    (row,) = score([make_run([1, 2])], [make_recording(times)], 4)
    assert row.score == 0.0


def test_a_run_that_leaves_its_space_or_has_none_is_refused():
    partly = Recording(Path("toy"), {}, make_recording().space, {(0,): make_recording().rows[(0,)]})
    with pytest.raises(UsageError, match=r"m evaluated .* not in the recording toy"):
        score([make_run([3])], [partly], 4)
    with pytest.raises(UsageError, match="elsewhere"):
        score([make_run([3], space="elsewhere")], [make_recording()], 4)


def test_the_median_stands_in_while_everything_has_failed():
    assert median(ms for ms in TIMES_MS.values() if ms) == MEDIAN_MS
    assert Landscape(make_recording()).course(make_run([2]), 2).best_ms.tolist() == [MEDIAN_MS] * 2


def test_the_table_has_a_line_for_each_method_with_its_numbers():
    rows = score([make_run([3], method="lucky"), make_run([1], method="poor")], [make_recording()], 10)
    head, *lines = format_table(rows).splitlines()
    assert head.split() == ["method", "spaces", "seeds", "score", "worst", "time", "r@10", "<=5%", "ms/eval"]
    assert lines[0].split()[:4] == ["lucky", "1", "1", "1.000"]
    assert [len(line.split()) for line in lines] == [9, 9]
