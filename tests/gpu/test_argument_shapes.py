"""Shapes that kernels are compiled for, found without running a reference at a GPU's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evotune.gpu.headless import argument_shapes
from evotune.kernel import load_kernel

ROWS, COLS = 3000, 1100


@pytest.mark.parametrize("is_training", [True, False])
def test_shapes_of_several_outputs_come_from_small_sizes_with_the_problems_switches(
    monkeypatch: pytest.MonkeyPatch, is_training: bool
) -> None:
    kernel = load_kernel(Path(__file__).parents[2] / "kernels" / "layer_norm.py")
    original = kernel.definition.reference

    def small_only(problem: Any, x: Any, *rest: Any) -> Any:
        assert x.size < ROWS * COLS
        return original(problem, x, *rest)

    monkeypatch.setattr(kernel.definition, "reference", small_only)
    switches = {"training": True} if is_training else {}
    found = argument_shapes(kernel, {"rows": ROWS, "cols": COLS, "dtype": "float16", **switches})
    half, kept = np.dtype("float16").name, [((ROWS,), "float32")] * 2
    inputs = [((ROWS, COLS), half), ((COLS,), half), ((COLS,), half)]
    assert found == [*inputs, ((ROWS, COLS), half), *(kept if is_training else [])]
