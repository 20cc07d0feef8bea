"""Kernels that give wrong results, each fast: none is ever timed, and so none wins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from saxpy import PLANTED

from evotune import session, settings
from evotune.cpu import CpuEvaluator
from evotune.journal import Journal
from evotune.kernel import LoadedKernel, load_kernel
from evotune.trial import Fidelity

SAXPY = Path(__file__).with_name("saxpy.py")
LOW = Fidelity(1, "low", 5)
HIGH = Fidelity(3, "high", 500)
pytestmark = pytest.mark.usefixtures("_needs_a_compiler")

FOUND = {
    "nothing": "4096 of 4096 values are wrong, 4096 of them not finite or never written",
    "garbage": "values are wrong, the largest error is",
    "uninitialised": "values are wrong",
    "accumulates": "4096 of them not finite or never written",
    "half": "2048 of them not finite or never written",
    "one_off": "1 of 4096 values are wrong, the largest error is 1 at [17]",
    "nan": "1 of them not finite",
    "mutates": "changed its inputs [0]",
    "mutates_when_warm": "changed its inputs [0]",
    "beyond": "wrote outside of its output",
    "before": "wrote outside of its output",
    "by_pointer": "values are wrong",
    "table": "values are wrong",
    "cached_forever": "values are wrong",
    "if_poisoned": "values are wrong",
    "when_warm": "1 of 4096 values are wrong",
    "later_wrong": "at [0] (found 7",
    "thread": "more than one thread",
    "detached": "more than one thread",
    "forks": "started a process",
}


@pytest.fixture(scope="module")
def kernel() -> LoadedKernel:
    return load_kernel(SAXPY)


@pytest.fixture(scope="module")
def cpu(kernel: LoadedKernel) -> Iterator[CpuEvaluator]:
    with CpuEvaluator(kernel, kernel.problem(None, "cpu"), fidelities=[LOW, HIGH], run_timeout_s=5) as evaluator:
        yield evaluator


def config(variant: str = "right") -> dict[str, Any]:
    return {"variant": variant, "opt": "-O2", "tag": 0}


@pytest.mark.parametrize("variant", FOUND)
def test_a_wrong_result_is_found_and_never_timed(cpu: CpuEvaluator, variant: str) -> None:
    assert cpu.measure(config(), LOW).ok  # its right results are in the same memory
    found = cpu.measure(config(variant), HIGH)
    assert (found.ok, found.failed_stage) == (False, "incorrect")
    assert found.reason is not None
    assert FOUND[variant] in found.reason
    assert cpu.measure(config(), LOW).ok


def test_every_planted_kernel_is_told_of_here() -> None:
    assert set(FOUND) == set(PLANTED)


@pytest.mark.parametrize("variant", ["half", "nothing", "one_off"])
def test_wrong_integers_are_caught_although_they_cannot_be_poisoned_with_nan(
    kernel: LoadedKernel, variant: str
) -> None:
    with CpuEvaluator(kernel, kernel.problem("int", "cpu"), fidelities=[LOW]) as cpu:
        assert cpu.measure(config(), LOW).ok
        assert cpu.measure(config(variant), LOW).failed_stage == "incorrect"


def test_a_run_over_planted_kernels_is_won_by_the_one_that_is_right(tmp_path: Path) -> None:
    flags = {
        "run.shape": "planted", "run.target": "cpu", "run.search": "random", "run.max_evaluations": 100,
        "run.journal": str(tmp_path / "j.db"), "llm.provider": "none",
    }  # fmt: skip
    result = session.tune(str(SAXPY), settings.load(None, flags, {}), observer=Silent())
    assert result.evaluations == len(PLANTED) + 2
    with Journal(tmp_path / "j.db") as journal:
        trials = list(journal.run(result.run_id))
    timed = {t.config["variant"] for t in trials if t.failure is None}
    # One is right 2,000 times. Where it looks slow, for whatever noise, it is not called so often, and has lost.
    assert timed - {"later_wrong"} == {"right", "slower"}
    assert set(result.failures) == {"incorrect"}
    assert result.best is not None
    assert result.best["config"]["variant"] == "right"


class Silent:
    def on_trial(self, *_: Any, **__: Any) -> None: ...

    def on_note(self, text: str) -> None: ...
