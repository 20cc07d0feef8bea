import itertools
import math
from random import Random

import pytest

from evotune.program import Sandbox
from evotune.shapes.rule import Leaf, fit, leaves, render
from evotune.space import ConfigSpace

LETTERS = "abcdefg"
PROBLEMS = [
    {"m": 16, "n": 4096, "dtype": "float16", "causal": False},
    {"m": 128, "n": 128, "dtype": "float16", "causal": False},
    {"m": 128, "n": 128, "dtype": "float32", "causal": False},
    {"m": 128, "n": 128, "dtype": "float32", "causal": True},
    {"m": 4096, "n": 4096, "dtype": "float16", "causal": True},
]


def named(costs):
    """A chooser of the cheapest letter that has a cost at all members, and its total."""

    def choose(members):
        totals = [(sum(costs[i][c] for i in members), c) for c in LETTERS if all(c in costs[i] for i in members)]
        return (min(totals)[0], {"x": min(totals)[1]}) if totals else None

    return choose


def cost_of(rule, costs, price):
    found = list(leaves(rule))
    return sum(costs[i][leaf.config["x"]] for leaf in found for i in leaf.members) + price * (len(found) - 1)


@pytest.mark.parametrize("seed", range(20))
def test_no_way_to_cut_a_line_of_sizes_is_cheaper(seed):
    rng = Random(seed)
    sizes = rng.sample(range(1, 1000), 6)
    costs = [{c: rng.random() for c in rng.sample(LETTERS, 5)} for _ in sizes]
    price = rng.choice([0.0, 0.1, 0.5])
    order = sorted(range(6), key=lambda i: sizes[i])
    choose = named(costs)
    best = math.inf
    for cuts in itertools.product([False, True], repeat=5):
        parts = [[order[0]]]
        for i, cut in zip(order[1:], cuts, strict=True):
            parts.append([i]) if cut else parts[-1].append(i)
        chosen = [choose(frozenset(part)) for part in parts]
        if all(chosen):
            best = min(best, sum(c for c, _ in chosen) + price * (len(parts) - 1))
    rule = fit([{"m": s} for s in sizes], choose, price)
    assert cost_of(rule, costs, price) == pytest.approx(best)


def test_without_branches_there_is_one_leaf_or_no_rule():
    both, neither = [{"a": 1.0, "b": 2.0}, {"b": 2.0}], [{"a": 1.0}, {"b": 2.0}]
    problems = [{"m": 1}, {"m": 2}]
    assert fit(problems, named(both), math.inf) == Leaf((0, 1), {"x": "b"})
    assert fit(problems, named(neither), math.inf) is None
    assert fit(problems, named([{"a": 1.0}, {}]), 0.0) is None


def test_a_new_size_goes_to_the_nearer_one_by_ratio():
    rule = fit([{"m": 64}, {"m": 1024}], named([{"a": 0.0}, {"b": 0.0}]), 1.0)
    run = executed(rule, ["small", "large"])
    assert [run({"m": m})["x"] for m in (1, 64, 200, 256, 257, 500, 10**6)] == list("aaaabbb")


@pytest.mark.parametrize("picks", ["aaaaa", "abcde", "abbba", "aabab", "abcba", "aaaab"])
def test_the_text_says_the_same_as_the_rule_in_python_and_in_the_sandbox(picks):
    rule = fit(PROBLEMS, named([{c: 0.0} for c in picks]), 1.0)
    names = ['a"""\nimport os', "b", "c", "d", "e"]
    run = executed(rule, names)
    assert [run(p)["x"] for p in PROBLEMS] == list(picks)
    assert "import" not in [line.split()[0] for line in render(rule, names, "text").splitlines()]
    space = ConfigSpace.from_dict({"x": list(LETTERS)})
    with Sandbox() as sandbox:
        found = sandbox.run_each(render(rule, names, "text"), [space] * 5, PROBLEMS)
    assert [c["x"] for c in found] == list(picks)


def test_a_rule_has_a_leaf_for_each_configuration_where_that_is_possible():
    rule = fit(PROBLEMS, named([{c: 0.0} for c in "abbbc"]), 1.0)
    assert sorted(leaf.members for leaf in leaves(rule)) == [(0,), (1, 2, 3), (4,)]


def executed(rule, names):
    namespace = {}
    exec(render(rule, names, 'a summary with """ and \\ in it'), namespace)
    return namespace["get_kernel_config"]
