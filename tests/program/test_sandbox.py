"""From text to configuration, and what is promised about each step."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import evotune.program
from evotune.errors import DeviceError, Rejected, UsageError
from evotune.program import Proposal, Sandbox, check, clip, extract, interpreter, render
from evotune.space import ConfigSpace

REPOSITORY = Path(__file__).parents[2]
SPACE = ConfigSpace.from_dict(
    {"BLOCK_M": [16, 32, 64, 128], "BLOCK_N": [16, 32, 64, 128], "use_tma": [False, True], "layout": ["nt", "tn"]},
    ["BLOCK_M * BLOCK_N <= 4096"],
)
CONFIG = {"BLOCK_M": 64, "BLOCK_N": 32, "use_tma": True, "layout": "nt"}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


def returning(expression: str, argument: str = "") -> str:
    return f"def get_kernel_config({argument}):\n    return {expression}\n"


def rejection(box: Sandbox, program: str, problem: object = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        box.run(program, SPACE, problem)  # type: ignore[arg-type]
    return caught.value


def test_all_violations_are_in_one_message(sandbox: Sandbox) -> None:
    found = rejection(sandbox, returning("{'BLOCK_M': 24, 'BLOCK_K': 8, 'use_tma': 1, 'layout': [1]}"))
    assert found.stage == "validate"
    for part in (
        "BLOCK_M = 24",
        "'BLOCK_K' (did you mean",
        "use_tma = 1",
        "layout = a value of type list",
        "'BLOCK_N'",
    ):
        assert part in found.reason


def test_a_broken_constraint_is_quoted(sandbox: Sandbox) -> None:
    found = rejection(sandbox, returning(repr({**CONFIG, "BLOCK_M": 128, "BLOCK_N": 128})))
    assert "BLOCK_M * BLOCK_N <= 4096" in found.reason


def test_the_problem_reaches_a_program_that_asks_for_it(sandbox: Sandbox) -> None:
    chosen = (
        "{**" + repr(CONFIG) + ", 'BLOCK_M': 16 if problem['m'] < 100 and problem['dtype'] == 'f\\n16' else 64}"
    )
    program = returning(chosen, "problem: dict[str, int] | None = None")
    assert sandbox.run(program, SPACE, {"m": 7, "dtype": "f\n16"})["BLOCK_M"] == 16
    assert sandbox.run(program, SPACE, {"m": 700, "dtype": "f\n16"})["BLOCK_M"] == 64


def test_the_problem_is_not_forced_upon_a_program(sandbox: Sandbox) -> None:
    assert sandbox.run(returning(repr(CONFIG)), SPACE, {"m": 7}) == CONFIG
    assert sandbox.run(returning(repr(CONFIG), "problem=None"), SPACE) == CONFIG
    assert rejection(sandbox, returning(repr(CONFIG), "problem")).stage == "parse"


@pytest.mark.parametrize("value", [[1], None, float("nan"), float("inf"), b"x"])
def test_a_problem_that_is_not_flat_is_the_callers_mistake(value: object, sandbox: Sandbox) -> None:
    with pytest.raises(UsageError, match="problem"):
        sandbox.run(returning(repr(CONFIG)), SPACE, {"m": value})  # type: ignore[dict-item]


def test_a_reason_says_the_line(sandbox: Sandbox) -> None:
    assert rejection(sandbox, "x = 1\ny = undefined\n" + returning("{}")).reason.startswith("line 2: NameError")


def test_no_program_sees_an_earlier_one(sandbox: Sandbox) -> None:
    sandbox.run("import random\nrandom.seed(5)\nleft = 1\n" + returning(repr(CONFIG)), SPACE)
    assert "left" in rejection(sandbox, "left\n" + returning(repr(CONFIG))).reason


def test_the_same_program_always_gives_the_same_configuration(sandbox: Sandbox) -> None:
    program = "import random, time\n" + returning(
        "{**"
        + repr(CONFIG)
        + ", 'BLOCK_M': random.choice([16, 32, 64]), 'use_tma': int(time.time() * 1e6) % 2 == 0}"
    )
    assert len({tuple(sandbox.run(program, SPACE).items()) for _ in range(5)}) == 1


def test_the_result_is_in_the_order_of_the_space(sandbox: Sandbox) -> None:
    assert list(sandbox.run(returning(repr(dict(reversed(CONFIG.items())))), SPACE)) == list(CONFIG)


def test_nothing_is_started_for_json_and_rendered_programs() -> None:
    code = """
