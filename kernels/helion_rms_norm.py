"""RMS normalisation of each row (Zhang & Sennrich 2019), in Helion: ``out = x / sqrt(mean(x²) + eps) * weight``.

The choices are Helion's own, among them whether a row is kept, or read twice in blocks.
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

name = "helion_rms_norm"

EPS = 1e-6

shapes = {
    "small": {"rows": 8, "cols": 128, "dtype": "float32"},
    "odd": {"rows": 7, "cols": 131, "dtype": "float32"},
    "default": {"rows": 256, "cols": 1024, "dtype": "float32"},
    "gpu": {"rows": 16384, "cols": 4096, "dtype": "float16"},
    "gpu_bf16": {"rows": 16384, "cols": 4096, "dtype": "bfloat16"},
    "gpu_float32": {"rows": 16384, "cols": 4096, "dtype": "float32"},
    "gpu_short": {"rows": 262144, "cols": 128, "dtype": "bfloat16"},  # of each head's queries and keys
    "gpu_long": {"rows": 4096, "cols": 16384, "dtype": "float16"},
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-6),
    "float16": Tolerance(rtol=5e-3, atol=1e-4),
    "bfloat16": Tolerance(rtol=1e-2, atol=1e-4),
}

CHUNK = 1 << 22  # elements converted at once: 32 MB in double precision


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """The matrix, (rows, cols), and the weight, (cols,)."""
    cols, dtype = int(problem["cols"]), numpy_dtype(str(problem["dtype"]))
    x = np.empty((int(problem["rows"]), cols), dtype)
    for part in np.array_split(x, x.size // CHUNK + 1):
        part[...] = rng.standard_normal(part.shape, dtype=np.float32)
    return x, rng.standard_normal(cols, dtype=np.float32).astype(dtype)


def reference(problem: Problem, *inputs: Array) -> Array:
    """In double precision."""
    out, weight = inputs[0].copy(), inputs[1].astype(np.float64)
    for part in np.array_split(out, out.size // CHUNK + 1):
        x = part.astype(np.float64)
        part[...] = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPS) * weight
    return out


def flops(problem: Problem) -> float:
    """Per element: square, add, scale, multiply by the weight."""
    return 4.0 * int(problem["rows"]) * int(problem["cols"])


def bytes_moved(problem: Problem) -> float:
    """The matrix, read and written once, and the weight."""
    rows, cols = int(problem["rows"]), int(problem["cols"])
    return float((2 * rows * cols + cols) * numpy_dtype(str(problem["dtype"])).itemsize)


def arguments(problem: Problem) -> list[Argument]:
    """The matrix, the weight and the output."""
    rows, cols, dtype = int(problem["rows"]), int(problem["cols"]), str(problem["dtype"])
    return [((rows, cols), dtype), ((cols,), dtype), ((rows, cols), dtype)]


def rms_norm(x, weight, out) -> None:
    """Some rows at a time, in single precision."""
    rows, _ = x.size()
    for tile in hl.tile(rows):
        row = x[tile, :].to(torch.float32)
        scale = torch.rsqrt(torch.mean(row * row, dim=-1) + EPS)
        out[tile, :] = (row * scale[:, None] * weight[:].to(torch.float32)).to(out.dtype)


backends = {"cuda": helion_backend(rms_norm, arguments, default_shape="gpu")}
