"""Rules over the sizes of problems: which configuration where, in as few branches as pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evotune.space import Config, Value

Problem = Mapping[str, Value]
Choose = Callable[[frozenset[int]], "tuple[float, Config] | None"]

# How far apart two values count that are not numbers, where sizes count by the log of their ratio. It
# decides only between splits that cost the same.
APART = 1.0
# Sums of the same terms in another order differ by less.
SAME_COST = 1e-12


@dataclass(frozen=True)
class Test:
    """A question about a problem: a number is at most ``value``, or anything else equals it."""

    name: str
    value: Value
    is_threshold: bool

    def holds(self, problem: Problem) -> bool:
        """The answer for one problem."""
        if self.is_threshold:
            return float(problem[self.name]) <= float(self.value)
        return problem[self.name] == self.value

    def __str__(self) -> str:
        asked = f"problem[{self.name!a}]"
        if self.value is True:
            return asked
        return f"{asked} {'<=' if self.is_threshold else '=='} {self.value!a}"


@dataclass(frozen=True)
class Leaf:
    """One configuration for the problems of these positions."""

    members: tuple[int, ...]
    config: Config


@dataclass(frozen=True)
class Branch:
    """One rule where a test holds, another elsewhere."""

    test: Test
    yes: Rule
    no: Rule


Rule = Leaf | Branch


def leaves(rule: Rule) -> Iterator[Leaf]:
    """All leaves, in the order of the text."""
    if isinstance(rule, Leaf):
        yield rule
    else:
        yield from leaves(rule.yes)
        yield from leaves(rule.no)


def fit(problems: Sequence[Problem], choose: Choose, price: float) -> Rule | None:
    """The rule of least cost: that of its leaves, plus ``price`` for each leaf after the first.

    Exact, by dynamic programming over the sets of problems that tests can cut out; there are few of
    them for a dozen problems of a few sizes. None if no rule covers all problems.

    Args:
        problems: All of the same names, no two equal.
        choose: Cost and configuration of one leaf for these problems; None if there is none.
        price: May be infinite: no branches.
    """
    known: dict[frozenset[int], tuple[float, Rule] | None] = {}

    def best(members: frozenset[int]) -> tuple[float, Rule] | None:
        if members not in known:
            known[members] = cheapest(members)
        return known[members]

    def cheapest(members: frozenset[int]) -> tuple[float, Rule] | None:
        chosen = choose(members)
        found = None if chosen is None else (chosen[0], Leaf(tuple(sorted(members)), chosen[1]))
        for test in _tests(problems, sorted(members)):
            inside = frozenset(i for i in members if test.holds(problems[i]))
            yes, no = best(inside), best(members - inside)
            if yes is None or no is None:
                continue
            cost = yes[0] + no[0] + price
            if math.isfinite(cost) and (found is None or cost < found[0] - SAME_COST):
                found = (cost, Branch(test, yes[1], no[1]))
        return found

    found = best(frozenset(range(len(problems))))
    return None if found is None else found[1]


def render(rule: Rule, names: Sequence[str], summary: str) -> str:
    """The rule as a program that needs no imports; ``names`` are those of the problems."""
    lines = ["def get_kernel_config(problem):", f'    """{_plain(summary)}"""', *_body(rule, names, "    ")]
    return "\n".join(lines) + "\n"


def _body(rule: Rule, names: Sequence[str], indent: str) -> Iterator[str]:
    if isinstance(rule, Leaf):
        config = ", ".join(f"{name!a}: {value!a}" for name, value in rule.config.items())
        yield f"{indent}return {{{config}}}  # {_plain(', '.join(names[i] for i in rule.members))}"
        return
    yield f"{indent}if {rule.test}:"
    yield from _body(rule.yes, names, indent + "    ")
    yield from _body(rule.no, names, indent)


def _plain(text: str) -> str:
    """One line of ASCII that ends no string."""
    return ascii(" ".join(text.split()))[1:-1].replace('"', "'")


def _tests(problems: Sequence[Problem], members: Sequence[int]) -> list[Test]:
    """All that tell some of the problems from the others; those between the most different sizes first."""
    found: list[tuple[float, Test]] = []
    for name in problems[0]:
        values = [problems[i][name] for i in members]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            found += _thresholds(name, sorted({float(v): v for v in values}.values(), key=float))
        elif len(distinct := list(dict.fromkeys(values))) > 1:
            asked = [True] if set(distinct) == {True, False} else distinct
            found += [(APART, Test(name, v, is_threshold=False)) for v in asked]
    return [test for _, test in sorted(found, key=lambda f: -f[0])]


def _thresholds(name: str, values: Sequence[Value]) -> Iterator[tuple[float, Test]]:
    """Between neighbouring values, at their geometric mean: a new size goes to the nearer one."""
    for low, high in zip(map(float, values), map(float, values[1:]), strict=False):
        middle = math.sqrt(low * high) if low > 0 else (low + high) / 2
        is_whole = low.is_integer() and high.is_integer()
        gap = math.log(high / low) if low > 0 else APART
        yield gap, Test(name, math.floor(middle) if is_whole else middle, is_threshold=True)
