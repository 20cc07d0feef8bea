"""What only a GPU can show. None of these has run yet: no GPU was at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evotune.gpu.check import check
from evotune.gpu.detect import detect
from evotune.gpu.evaluator import CudaEvaluator
from evotune.kernel import LoadedKernel, load_kernel
from evotune.recipe import load
from evotune.settings import Settings
from evotune.subject import Subject, choose_target, find_subject
from evotune.trial import Fidelity

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = sorted(p.stem for p in (ROOT / "kernels").glob("*.py"))
LOW, HIGH = Fidelity(1, "low", 20, 1.0), Fidelity(3, "high", 200, 2.0)


def faults() -> LoadedKernel:
    return load_kernel(HERE / "triton_faults.py")


def subject(path: Path, shape: str | None = None) -> Subject:
    return find_subject(
        str(path), Settings.model_validate({"run": {"shape": shape}, "measure": {"run_timeout_s": 10}})
    )


def open_evaluator(path: Path, shape: str | None = None) -> CudaEvaluator:
    evaluator = subject(path, shape).open_evaluator()
    assert isinstance(evaluator, CudaEvaluator), "a GPU is here and another target was chosen"
    return evaluator


@pytest.fixture(scope="module")
def evaluator() -> Iterator[CudaEvaluator]:
    one = open_evaluator(HERE / "triton_faults.py")
    yield one
    one.close()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("variant", "stage"),
    [
        ("garbage", "incorrect"),
        ("half", "incorrect"),
        ("nothing", "incorrect"),
        ("changes_input", "incorrect"),
        ("remembers", "incorrect"),
        ("overruns", "incorrect"),
        ("faults", "crash"),
        ("hangs", "timeout"),
    ],
)
def test_a_kernel_that_is_wrong_is_not_timed_and_the_next_one_is(
    evaluator: CudaEvaluator, variant: str, stage: str
) -> None:
    failed = evaluator.measure({"variant": variant}, LOW)
    assert (failed.ok, failed.failed_stage) == (False, stage), failed.reason
    assert evaluator.measure({"variant": "right"}, LOW).ok


@pytest.mark.gpu
def test_a_time_is_no_shorter_than_the_memory_allows() -> None:
    evaluator = open_evaluator(HERE / "triton_faults.py", "large")
    try:
        measured = evaluator.measure({"variant": "right"}, HIGH)
        gpu = detect()[0]
        peaks = load(choose_target("auto", faults()).name).peaks
        assert measured.ok, measured.reason
        assert measured.samples_ms
        if peaks is not None:
            bytes_moved = faults().definition.bytes_moved(faults().definition.shapes["large"])
            assert measured.latency_ms >= 1e3 * bytes_moved / peaks.bytes_per_s, gpu.name
        assert float(measured.context["clock_mhz"]) > 0
    finally:
        evaluator.close()


@pytest.mark.gpu
def test_what_does_twenty_times_the_work_loses_in_alternating_rounds(evaluator: CudaEvaluator) -> None:
    right, slow = evaluator.interleave([{"variant": "right"}, {"variant": "slow"}], HIGH)
    assert len(right.samples_ms) == len(slow.samples_ms)
    assert slow.latency_ms > right.latency_ms


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_the_default_of_a_shipped_kernel_is_right_at_every_shape(name: str) -> None:
    if name.startswith("helion_"):
        pytest.importorskip("helion", reason="helion is not installed", exc_type=ImportError)
    kernel = load_kernel(ROOT / "kernels" / f"{name}.py")
    for shape, problem in kernel.definition.shapes.items():
        if kernel.definition.flops(problem) > 2e11:
            continue  # the reference would take minutes
        evaluator = open_evaluator(kernel.path, shape)
        try:
            measured = evaluator.measure(subject(kernel.path, shape).space.default, LOW)
            assert measured.ok, (shape, measured.failed_stage, measured.reason)
        finally:
            evaluator.close()


@pytest.mark.torch
def test_the_planted_faults_compile_without_a_gpu() -> None:
    rows = check(faults(), ["h100"], samples=20, jobs=1)
    assert len(rows) == 10
    assert not [(row.config, row.reason) for row in rows if not row.ok]
