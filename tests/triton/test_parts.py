"""The parts of the decorator that need no launch."""

from __future__ import annotations

import importlib.util
import json
import logging
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

from evotune.decorated import Tunables  # noqa: E402
from evotune.errors import DeviceError, UsageError  # noqa: E402
from evotune.space import ConfigSpace  # noqa: E402
from evotune.triton import Tolerance, autotune  # noqa: E402
from evotune.triton.cache import Cache  # noqa: E402
from evotune.triton.choices import Choices  # noqa: E402
from evotune.triton.environment import source_hash  # noqa: E402
from evotune.triton.search import FINALISTS, ROUNDS, Timed, decide  # noqa: E402

SUBJECT = {"source": "abc", "key": ["1024"]}


def of(block: int, **options: Any) -> Any:
    return triton.Config({"BLOCK": block}, **options)


# -- who wins


def timed(*latencies_ms: float | None) -> list[Timed]:
    return [Timed(of(i), (ms,)) if ms else Timed(of(i), stage="launch") for i, ms in enumerate(latencies_ms)]


def decided(found: list[Timed], again: dict[int, list[float | None]]) -> tuple[int, list[int]]:
    """The winner's place, and whose turn it was in the rounds."""
    turns: list[int] = []
    left = {i: iter(latencies_ms) for i, latencies_ms in again.items()}

    def attempt(config: Any) -> Timed:
        turns.append(config.kwargs["BLOCK"])
        return timed(next(left[turns[-1]]))[0]

    return decide(found, attempt).config.kwargs["BLOCK"], turns


def test_what_is_far_ahead_wins_without_rounds() -> None:
    assert decided(timed(2.0, None, 1.0, 1.5), {}) == (2, [])


