from collections import Counter
from random import Random

import pytest

from evotune.proposers.bandit import FLOOR, Bandit

ORIGINS = ("surrogate", "random", "mutation", "llm")


def test_shares_sum_to_one_and_none_falls_below_the_floor():
    bandit = Bandit(ORIGINS)
    for i in range(200):
        bandit.tell("mutation", 1.0 - i / 200)
        bandit.tell("llm", None)
    shares = bandit.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) >= FLOOR


def test_an_origin_that_keeps_finding_better_gets_the_largest_share():
    bandit = Bandit(ORIGINS)
    for i in range(60):
        bandit.tell("llm", -float(i))
        bandit.tell("surrogate", 5.0)
    shares = bandit.shares()
    assert max(shares, key=shares.__getitem__) == "llm"


def test_turns_at_the_floor_are_counted_until_an_origin_earns_again():
    bandit = Bandit(ORIGINS)
    for i in range(30):
        bandit.tell("llm", None)
        bandit.tell("mutation", -float(i))
    assert 20 < bandit.at_floor("llm") <= 60
    assert bandit.at_floor("mutation") == 0
    for i in range(100, 140):
        bandit.tell("llm", -float(i))
    assert bandit.at_floor("llm") == 0


def test_failures_earn_nothing():
    bandit = Bandit(ORIGINS)
    before = bandit.shares()["llm"]
    for _ in range(10):
        bandit.tell("llm", None)
    assert bandit.shares()["llm"] < before


def test_origins_are_drawn_in_proportion_to_their_shares():
    bandit = Bandit(ORIGINS)
    rng = Random(0)
    first = Counter(bandit.order(rng)[0] for _ in range(4000))
    for origin, share in bandit.shares().items():
        assert first[origin] / 4000 == pytest.approx(share, abs=0.03)
    assert sorted(bandit.order(rng)) == sorted(ORIGINS)


def test_a_trial_of_no_origin_in_the_draw_is_only_a_yardstick():
    bandit = Bandit(ORIGINS)
    before = bandit.shares()
    bandit.tell("default", 1.0)
    assert bandit.shares() == before
