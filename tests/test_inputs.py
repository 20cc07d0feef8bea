"""Inputs with known answers: how they are drawn, and what is checked in the memory of each target."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evotune import inputs
from evotune.errors import UsageError
from evotune.inputs import TIMING_SETS, UNSEEN_SETS, Drawn, Inputs, Results
from evotune.kernel import LoadedKernel, Tolerance, numpy_dtype

PROBLEM = {"n": 8, "dtype": "bfloat16"}
SLOW_S = 2 * inputs.REDRAW_BELOW_S


class Calls:
    """A reference that counts its calls."""

    def __init__(self, seconds: float) -> None:
        self.count = 0
        self._seconds = seconds

    def __call__(self, problem: Any, x: Any) -> Any:
        self.count += 1
        time.sleep(self._seconds)
        return 2 * x


def kernel_of(reference: Callable[..., Any]) -> LoadedKernel:
    def draw(problem: Any, rng: np.random.Generator) -> Any:
        return (rng.standard_normal(problem["n"]).astype(numpy_dtype(problem["dtype"])),)

    tolerance = {"bfloat16": Tolerance(0, 0)}
    definition: Any = SimpleNamespace(inputs=draw, reference=reference, tolerance=tolerance)
    return LoadedKernel(Path("kernel.py"), "", definition)


def drawn_by(kernel: LoadedKernel, folder: Path) -> list[Drawn]:
    made: Inputs[Any] = Inputs(kernel, PROBLEM, 0, lambda drawn: drawn, Results(folder))  # type: ignore[arg-type]
    return [*made.timing, *(made.unseen() for _ in range(UNSEEN_SETS))]


def test_a_slow_reference_is_run_by_one_worker_of_a_run_and_not_again_by_one_that_replaces_it(
    tmp_path: Path,
) -> None:
    reference = Calls(SLOW_S)
    kernel = kernel_of(reference)
    with ThreadPoolExecutor(2) as pool:
        several = list(pool.map(drawn_by, [kernel] * 2, [tmp_path] * 2))
    several.append(drawn_by(kernel, tmp_path))
    assert reference.count == TIMING_SETS + UNSEEN_SETS
    for sets in several:
        for drawn, first in zip(sets, several[0], strict=True):
            (result,) = drawn.expected
            assert result.dtype == numpy_dtype("bfloat16")
            assert np.array_equal(result, first.expected[0])
            assert np.array_equal(result, 2 * drawn.inputs[0])


def test_a_quick_reference_is_not_kept_and_has_new_values_each_time(tmp_path: Path) -> None:
    reference = Calls(0.0)
    sets = drawn_by(kernel_of(reference), tmp_path)
    assert reference.count == len({s.inputs[0].tobytes() for s in sets}) == TIMING_SETS + UNSEEN_SETS
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("fault", ["little is free", "it is full"])
def test_where_nothing_can_be_kept_a_reference_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def full(*args: object, **arrays: object) -> None:
        raise OSError(28, "No space left on device")

    if fault == "it is full":
        monkeypatch.setattr(np, "savez", full)
    else:
        monkeypatch.setattr(inputs.shutil, "disk_usage", lambda folder: SimpleNamespace(free=8))
    reference = Calls(SLOW_S)
    for _ in range(2):
        drawn_by(kernel_of(reference), tmp_path)
    assert reference.count == 2 * (TIMING_SETS + UNSEEN_SETS)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


# -- several outputs ----------------------------------------------------------------------------

ROWS = {"rows": 6, "cols": 5, "dtype": "float32"}


def maximum(x: Any) -> tuple[Any, Any]:
    return x.max(axis=1), x.argmax(axis=1).astype(np.int32) + 10_000


def largest() -> LoadedKernel:
    """The maximum of each row, and where it is: from 10,000 on, so that a relative error is small."""

    def draw(problem: Any, rng: np.random.Generator) -> Any:
        return (rng.standard_normal((problem["rows"], problem["cols"]), dtype=np.float32),)

    definition: Any = SimpleNamespace(
        inputs=draw,
        reference=lambda problem, x: maximum(x),
        tolerance={"float32": Tolerance(1e-3, 1e-3)},
    )
    return LoadedKernel(Path("kernel.py"), "", definition)


def on_cpu(drawn: Drawn) -> Any:
    from evotune.cpu.inputs import InputSet

    return InputSet.of(drawn)


def on_gpu(drawn: Drawn) -> Any:
    from evotune.gpu.inputs import InputSet

    return InputSet.of(drawn, "cpu")


def arrays_of(placed: Any) -> tuple[Any, Any, Any]:
    """The input and the outputs, as arrays that share its memory."""
    if hasattr(placed, "addresses"):
        return placed.arguments[0].array, *(o.array for o in placed.outputs)
    return placed.arguments[0].numpy(), *(o.numpy() for o in placed.outputs)


TARGETS = [on_cpu, pytest.param(on_gpu, marks=pytest.mark.torch)]
WRONG = {
    "right": None,
    "an index next to the right one": "output 1: 1 of 6 values are wrong, the largest error is 1 at [2]",
    "one index not written": "output 1: 1 of 6 values are wrong",
    "the first output not written": "output 0: 6 of 6 values are wrong, 6 of them not finite or never written",
    "beyond the first output": "it wrote outside of its output",
    "before the second output": "it wrote outside of its output",
}


@pytest.mark.parametrize("place", TARGETS)
@pytest.mark.parametrize("fault", WRONG)
def test_each_of_several_outputs_is_poisoned_guarded_and_checked_in_its_dtype(
    tmp_path: Path, place: Callable[[Drawn], Any], fault: str
) -> None:
    made: Inputs[Any] = Inputs(largest(), ROWS, 0, place, Results(tmp_path))
    drawn, other = made.timing[:2]
    for change in (lambda: drawn, lambda: drawn.moved(Random(0)), lambda: drawn.refilled(other)):
        placed = change()
        placed.poison()
        x, first, second = arrays_of(placed)
        assert [a.dtype.name for a in (first, second)] == ["float32", "int32"]
        right = maximum(x)
        if fault != "the first output not written":
            first[...] = right[0]
        written = slice(1 if fault == "one index not written" else 0, None)
        second[written] = right[1][written]
        if fault == "an index next to the right one":
            second[2] += 1
        if fault == "beyond the first output":
            np.lib.stride_tricks.as_strided(first, (len(first) + 1,))[-1] = 1.0
        if fault == "before the second output":
            np.lib.stride_tricks.as_strided(second[::-1], (len(second) + 1,))[-1] = 1
        found = placed.wrongness(made.tolerances)
        assert found == WRONG[fault] if fault == "right" else str(found).startswith(str(WRONG[fault])), found
        first[...], second[...] = right
        assert placed.wrongness(made.tolerances) is None, "what was wrong is put right for the next kernel"


def test_a_reference_that_gives_no_output_or_one_of_doubles_is_told_of(tmp_path: Path) -> None:
    kernel: Any = largest()
    for wrong, said in (((), "gives no array"), ((np.zeros(2, "f4"), np.zeros(2)), "result 1 of .* float64")):
        kernel.definition.reference = lambda problem, x, wrong=wrong: wrong
        with pytest.raises(UsageError, match=said):
            Inputs(kernel, ROWS, 0, on_cpu, Results(tmp_path))
