"""Helion's own searches; skipped with the reason where Helion is not installed. What every peer
promises is in ``tests/compare/test_peers.py``."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from evotune.helion import ALGORITHMS, HelionSearch
from evotune.proposers.base import Feedback
from evotune.space import ConfigSpace

# Not in a fixture: importing helion draws from the global generators, which no test may.
pytest.importorskip("helion", reason="needs helion; pip install helion", exc_type=ImportError)

EVERY = pytest.mark.parametrize("name", ALGORITHMS)

SPACE = ConfigSpace.from_dict(
    {"a": range(8), "b": range(8), "c": range(8), "layout": ["x", "y"]},
    default={"a": 1, "b": 1, "c": 1, "layout": "y"},
)
HALF = ConfigSpace.from_dict(
    {"a": range(8), "b": range(8), "c": range(8)}, ["(a + b + c) % 2 == 0"], default={"a": 1, "b": 1, "c": 2}
)


def log_ms(key):
    return 0.1 * sum((x - 5) ** 2 for x in key)


def asked(space, name, losses=log_ms):
    """The batches that a search asks for, to its end."""
    before = random.getstate(), np.random.get_state()  # HelionSearch sees to this
    random.seed(0)
    batches = []

    def evaluate(keys):
        batches.append([tuple(k) for k in keys])
        return [losses(k) for k in keys]

    try:
        from evotune.helion.adapter import run
        from evotune.helion.fragments import Fragments

        algorithm = ALGORITHMS[name]
        run(algorithm.name, space, Fragments(space, in_steps=algorithm.in_steps), 0, evaluate)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    return batches


def play(search, loss):
    found = []
    while (candidate := search.ask(())) is not None:
        found.append(candidate.config)
        search.tell([Feedback(len(found), candidate, loss(candidate.config))])
    return found


@EVERY
def test_a_search_opens_at_the_default_with_helions_full_effort(name):
    opening = asked(SPACE, name)[0]
    assert opening[0] == SPACE.key(SPACE.default)
    size = {"de": 80, "random": 1000}.get(name, 100)
    # Pattern searches do not measure what was drawn twice.
    assert len(opening) == size if name in {"de", "random"} else 0.85 * size < len(opening) <= size


@EVERY
def test_what_is_illegal_is_never_asked_for_and_does_not_fill_the_opening(name):
    batches = asked(HALF, name)
    assert all(HALF.violations(HALF.from_key(k)) == [] for batch in batches for k in batch)
    size = {"de": 80, "random": 1000}.get(name, 100)
    assert 0.3 * size < len(batches[0]) < 0.7 * size


@EVERY
def test_a_search_that_ends_itself_asks_for_nothing_more(name):
    tiny = ConfigSpace.from_dict({"a": range(3), "b": range(100)}, ["b == 0"], default={"a": 0, "b": 0})
    search = HelionSearch(tiny, 0, ALGORITHMS[name])
    assert play(search, lambda config: float(config["a"]))[0] == tiny.default
    assert search.ask(()) is None
    search.close()


@EVERY
def test_where_nothing_runs_a_search_ends_quietly(name):
    search = HelionSearch(HALF, 0, ALGORITHMS[name])
    assert 20 < len(play(search, lambda _: None)) < HALF.cardinality
    search.close()


@EVERY
def test_a_defect_is_not_taken_for_an_end(name):
    def broken(key):
        raise AssertionError("a defect")

    search = HelionSearch(SPACE, 0, ALGORITHMS[name])
    search._evaluate = lambda keys: [broken(k) for k in keys]
    first = search.ask(())
    search.tell([Feedback(0, first, 1.0)])
    with pytest.raises(AssertionError, match="a defect"):
        search.ask(())
    search.close()


def test_another_process_with_other_hashes_asks_for_the_same():
    code = "from tests.helion.test_helion_search import SPACE, asked; print(asked(SPACE, 'lfbo-tree'))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(*outputs) > 1000
