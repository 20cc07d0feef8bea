"""Matrix product ``out = a b`` of row-major matrices, (m, k) times (k, n), in Helion.

The choices are Helion's own, for the GPU at hand: for a B200 some that an H100 does not have.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false
# pyright: reportGeneralTypeIssues=false
# (Helion is optional, and its kernels are a language of their own, without Python's types.)
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evotune.helion.kernel import Argument, helion_backend
from evotune.kernel import Array, Problem, Tolerance, numpy_dtype

if TYPE_CHECKING:
    import helion.language as hl
    import torch

name = "helion_matmul"

shapes = {
    "small": {"m": 64, "n": 64, "k": 64, "dtype": "float32"},
    "odd": {"m": 67, "n": 45, "k": 83, "dtype": "float32"},
    "default": {"m": 256, "n": 256, "k": 256, "dtype": "float32"},
    "gpu_256": {"m": 256, "n": 256, "k": 256, "dtype": "float16"},
    "gpu_1024": {"m": 1024, "n": 1024, "k": 1024, "dtype": "float16"},
    "gpu": {"m": 4096, "n": 4096, "k": 4096, "dtype": "float16"},
    "gpu_8192": {"m": 8192, "n": 8192, "k": 8192, "dtype": "float16"},
    "gpu_float32": {"m": 4096, "n": 4096, "k": 4096, "dtype": "float32"},
    "gpu_bf16": {"m": 4096, "n": 4096, "k": 4096, "dtype": "bfloat16"},
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-4),
    "float16": Tolerance(rtol=1e-2, atol=1e-2),
    "bfloat16": Tolerance(rtol=2e-2, atol=2e-2),  # 8 bits of mantissa: rounding alone is 4e-3 of a value
}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """``a``, (m, k), and ``b``, (k, n), scaled so that results are near one for every k."""
    m, n, k = (int(problem[size]) for size in "mnk")
    dtype = numpy_dtype(str(problem["dtype"]))
    a = rng.standard_normal((m, k)) / np.sqrt(k)
    return a.astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def reference(problem: Problem, *inputs: Array) -> Array:
    """NumPy's product."""
    # Single precision is ample for half-precision inputs and takes half the time.
    exact = np.float64 if problem["dtype"] == "float32" else np.float32
    a, b = (x.astype(exact) for x in inputs)
    return (a @ b).astype(inputs[0].dtype)


def flops(problem: Problem) -> float:
    """A multiplication and an addition for each (i, j, k)."""
    return 2.0 * int(problem["m"]) * int(problem["n"]) * int(problem["k"])


def bytes_moved(problem: Problem) -> float:
    """Both inputs and the output, once each."""
    m, n, k = (int(problem[size]) for size in "mnk")
    return float((m * k + k * n + m * n) * numpy_dtype(str(problem["dtype"])).itemsize)


def arguments(problem: Problem) -> list[Argument]:
    """``a``, ``b`` and the output."""
    m, n, k = (int(problem[size]) for size in "mnk")
    dtype = str(problem["dtype"])
    return [((m, k), dtype), ((k, n), dtype), ((m, n), dtype)]


def matmul(a, b, out) -> None:
    """One tile of the output at a time, summed in single precision."""
    m, k = a.size()
    _, n = b.size()
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.addmm(acc, a[tile_m, tile_k], b[tile_k, tile_n])
        out[tile_m, tile_n] = acc.to(out.dtype)


backends = {"cuda": helion_backend(matmul, arguments, default_shape="gpu")}
