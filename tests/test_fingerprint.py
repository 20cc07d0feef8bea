"""A journal's promise to functions: what may be another function is one."""

from __future__ import annotations

import enum
import functools
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import evotune
from evotune import ConfigSpace, OpenEvolveTuner
from evotune.errors import UsageError
from evotune.fingerprint import fingerprint
from evotune.journal import Journal

SIZE = 512


class Layout(enum.Enum):
    ROWS = 1
    COLUMNS = 2


@dataclass
class Bench:
    size: int
    seen: list = field(default_factory=list)

    def run(self, config: dict) -> float:
        return self.size


def closure(value: object):
    return lambda config: value


def default(value: object):
    def run(config: dict, size: object = value) -> object:
        return size

    return run


def keyword(value: object):
    def run(config: dict, *, size: object = value) -> object:
        return size

    return run


def bound(value: object):
    return functools.partial(keyword(None), size=value)


def method(value: object):
    return Bench(value).run


VALUES = [
    [1, 1.0, True, "1", b"1", None, (1,), [1], {1}, frozenset({1}), {1: 1}],
    [Path("a"), Path("b"), Layout.ROWS, Layout.COLUMNS, np.arange(3), np.arange(3.0), np.arange(4), np.float32(1)],
    [max, np.exp, np.log, np.dot, np.linalg, int, Bench, closure(1), closure(2)],
]


@pytest.mark.parametrize("make", [closure, default, keyword, bound, method])
@pytest.mark.parametrize("values", VALUES)
def test_functions_with_other_values_are_told_apart(make, values: list) -> None:
    found = [fingerprint(make(value)) for value in values]
    assert len(set(found)) == len(values)
    assert found == [fingerprint(make(value)) for value in values]


def helper(config: dict) -> int:
    return SIZE


def calls_helper(config: dict) -> int:
    return helper(config)


def test_globals_and_the_functions_of_the_module_count(monkeypatch) -> None:
    def nested(config: dict) -> list:
        return [SIZE for _ in config]

    part = functools.partial(calls_helper)
    before = fingerprint(calls_helper), fingerprint(nested), fingerprint(part)
    monkeypatch.setattr(sys.modules[__name__], "SIZE", 4096)
    assert fingerprint(calls_helper) != before[0]
    assert fingerprint(nested) != before[1]
    assert fingerprint(part) != before[2]
    monkeypatch.undo()
    assert fingerprint(calls_helper) == before[0]
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda config: SIZE + 1)
    assert fingerprint(calls_helper) != before[0]


def samples() -> str:
    made = [closure(v) for values in VALUES for v in values] + [closure({*"abcdefgh", ("c", 1.5)}), calls_helper]
    made.append(closure({Path(name) for name in "abcdefgh"}))
    return " ".join(fingerprint(f) for f in made)


def test_what_is_cached_counts_as_what_it_caches(monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "helper", functools.lru_cache(lambda config: SIZE))
    before = fingerprint(calls_helper)
    monkeypatch.setattr(sys.modules[__name__], "SIZE", 4096)
    assert fingerprint(calls_helper) != before


def test_another_process_tells_the_same() -> None:
    code = "from tests.test_fingerprint import samples; print(samples())"
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == samples()


def test_a_function_that_refers_to_itself_has_an_end() -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert fingerprint(even) != fingerprint(odd)


def test_what_cannot_be_told_apart_is_not_resumed_without_a_key(tmp_path: Path) -> None:
    lock = threading.Lock()

    def latency_ms(config: dict) -> float:
        with lock:
            return 1.0 * config["a"]

    space = {"a": [1, 2, 3]}
    with pytest.raises(UsageError, match=r"a lock in lock cannot be told .* give key='...'"):
        evotune.tune(latency_ms, space, journal=tmp_path / "j.db")
    evotune.tune(latency_ms, space)  # without a journal it does not matter
    first = evotune.tune(latency_ms, space, journal=tmp_path / "j.db", key="a")
    never = evotune.tune(lambda config: pytest.fail("it was called"), space, journal=tmp_path / "j.db", key="a")
    assert never.history == first.history


def test_what_is_too_deep_to_look_at_is_not_taken_for_the_same() -> None:
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(UsageError, match="a list with so much within it in value cannot be told"):
        fingerprint(closure(deep))


def test_another_problem_in_the_same_journal_is_another_search(tmp_path: Path) -> None:
    calls = []

    def make(n: int):
        return lambda config: calls.append(n) or 1.0 + abs(config["a"] - n / 512)

    found = [evotune.tune(make(n), {"a": [1, 2, 4, 8]}, journal=tmp_path / "j.db").config for n in (512, 4096)]
    assert found == [{"a": 1}, {"a": 8}]
    assert {512, 4096} == set(calls)


def test_constants_and_the_default_are_part_of_a_space(tmp_path: Path) -> None:
    def latency_ms(config: dict) -> float:
        return 1.0 / config["a"]

    def space(k: int, default: int) -> ConfigSpace:
        return ConfigSpace.from_dict({"a": [1, 2, 4, 8]}, ["a <= k"], constants={"k": k}, default={"a": default})

    given = [(1000, 1), (4, 1), (4, 2)]
    found = [evotune.tune(latency_ms, space(*g), journal=tmp_path / "j.db") for g in given]
    assert [f.config["a"] for f in found] == [8, 4, 4]
    assert [f.history[0][0]["a"] for f in found] == [1, 1, 2]


@pytest.mark.parametrize("change", ["done_order=done_order", "done_order=NULL"])
def test_a_recorded_configuration_that_is_not_legal_is_no_answer(tmp_path: Path, change: str) -> None:
    def latency_ms(config: dict) -> float:
        return 1.0 / config["a"]

    path = tmp_path / "j.db"
    scored = OpenEvolveTuner({"a": [1, 2]}, latency_ms, 2, provider="none", verbose=False, journal=path)
    scored.tune()
    evotune.tune(latency_ms, {"a": [1, 2]}, journal=path)
    with Journal(path) as journal:
        journal.write(f"UPDATE trial SET config=replace(config, '2', '64'), {change}", [()])
    with pytest.raises(UsageError, match=r"a configuration \{'a': 64\} that is not of this space"):
        evotune.tune(latency_ms, {"a": [1, 2]}, max_evaluations=9, journal=path)
    with pytest.raises(UsageError, match="not of this space"):
        OpenEvolveTuner({"a": [1, 2]}, latency_ms, 9, provider="none", verbose=False, journal=path).tune()


def test_a_function_that_counts_its_calls_stays_the_same(tmp_path: Path) -> None:
    calls = []
    for _ in range(2):
        evotune.tune(
            lambda config: calls.append(config) or 1.0, {"a": [1, 2, 3]}, finals=0, journal=tmp_path / "j.db"
        )
        assert len(calls) == 3
