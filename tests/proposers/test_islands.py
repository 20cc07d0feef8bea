import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from evotune.program import render
from evotune.proposers.base import Feedback
from evotune.proposers.evolution import CrossoverProposer, MutationProposer, mutate
from evotune.proposers.islands import Islands
from evotune.space import ConfigSpace
from evotune.trial import Candidate

SPACE = ConfigSpace.from_dict(
    {"tile": [16, 32, 64, 128], "unroll": [1, 2, 3, 4, 5], "layout": ["nn", "nt"], "fixed": [7]},
    ["tile * unroll <= 512"],
)


def fed(number: int, loss: float | None = None, parent: int | None = None) -> Feedback:
    config = SPACE.config(number % SPACE.cardinality)
    value = (number * 37 % 11) / 10 if loss is None else loss
    return Feedback(number, Candidate(config, render(config, SPACE), "random", parent), value)


def filled(n: int = 30, seed: int = 0) -> Islands:
    islands = Islands(SPACE, seed, count=2)
    for number in range(n):
        islands.tell([fed(number, parent=number - 3 if number > 5 else None)])
    return islands


def trace() -> str:
    islands = filled()
    drawn = [islands.sample(i % 2, 3) for i in range(20)]
    mutation, crossover = MutationProposer(SPACE, islands, 0), CrossoverProposer(SPACE, islands, 0)
    return repr((drawn, mutation.ask(5), crossover.ask(5)))


def test_the_same_trials_give_the_same_islands_in_another_process_with_another_hash_seed():
    code = "from tests.proposers.test_islands import trace; print(trace())"
    found = {trace()}
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout.rstrip("\n"))
    assert len(found) == 1


def test_the_callers_random_state_is_left_alone():
    before = random.getstate()
    islands = filled()
    islands.sample(0, 2)
    assert random.getstate() == before


def test_a_failed_program_never_becomes_a_parent():
    islands = Islands(SPACE, 0)
    islands.tell([Feedback(0, fed(0).candidate, None), fed(1, 0.5)])
    islands.tell([Feedback(2, fed(2).candidate, None)])
    assert len(islands) == 1
    assert islands.sample(0) == []
    assert [n for n, _ in islands.sample(1)] == [1]


def test_a_child_joins_its_parents_island():
    islands = Islands(SPACE, 0, count=2, migration_interval=1000)
    islands.tell([fed(0, 0.3), fed(1, 0.2), fed(3, 0.1, parent=0)])
    assert sorted(n for n, _ in islands.best(0, 9)) == [0, 3]


def test_the_best_of_an_island_has_the_lowest_loss():
    islands = Islands(SPACE, 0, count=1)
    losses = {0: 3.0, 5: -2.0, 11: 0.5}
    islands.tell([fed(n, v) for n, v in losses.items()])
    assert [n for n, _ in islands.best(0, 3)] == [5, 11, 0]


def test_good_programs_migrate_to_the_other_island():
    islands = Islands(SPACE, 0, count=2, migration_interval=3)
    for step in range(12):
        islands.tell([fed(step, step * 0.1, parent=None if step == 0 else 0)])
    assert islands.best(1, 1)


def test_children_are_legal_new_and_close_to_their_parent():
    islands = filled()
    for proposer in (MutationProposer(SPACE, islands, 0), CrossoverProposer(SPACE, islands, 0)):
        children = proposer.ask(8)
        assert children
        assert all(not SPACE.violations(c.config) and c.parent is not None for c in children)
        assert len({SPACE.key(c.config) for c in children}) == len(children)


@pytest.mark.parametrize("width", [0.0, 0.5, 1.0])
def test_a_wider_mutation_changes_more(width):
    parent = {"tile": 32, "unroll": 3, "layout": "nn", "fixed": 7}
    rng = random.Random(0)
    children = [mutate(SPACE, parent, rng, width) for _ in range(300)]
    assert not any(SPACE.violations(c) for c in children)
    changed = sum(sum(c[n] != parent[n] for n in c) for c in children) / len(children)
    assert changed == pytest.approx(1 + width, abs=0.35)
    if width == 0.0:
        assert all(c["unroll"] in (2, 3, 4) and c["tile"] in (16, 32, 64) for c in children)


def test_a_space_with_nothing_to_change_gives_the_parent_back():
    space = ConfigSpace.from_dict({"a": [1], "b": [2]})
    assert mutate(space, space.default, random.Random(0)) == space.default


def test_elites_are_known_by_trial_however_often_they_migrated_and_were_displaced():
    islands = Islands(SPACE, 0, count=3, migration_interval=2, population_size=6)
    for number in range(SPACE.cardinality):
        islands.tell([fed(number, parent=number // 2 if number else None)])
        for island in range(3):
            for trial, config in [*islands.sample(island, 3), *islands.best(island, 5)]:
                assert config == SPACE.config(trial)
