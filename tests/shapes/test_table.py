import math

import pytest

from evotune.errors import UsageError
from evotune.shapes.table import ONE_LEAF, PRICE, Shape, Table
from evotune.space import ConfigSpace

SPACE = ConfigSpace.from_dict({"x": [1, 2, 3, 4]})
SHAPES = [Shape(name, {"m": m}, SPACE) for name, m in (("small", 10), ("middle", 100), ("large", 1000))]


def table(*rows):
    """A table from the latencies of x = 1, 2, … at each shape; None was not measured, 0 failed."""
    found = Table(SHAPES, "toy")
    for shape, row in enumerate(rows):
        for x, ms in enumerate(row, 1):
            if ms is not None:
                found.add(shape, {"x": x}, math.log(ms) if ms else None, None if ms else "crash: it crashed")
    return found


def picks(program):
    return [c["x"] for c in program.configs]


def test_scores_are_restated_by_one_factor_when_the_best_known_improves():
    found = table([1.0, 2.0], [2.0, 2.0], [4.0, 3.0])
    one, two = (found.program([{"x": x}] * 3) for x in (1, 2))
    before = found.score(one), found.score(two)
    assert before[0] == pytest.approx((1.0 * 1.0 * 0.75) ** (1 / 3))
    found.add(1, {"x": 3}, math.log(1.0))
    after = found.score(one), found.score(two)
    assert after[0] / before[0] == pytest.approx(after[1] / before[1]) == pytest.approx(0.5 ** (1 / 3))


def test_a_branch_has_to_pay_its_price():
    slight, clear = 1 + PRICE / 2, 1 + 2 * PRICE
    assert picks(table([1.0, 2.0], [1.0, 2.0], [slight, 1.0]).elite()) == [1, 1, 1]
    assert picks(table([1.0, 2.0], [1.0, 2.0], [clear, 1.0]).elite()) == [1, 1, 2]
    assert picks(table([1.0, 2.0], [1.0, 2.0], [slight, 1.0]).elite(0.0)) == [1, 1, 2]
    assert picks(table([1.0, 2.0], [1.0, 2.0], [clear, 1.0]).elite(ONE_LEAF)) == [1, 1, 1]


def test_an_elite_has_only_pairs_that_were_timed():
    found = table([1.0, 3.0, None], [None, 3.0, 1.0], [0, 3.0, None])
    assert picks(found.elite(0.0)) == [1, 3, 2]
    assert picks(found.elite(ONE_LEAF)) == [2, 2, 2]
    assert table([1.0], [1.0], [0]).elite() is None


def test_a_failure_is_never_a_number():
    found = table([1.0], [1.0], [0])
    program = found.program([{"x": 1}] * 3)
    assert found.score(program) is None
    assert found.cost(program, 0.0) is None
    assert found.best(2) == []
    assert found.knows(2, {"x": 1})
    assert found.failures == ["large, {'x': 1}: crash: it crashed"]


def test_shapes_of_one_problem_are_refused():
    with pytest.raises(UsageError, match="'small' and 'twin'"):
        Table([*SHAPES, Shape("twin", {"m": 10}, SPACE)], "toy")
