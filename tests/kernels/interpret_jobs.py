"""Run Triton kernels in Triton's interpreter, in a process of its own.

Triton reads TRITON_INTERPRET when it is imported, for good. One process for many configurations, because
importing torch and Triton takes longer than running them on small problems.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from evotune.kernel import Problem, Tolerance, load_kernel

ROOT = Path(__file__).parents[2]
LAST_PLACE = 2.0**-7  # of bfloat16, relative: the interpreter cuts to it where a GPU rounds to the nearest


def interpret(jobs: Sequence[tuple[str, Problem]], samples: int) -> list[dict[str, Any]]:
    """For the default and the sampled configurations of each kernel and problem, what was wrong, or None.

    Each row has ``kernel``, ``problem``, ``config`` and ``wrong``.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpret_jobs"],
        input=json.dumps({"jobs": jobs, "samples": samples}),
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> None:
    asked = json.load(sys.stdin)
    multiply_bfloat16_as_numbers()
    rows = [row for name, problem in asked["jobs"] for row in interpret_here(name, problem, asked["samples"])]
    json.dump(rows, sys.stdout)


def multiply_bfloat16_as_numbers() -> None:
    """Mend the interpreter, which keeps a bfloat16 as 16 bits and would multiply these as integers."""
    tl, interpreter = import_module("triton.language"), import_module("triton.runtime.interpreter")

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, widened(a), widened(b), *rest)

    original = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = create_dot


def interpret_here(name: str, problem: Problem, samples: int) -> list[dict[str, Any]]:
    from evotune.gpu.inputs import InputSet
    from evotune.inputs import Drawn

    kernel = load_kernel(ROOT / "kernels" / f"{name}.py")
    backend = kernel.backend("cuda")
    space = backend.space(problem)
    inputs = kernel.definition.inputs(problem, np.random.default_rng(0))
    expected = kernel.results(problem, *inputs)
    drawn = InputSet.of(Drawn(inputs, expected), "cpu")
    tolerance = kernel.definition.tolerance[str(problem["dtype"])]
    if expected[0].dtype.name == "bfloat16":
        tolerance = Tolerance(max(tolerance.rtol, LAST_PLACE), tolerance.atol)
    rows: list[dict[str, Any]] = []
    for config in [space.default, *space.sample(Random(0), samples)]:
        drawn.poison()
        backend.build(config, problem)(*drawn.arguments, *drawn.outputs)
        wrong = drawn.wrongness([tolerance] * len(expected))
        rows.append({"kernel": name, "problem": problem, "config": config, "wrong": wrong})
    return rows


if __name__ == "__main__":
    main()
