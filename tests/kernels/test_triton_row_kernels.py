"""The row-wise Triton kernels: right in the interpreter, without duplicates, and with choices that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evotune.kernel import LoadedKernel, Problem, load_kernel
from evotune.space import Config
from tests.kernels.interpret_jobs import interpret

ROOT = Path(__file__).parents[2]
NAMES = ["cross_entropy", "layer_norm", "rms_norm", "softmax", "vector_add"]
DTYPES = ["float32", "float16", "bfloat16"]
# One multiprocessor, lest a persistent grid be larger than these problems; odd sizes, and three steps of the
# smallest block of columns.
SIZES: dict[str, Problem] = {
    "cross_entropy": {"rows": 5, "vocab": 700},
    "layer_norm": {"rows": 5, "cols": 300},
    "rms_norm": {"rows": 5, "cols": 300},
    "softmax": {"rows": 5, "cols": 300},
    "vector_add": {"n": 2500},
}
SAMPLES = 16


def shipped(name: str) -> LoadedKernel:
    return load_kernel(ROOT / "kernels" / f"{name}.py")


def tiny(name: str, dtype: str) -> Problem:
    return {**SIZES[name], "dtype": dtype, "multiprocessors": 1}


# -- in the interpreter -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> list[dict[str, Any]]:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("triton", reason="triton is not installed")
    return interpret([(name, tiny(name, dtype)) for name in NAMES for dtype in DTYPES], SAMPLES)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_triton_kernel_agrees_with_the_reference_in_the_interpreter(
    interpreted: list[dict[str, Any]], name: str, dtype: str
) -> None:
    rows = [row for row in interpreted if row["kernel"] == name and row["problem"]["dtype"] == dtype]
    assert len(rows) == 1 + SAMPLES
    assert [row for row in rows if row["wrong"]] == []


@pytest.mark.torch
@pytest.mark.slow
def test_the_statistics_that_training_keeps_are_right_in_the_interpreter() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("triton", reason="triton is not installed")
    rows = interpret([("layer_norm", {**tiny("layer_norm", "float16"), "training": True})], SAMPLES)
    assert len(rows) == 1 + SAMPLES
    assert [row for row in rows if row["wrong"]] == []


def ways(config: Config, problem: Problem) -> set[str]:
    """Which branches of a kernel a configuration takes, in words."""
    columns = int(problem.get("cols", problem.get("vocab", problem.get("n", 0))))
    named = {f"{n} is {config[n]}" for n in ("MAXIMUM", "STATISTICS") if n in config}
    counts = {n for n in ("ROWS_AT_ONCE", "SPLITS", "STEPS", "NUM_STAGES") if int(config.get(n, 1)) > 1}
    persistent = "persistent" if config.get("PROGRAMS_PER_SM") else "a program for each"
    return named | counts | {persistent, "one block" if int(config["BLOCK"]) >= columns else "several blocks"}


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_was_interpreted_takes_each_way_through_the_kernel(
    interpreted: list[dict[str, Any]], name: str
) -> None:
    problem = tiny(name, "float32")
    space = shipped(name).backend("cuda").space(problem)
    tried = [ways(row["config"], problem) for row in interpreted if row["kernel"] == name]
    possible = [ways(space.config(row), problem) for row in range(space.cardinality)]
    assert set[str]().union(*tried) == set[str]().union(*possible)


# -- the spaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_default_gpu_space_is_worth_searching(name: str) -> None:
    kernel = shipped(name)
    assert kernel.backend("cuda").space(kernel.problem(None, "cuda")).cardinality >= 500
