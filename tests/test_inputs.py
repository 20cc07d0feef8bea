"""Inputs with known answers, without a target: a set's memory is the drawn arrays themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evotune import inputs
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
            assert drawn.expected.dtype == numpy_dtype("bfloat16")
            assert np.array_equal(drawn.expected, first.expected)
            assert np.array_equal(drawn.expected, 2 * drawn.inputs[0])


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
