"""Run a kernel's Triton code in Triton's interpreter (TRITON_INTERPRET=1); print what was right as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import numpy as np
import torch

from evotune.kernel import Problem, load_kernel

PROBLEMS: dict[str, list[Problem]] = {
    "attention": [
        {"heads": 2, "seq": 77, "head_dim": 32, "causal": True, "dtype": "float32"},
        {"heads": 1, "seq": 64, "head_dim": 16, "causal": False, "dtype": "float16"},
        {"heads": 1, "seq": 77, "head_dim": 32, "causal": False, "dtype": "float32"},
    ],
    "matmul": [{"m": 67, "n": 45, "k": 83, "dtype": dtype} for dtype in ("float32", "float16")],
    "rms_norm": [
        {"rows": 5, "cols": 700, "dtype": "float32"},
        {"rows": 3, "cols": 1500, "dtype": "float16"},
    ],
    "softmax": [{"rows": 5, "cols": 700, "dtype": "float32"}, {"rows": 3, "cols": 1500, "dtype": "float16"}],
    "vector_add": [{"n": 5000, "dtype": dtype} for dtype in ("float32", "float16")],
}


def main() -> None:
    kernel = load_kernel(Path(sys.argv[1]))
    rows: list[dict[str, object]] = []
    for problem in PROBLEMS[kernel.name]:
        backend = kernel.backend("cuda")
        space = backend.space(problem)
        inputs = kernel.definition.inputs(problem, np.random.default_rng(0))
        expected = kernel.definition.reference(problem, *inputs)
        tolerance = kernel.definition.tolerance[str(problem["dtype"])]
        for config in [space.default, *space.sample(Random(0), 4)]:
            out = torch.from_numpy(np.full_like(expected, np.nan))
            backend.build(config, problem)(*map(torch.from_numpy, inputs), out)
            error = np.abs(out.numpy().astype(np.float64) - expected)
            allowed = tolerance.atol + tolerance.rtol * np.abs(expected.astype(np.float64))
            right = bool((error <= allowed).all())  # False where the output is NaN
            rows.append({"problem": problem, "config": config, "right": right, "error": str(error.max())})
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