def test_what_is_close_is_timed_again_in_alternating_rounds_and_the_faster_wins() -> None:
    slower, faster = [1.0 + 0.001 * i for i in range(8)], [0.9 + 0.001 * i for i in range(8)]
    winner, turns = decided(timed(3.0, 1.0, 1.05), {1: slower, 2: faster})
    assert winner == 2
    assert turns == [1, 2, 2, 1] * (ROUNDS.reps // 2)


def test_of_two_that_tie_the_earlier_wins() -> None:
    mostly_slower = [1.02, 1.02, 1.02, 1.02, 0.98, 0.98, 0.98, 1.02]
    assert decided(timed(1.01, 1.0), {0: mostly_slower, 1: [1.0] * 8})[0] == 0
    assert decided(timed(1.0, 1.01), {0: [1.0] * 8, 1: mostly_slower})[0] == 0


def test_what_fails_in_the_rounds_does_not_win() -> None:
    assert decided(timed(1.0, 1.01), {0: [None], 1: [1.0] * 8})[0] == 1
    assert decided(timed(1.0, 1.01), {0: [None], 1: [None]})[0] == 0


def test_no_more_than_a_few_are_timed_again() -> None:
    again: dict[int, list[float | None]] = {i: [1.0 + i] * 8 for i in range(9)}
    assert len(set(decided(timed(*[1.0 + i / 1000 for i in range(9)]), again)[1])) == FINALISTS


# -- what there is to choose


def test_a_list_is_a_space_of_exactly_its_configurations() -> None:
    given = [
        triton.Config({"BLOCK": 64, "ACC": triton.language.float16}, num_warps=2),
        triton.Config({"BLOCK": 32, "ACC": triton.language.float32}, num_warps=4, maxnreg=64),
        triton.Config({"BLOCK": 128, "ACC": triton.language.float16}, num_warps=4),
    ]
    choices = Choices.of_list(given)
    assert choices.count == choices.space.cardinality == 3
    assert choices.default is given[0]
    assert [choices.pick(c) for c in choices.all()] == given
    assert choices.pick(choices.space.default) is given[0]
    assert [choices.pick(json.loads(json.dumps(choices.values(c)))) for c in given] == given


def test_a_space_becomes_options_of_the_launch_and_arguments_of_the_kernel() -> None:
    space = ConfigSpace.from_dict({"BLOCK": [32, 64], "num_warps": [2, 4], "maxnreg": [64, 128]})
    choices = Choices.of_space(space)
    found = choices.pick({"BLOCK": 64, "num_warps": 2, "maxnreg": 128})
    assert found.kwargs == {"BLOCK": 64}
    assert (found.num_warps, found.maxnreg, found.num_stages) == (2, 128, triton.Config({}).num_stages)
    assert choices.all()[0] == space.default
    assert len(choices.all()) == choices.count == 8


def test_a_digest_changes_with_whatever_could_be_chosen() -> None:
    def digest(*configs: Any) -> str:
        return Choices.of_list(configs).digest

    first = digest(of(32), of(64))
    assert first == digest(of(32), of(64))
    others = [digest(of(64), of(32)), digest(of(32), of(128)), digest(of(32), of(64), of(128))]
    others.append(digest(of(32, num_warps=8), of(64, num_warps=8)))  # what all have in common
    assert len({first, *others}) == 5


def test_all_combinations_of_what_occurs_are_a_space_and_mean_what_they_were() -> None:
    given = [
        triton.Config({"BLOCK": 64, "ACC": triton.language.float16, "GROUP": 8}, num_warps=2),
        triton.Config({"BLOCK": 32, "ACC": triton.language.float32, "GROUP": 8}, num_warps=2, maxnreg=64),
    ]
    tunables = Tunables.of(given)
    assert {n: p.values for n, p in tunables.space.parameters.items()} == {
        "BLOCK": (32, 64),
        "ACC": ("triton.language.float16", "triton.language.float32"),
        "maxnreg": ("not set", 64),
    }
    assert tunables.options(tunables.space.default) == given[0].all_kwargs()
    chosen = {"BLOCK": 32, "ACC": "triton.language.float32", "maxnreg": 64}
    assert tunables.options(chosen) == given[1].all_kwargs()


# -- what is refused


@triton.jit
def kernel(x, out, n, BLOCK: triton.language.constexpr):  # noqa: N803
    pass


@pytest.mark.parametrize(
    ("configs", "options", "message"),
    [
        ([of(1), of(2)], {"key": ["m"]}, r"key: 'm' is no argument of the kernel"),
        ([of(1), of(2)], {"key": ["nn"]}, r"key: 'nn' \(did you mean 'n'\?\)"),
        ([of(1), of(2)], {"key": [], "check": {"outt": Tolerance(0, 0)}}, r"'outt' \(did you mean 'out'\?\)"),
        ([of(1), of(2)], {"key": [], "max_evaluations": 0}, "max_evaluations = 0 must be 1 at least"),
        ([of(1), of(2)], {"key": [], "restore_value": ["y"]}, "restore_value: 'y'"),
        ([of(1), {"BLOCK": 2}], {"key": []}, r"\{'BLOCK': 2\} is not a triton.Config"),
        ([of(1, pre_hook=print), of(1), of(2)], {"key": []}, "differ in their pre_hook alone"),
        ({"BLOK": [1, 2]}, {"key": []}, r"'BLOK' \(did you mean 'BLOCK'\?\) is neither an argument"),
        ({"BLOCK": []}, {"key": []}, "has no values"),
        ({}, {"key": []}, r"configs is \{\}: nothing to choose from"),
        ([], {"key": []}, r"configs is \[\]: nothing to choose from"),
        (32, {"key": []}, "give a list of triton.Config"),
        ({"BLOCK": [1, 2]}, {"key": [], "prune_configs_by": {"top_k": 1}}, "choose from a list"),
    ],
)
def test_what_cannot_be_used_is_refused_where_it_is_written(configs: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        autotune(configs, **options)(kernel)


def test_a_function_that_is_no_kernel_is_refused_with_what_is_missing() -> None:
    with pytest.raises(UsageError, match=r"no kernel of Triton; put @triton\.jit below"):
        autotune([of(1), of(2)], key=[])(lambda x: x)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver")
def test_a_launch_without_a_gpu_says_what_else_there_is() -> None:
    with pytest.raises(DeviceError, match="TRITON_INTERPRET=1"):
        autotune([of(1), of(2)], key=[])(kernel)[(1,)](1, 2, 3)


def test_the_same_configuration_twice_is_one() -> None:
    assert len(autotune([of(1), of(2), of(1)], key=[])(kernel).configs) == 2


# -- what is kept


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Cache("add")


def test_what_was_kept_is_found_for_the_same_subject_alone(cache: Cache) -> None:
    cache.put(SUBJECT, {"BLOCK": 64}, {"latency_ms": 1.0})
    cache.put({**SUBJECT, "source": "abd"}, {"BLOCK": 32}, {})
    assert Cache("add").get(SUBJECT) == {"BLOCK": 64}
    assert Cache("add").get({**SUBJECT, "source": "abd"}) == {"BLOCK": 32}
    assert Cache("add").get({**SUBJECT, "key": ["1025"]}) is None
    assert Cache("sub").get(SUBJECT) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "1", '{"format": 0, "entries": {}}', b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_as_good_as_none(
    cache: Cache, caplog: pytest.LogCaptureFixture, content: str | bytes
) -> None:
    cache.path.parent.mkdir(parents=True)
    cache.path.write_bytes(content.encode() if isinstance(content, str) else content)
    with caplog.at_level(logging.WARNING):
        assert cache.get(SUBJECT) is None
    assert "ignoring the kept configurations" in caplog.text
    cache.put(SUBJECT, {"BLOCK": 64}, {})
    assert cache.get(SUBJECT) == {"BLOCK": 64}


def _put(name: str) -> None:
    for i in range(10):
        Cache("add").put({"source": f"{name}{i}"}, {"BLOCK": i}, {})


def test_processes_that_keep_something_at_once_lose_nothing(cache: Cache) -> None:
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_put, args=(name,)) for name in "abc"]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert len(json.loads(cache.path.read_text())["entries"]) == 30
    assert list(cache.path.parent.glob("*.tmp")) == []


def test_a_change_of_what_the_kernel_calls_is_a_change_of_its_source(tmp_path: Path) -> None:
    text = (
        "import triton, triton.language as tl\n@triton.jit\ndef helper(x):\n    return x + {n}\n"
        "@triton.jit\ndef outer(x, out):\n    tl.store(out, helper(tl.load(x)))\n"
    )
    hashes: list[str] = []
    for i, n in enumerate([1, 2, 1]):
        path = tmp_path / f"source{i}.py"
        path.write_text(text.format(n=n))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        hashes.append(source_hash(triton.heuristics({})(module.outer)))
    assert hashes[0] == hashes[2] != hashes[1]
