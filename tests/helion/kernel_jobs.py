"""Compile the shipped Helion kernels without a GPU, or run them in Triton's interpreter, each kind in a
process of its own: both change, for good, what Triton takes for the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from evotune.kernel import LoadedKernel, Problem, load_kernel

ROOT = Path(__file__).parents[2]


def do(kind: str, jobs: Sequence[tuple[str, Problem]], samples: int) -> list[dict[str, Any]]:
    """What became of the default and of the sampled configurations of each kernel and problem: rows with
    ``kernel``, ``problem``, ``config`` and, if ``kind`` is ``"interpret"``, what was ``wrong``, or None;
    if it is ``"compile"``, what the compiling process answers."""
    done = subprocess.run(
        [sys.executable, __file__, kind],
        input=json.dumps({"jobs": jobs, "samples": samples}),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        | ({"TRITON_INTERPRET": "1"} if kind == "interpret" else {}),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> None:
    asked = json.load(sys.stdin)
    if sys.argv[1] == "interpret":
        mend_the_interpreter()
    work = {"interpret": interpret, "compile": compile_all}[sys.argv[1]]
    rows: list[dict[str, Any]] = []
    for name, problem in asked["jobs"]:
        kernel = load_kernel(ROOT / "kernels" / f"{name}.py")
        space = kernel.backend("cuda").build.__self__.bind(problem).space.space
        configs = [space.default, *space.sample(Random(0), asked["samples"])]
        found = work(kernel, problem, configs)
        rows += [
            {"kernel": name, "problem": problem, "config": c, **f} for c, f in zip(configs, found, strict=True)
        ]
    json.dump(rows, sys.stdout)


def mend_the_interpreter() -> None:
    """It calls nothing of CUDA's library, and gives None for it; and see ``multiply_bfloat16_as_numbers``."""
    from tests.kernels.interpret_jobs import multiply_bfloat16_as_numbers

    multiply_bfloat16_as_numbers()
    tl, interpreter = import_module("triton.language"), import_module("triton.runtime.interpreter")
    libdevice = import_module("triton.language.extra.libdevice")

    def elementwise(function: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda x, **_: tl.tensor(interpreter.TensorHandle(function(x.handle.data), x.handle.dtype), x.type)

    libdevice.exp2 = elementwise(np.exp2)
    libdevice.rsqrt = elementwise(lambda x: 1 / np.sqrt(x))


def interpret(kernel: LoadedKernel, problem: Problem, configs: Sequence[Any]) -> list[dict[str, Any]]:
    from evotune.gpu.inputs import InputSet
    from evotune.inputs import Drawn

    inputs = kernel.definition.inputs(problem, np.random.default_rng(0))
    expected = kernel.results(problem, *inputs)
    drawn = InputSet.of(Drawn(inputs, expected), "cpu")
    found: list[dict[str, Any]] = []
    for config in configs:
        drawn.poison()
        kernel.backend("cuda").build(config, problem)(*drawn.arguments, *drawn.outputs)
        found.append({"wrong": drawn.wrongness([kernel.definition.tolerance[str(problem["dtype"])]])})
    return found


def compile_all(kernel: LoadedKernel, problem: Problem, configs: Sequence[Any]) -> list[dict[str, Any]]:
    from evotune.gpu.headless import open_session

    device = {"capability": problem["capability"], "multiprocessors": problem["multiprocessors"]}
    handle = open_session({"kernel": str(kernel.path), "problem": problem})
    arguments = handle({})["arguments"]
    return [handle({"config": dict(c), "device": device, "arguments": arguments}) for c in configs]


if __name__ == "__main__":
    main()
