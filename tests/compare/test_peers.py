"""Promises of every peer; each is skipped with the reason where its package is not installed."""

import math
import random
from pathlib import Path

import numpy as np
import pytest

from evotune.compare.peers import PEERS
from evotune.proposers.base import Feedback
from evotune.replay import Recording, Row
from evotune.space import ConfigSpace

EVERY = pytest.mark.parametrize("name", PEERS)
# Helion's searches end themselves, and open with 100 random configurations.
HELION = [name for name in PEERS if name.startswith("helion-")]

# A tenth of all combinations is legal, one parameter has no order and one no choice.
SPACE = ConfigSpace.from_dict(
    {"a": [1, 2, 4, 8, 16, 32], "b": [1, 2, 3, 4, 5, 6], "layout": ["x", "y", "z"], "one": [7]},
    ["a * b == 16 or a + b == 12 or a * b == 12 or a == b"],
    default={"a": 4, "b": 4, "layout": "y", "one": 7},
)


@pytest.fixture(autouse=True)
def _the_package_is_here(request):
    if reason := PEERS[request.getfixturevalue("name")].missing():
        pytest.skip(reason)


def make(name, space, seed, budget=50):
    return PEERS[name].make(Recording(Path("toy"), {}, space, {(): Row(1.0, "0", 1.0, 1.0, 0.0)}), seed, budget)


def log_sum(config):
    return math.log(config["a"] + config["b"])


def play(search, n, *, slots=1, loss=log_sum):
    found, flying = [], []
    while len(found) < n or flying:
        while len(flying) < slots and len(found) < n:
            candidate = search.ask([c.config for _, c in flying])
            if candidate is None:
                n = len(found)
                break
            flying.append((len(found), candidate))
            found.append(candidate)
        if flying:
            number, candidate = flying.pop(0)
            search.tell([Feedback(number, candidate, loss(candidate.config))])
    if close := getattr(search, "close", None):
        close()
        close()
    return [c.config for c in found]


@EVERY
@pytest.mark.parametrize("slots", [1, 3])
def test_proposals_are_legal_new_and_start_at_the_default_until_there_are_none(name, slots):
    found = play(make(name, SPACE, 0), 1000, slots=slots)
    assert found[0] == SPACE.default
    assert not any(SPACE.violations(c) for c in found)
    assert len({SPACE.key(c) for c in found}) == len(found)
    assert len(found) == SPACE.cardinality or name in HELION


@EVERY
def test_the_seed_decides_what_is_proposed(name):
    one, same, other = (play(make(name, SPACE, seed), 8) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@EVERY
def test_failures_do_not_stop_a_peer(name):
    n = 8 if name in HELION else 20
    assert len(play(make(name, SPACE, 0), n, loss=lambda c: log_sum(c) if c["layout"] == "z" else None)) == n
    assert len(play(make(name, SPACE, 0), n, loss=lambda _: None)) == n


@EVERY
def test_the_global_generators_are_put_back(name):
    before = random.getstate(), np.random.get_state()[1].tolist()
    play(make(name, SPACE, 0), 5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("name", [name for name in PEERS if name != "helion-random"])
def test_a_peer_that_is_told_losses_finds_more_than_one_that_is_not(name):
    space = ConfigSpace.from_dict({p: range(10) for p in "abcd"}, default=dict.fromkeys("abcd", 0))

    def bowl(config):
        return sum((config[p] - 6) ** 2 for p in "abcd")

    n = 180 if name in HELION else 100

    def mean_best(told):
        found = [play(make(name, space, seed, n), n, loss=told) for seed in range(3)]
        return np.mean([min(bowl(c) for c in configs) for configs in found])

    assert mean_best(bowl) < mean_best(lambda _: 1.0)