import sys
from evotune.program import render, run, extract
from evotune.space import ConfigSpace
space = ConfigSpace.from_dict({"x": [1, 2]})
print(run(render({"x": 2}, space), space), run('{"x": 2}', space), len(extract('{"x": 2}').proposals))
print(sorted(set(sys.modules) & {"pydantic_monty", "sklearn", "openevolve", "torch", "openai"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "{'x': 2} {'x': 2} 1\n[]\n"


def test_without_monty_json_is_accepted_and_no_program_is_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"""
import sys
sys.modules["pydantic_monty"] = None
from evotune.errors import Rejected
from evotune.program import run
from evotune.space import ConfigSpace
space = ConfigSpace.from_dict({{"x": [1, 2]}})
print(run('{{"x": 2}}', space))
try:
    run("open({str(canary)!r}, 'w')\\ndef get_kernel_config():\\n    return {{'x': 1}}", space)
except Rejected as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.startswith("{'x': 2}\nparse: programs need pydantic-monty==1.4.0")
    assert not canary.exists()


def test_threads_may_share_a_sandbox(sandbox: Sandbox) -> None:
    found: list[object] = []
    programs = [returning(repr({**CONFIG, "BLOCK_N": n})) for n in (16, 32, 64) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda p=p: found.append(sandbox.run(p, SPACE)["BLOCK_N"])) for p in programs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [16] * 4 + [32] * 4 + [64] * 4


def _in_a_fork(box: Sandbox, queue: multiprocessing.SimpleQueue[object]) -> None:
    queue.put(box.run('{"BLOCK_M": 64, "BLOCK_N": 32, "use_tma": true, "layout": "nt"}', SPACE))
    try:
        box.run(returning(repr(CONFIG)), SPACE)
    except UsageError as error:
        queue.put(str(error))
    box.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking with threads is the point
def test_a_forked_process_is_told_instead_of_left_waiting(sandbox: Sandbox) -> None:
    sandbox.run(returning(repr(CONFIG)), SPACE)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_a_fork, args=(sandbox, queue))
    child.start()
    try:
        child.join(20)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
    assert queue.get() == CONFIG
    assert "cannot be run in a fork" in str(queue.get())
    assert sandbox.run(returning(repr(CONFIG)), SPACE) == CONFIG


def test_a_closed_sandbox_starts_again() -> None:
    box = Sandbox()
    box.close()
    assert box.run(returning(repr(CONFIG)), SPACE) == CONFIG
    box.close()
    box.close()
    assert box.run(returning(repr(CONFIG)), SPACE) == CONFIG
    box.close()


@pytest.mark.parametrize("layer", ["time", "memory", "recursion", "files", "environment", "sockets"])
def test_a_lost_wall_of_the_language_stops_everything(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "ATTACKS", {layer: ("x = 1", interpreter.ATTACKS[layer][1])})
    with pytest.raises(DeviceError, match=f"lost its limit on {layer}"), Sandbox() as box:
        box.run(returning(repr(CONFIG)), SPACE)


@pytest.mark.parametrize("layer", ["time", "memory"])
def test_a_limit_that_is_switched_off_is_noticed(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {"time": ("max_feed_duration_secs", "max_turn_duration_secs"), "memory": ("max_memory",)}[layer]
    monkeypatch.setattr(interpreter, "LIMITS", {**interpreter.LIMITS, **dict.fromkeys(lost)})
    with pytest.raises(DeviceError, match=f"lost its limit on {layer}"), Sandbox() as box:
        box.run(returning(repr(CONFIG)), SPACE)


def test_a_program_that_does_not_listen_to_its_limits_is_killed(sandbox: Sandbox) -> None:
    # One operation on huge integers, in the middle of which the interpreter looks at no clock.
    assert (
        "request timeout of 450ms" in rejection(sandbox, "x = str(7**6000000)\n" + returning(repr(CONFIG))).reason
    )


def test_recursion_is_allowed_to_a_depth_and_not_beyond(sandbox: Sandbox) -> None:
    recursive = "def down(n):\n    return 0 if n == 0 else down(n - 1)\n"
    program = recursive + returning(repr(CONFIG)) + "down({depth})\n"
    assert sandbox.run(program.replace("{depth}", "150"), SPACE) == CONFIG
    assert "RecursionError" in rejection(sandbox, program.replace("{depth}", "250")).reason


def test_the_shared_sandbox_is_behind_run() -> None:
    assert evotune.program.run(render(CONFIG, SPACE) + "# touched\n", SPACE) == CONFIG


def test_an_unknown_isolation_is_refused() -> None:
    with pytest.raises(UsageError, match="'strict' or 'standard'"):
        Sandbox("none")  # type: ignore[arg-type]


def test_json_may_name_only_what_it_changes(sandbox: Sandbox) -> None:
    (proposal,) = extract('{"BLOCK_N": 64}').proposals
    assert sandbox.resolve(proposal, SPACE, base=CONFIG) == {**CONFIG, "BLOCK_N": 64}
    with pytest.raises(Rejected, match="'BLOCK_M' is missing"):
        sandbox.resolve(proposal, SPACE)


def test_changes_are_checked_together_with_their_base() -> None:
    with pytest.raises(Rejected, match="constraint"):
        check({"BLOCK_N": 128}, SPACE, CONFIG)


def test_a_proposed_program_is_run(sandbox: Sandbox) -> None:
    assert sandbox.resolve(Proposal(returning(repr(CONFIG))), SPACE, base=CONFIG) == CONFIG


class Lying(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


LOOK_ALIKES = [True, 64.0, Lying(64), "64", 64 + 0j, None, (64,), 10**5000, type("X", (), {})()]


@pytest.mark.parametrize("value", LOOK_ALIKES, ids=lambda value: type(value).__name__)
def test_a_value_that_only_looks_right_is_refused(value: object) -> None:
    with pytest.raises(Rejected, match="BLOCK_M"):
        check({**CONFIG, "BLOCK_M": value}, SPACE)


def test_numpy_scalars_and_dict_subclasses_are_refused() -> None:
    with pytest.raises(Rejected, match="int64"):
        check({**CONFIG, "BLOCK_M": np.int64(64)}, SPACE)
    with pytest.raises(Rejected, match="found a value of type"):
        check(type("D", (dict,), {})(CONFIG), SPACE)


def test_long_legal_strings_are_legal() -> None:
    space = ConfigSpace.from_dict({"x": ["a" * 500, "b\n\u202e"]})
    assert check({"x": "a" * 500}, space) == {"x": "a" * 500}
    assert check({"x": "b\n\u202e"}, space) == {"x": "b\n\u202e"}


def test_clipped_text_is_short_printable_ascii() -> None:
    assert clip("a\x1b[2J\u202e\n" * 1000).isprintable()
    assert clip("a\x1b[2J\u202e\n" * 1000).isascii()
    assert len(clip("x" * 10**6)) == 300
    assert clip("kept") == "kept"
