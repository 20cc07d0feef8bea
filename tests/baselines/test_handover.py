import random
import threading

import numpy as np
import pytest

from evotune.baselines.handover import Handover
from evotune.proposers.base import Feedback
from evotune.space import ConfigSpace

SPACE = ConfigSpace.from_dict({"a": range(8)}, default={"a": 0})


class Scripted(Handover):
    """Runs a function as its search."""

    def __init__(self, script, seed=0):
        super().__init__(SPACE, seed)
        self.script = script

    def _search(self):
        self.script(self._evaluate)


def told(search, candidate):
    search.tell([Feedback(0, candidate, float(candidate.config["a"]))])


def next_of(search):
    candidate = search.ask([])
    told(search, candidate)
    return candidate.config["a"]


def others():
    return [t for t in threading.enumerate() if t.name == "Scripted"]


def test_what_a_search_asks_for_is_proposed_in_order_and_answered():
    answers = []

    def script(evaluate):
        answers.append(evaluate([(3,), (5,)]))
        answers.append(evaluate([(1,)]))

    search = Scripted(script)
    assert [next_of(search) for _ in range(4)] == [0, 3, 5, 1]
    search.ask([])  # lets the script hear of the last
    assert answers == [[3.0, 5.0], [1.0]]
    search.close()


def test_what_is_known_is_answered_without_a_question():
    def script(evaluate):
        assert evaluate([(3,), (3,), (0,)]) == [3.0, 3.0, 0.0]
        assert evaluate([(3,)]) == [3.0]
        evaluate([(6,)])

    search = Scripted(script)
    assert [next_of(search) for _ in range(3)] == [0, 3, 6]
    search.close()


def test_a_failure_is_answered_as_one():
    search = Scripted(lambda evaluate: evaluate([(2,)]) == [None] and evaluate([(4,)]))
    next_of(search)
    search.tell([Feedback(1, search.ask([]), None)])
    assert next_of(search) == 4
    search.close()


def test_other_slots_are_given_something_while_answers_are_awaited():
    search = Scripted(lambda evaluate: evaluate([(2,)]) and evaluate([(7,)]))
    next_of(search)
    awaited = search.ask([])
    meanwhile = search.ask([awaited.config])
    assert meanwhile.config["a"] not in {0, awaited.config["a"]}
    told(search, meanwhile)
    told(search, awaited)
    assert next_of(search) == 7 or meanwhile.config["a"] == 7
    search.close()


def test_what_a_search_raises_is_raised_to_who_asks():
    def script(evaluate):
        raise ArithmeticError("no luck")

    search = Scripted(script)
    next_of(search)
    with pytest.raises(ArithmeticError, match="no luck"):
        search.ask([])
    search.close()


@pytest.mark.parametrize("asked", [0, 1, 2, 4])
def test_closing_ends_the_thread_whenever_it_comes_and_twice_does_no_harm(asked):
    def script(evaluate):
        try:
            evaluate([(3,), (5,)])
            evaluate([(6,)])
        except Exception:  # a search that catches what it can must not go on
            evaluate([(7,)])

    search = Scripted(script)
    for _ in range(asked):
        next_of(search)
    search.close()
    search.close()
    assert others() == []


def test_the_callers_generators_are_theirs_whenever_they_run():
    drawn = []

    def script(evaluate):
        for a in (3, 5, 6):
            drawn.append((random.random(), np.random.random()))
            evaluate([(a,)])

    def play(disturb):
        drawn.clear()
        search = Scripted(script, seed=7)
        for _ in range(4):
            before = random.getstate(), np.random.get_state()[1].tolist()
            next_of(search)
            assert (random.getstate(), np.random.get_state()[1].tolist()) == before
            disturb()
        search.close()
        return list(drawn)

    state = random.getstate()
    undisturbed = play(lambda: None)
    assert play(random.random) == undisturbed
    random.setstate(state)
    assert len(set(undisturbed)) == 3
