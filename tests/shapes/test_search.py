import math
from random import Random

from evotune.program import Sandbox
from evotune.proposers import Feedback
from evotune.shapes.model import configs_of
from evotune.shapes.search import ProgramSearch
from evotune.shapes.synthetic import PROBLEMS, latency_ms, space
from evotune.shapes.table import Shape, Table
from evotune.surrogate import Surrogate
from evotune.trial import Candidate

SHAPES = [Shape(name, PROBLEMS[name], space(PROBLEMS[name])) for name in ("token", "tiny", "square")]


def opened(read=lambda text: []):
    table = Table(SHAPES, "toy")

    def surrogate(space):
        return Surrogate(space, seed=0)

    return ProgramSearch(table, seed=0, start_points=4, make_surrogate=surrogate, read=read), table


def told(search, candidate, number):
    shape, config = search.table.split(candidate.config)
    search.tell([Feedback(number, candidate, math.log(latency_ms(SHAPES[shape].problem, config)))])


def test_a_program_that_an_earlier_process_began_is_finished():
    with Sandbox() as sandbox:
        search, table = opened(lambda text: configs_of(text, SHAPES, sandbox))
        for number in range(20):
            told(search, search.ask(()), number)
        begun = table.program([s.space.sample(Random(5), 1)[0] for s in SHAPES])
        pairs = [s.pair(c) for s, c in zip(SHAPES, begun.configs, strict=True)]
        told(search, Candidate(pairs[0], begun.text, "mutation"), 20)
        # The second was in flight when that process died, and is run again without being asked for.
        found = search.ask([pairs[1]])
    assert (found.config, found.program, found.origin) == (pairs[2], begun.text, "mutation")


def test_the_defaults_come_first_and_then_literals_wherever_they_are_legal():
    search, _ = opened()
    asked = []
    for number in range(15):
        asked.append(search.ask(()))
        told(search, asked[-1], number)
    assert [c.config for c in asked[:3]] == [s.pair(s.space.default) for s in SHAPES]
    assert {c.origin for c in asked[:3]} == {"default"}
    assert {c.origin for c in asked[3:]} == {"random"}
    literals = [p for p in {c.program for c in asked[3:]} if p.count("return") == 1]
    assert len(literals) >= 2


def test_nothing_that_is_pending_is_asked_for_again():
    search, _ = opened()
    asked = []
    for _ in range(15):
        asked.append(search.ask([c.config for c in asked]))
    pairs = [tuple(sorted(c.config.items(), key=str)) for c in asked]
    assert len(set(pairs)) == 15
