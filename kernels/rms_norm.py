"""RMS normalisation of each row (Zhang & Sennrich 2019): ``out = x / sqrt(mean(x²) + eps) * weight``.

The C here is plain loops, left to the compiler to vectorise: its flags are tunables, and so is the
shape of the sum, because a compiler may not reorder additions unless it is told that it may.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportAssignmentType=false
# (Triton is optional, and its kernels are a language of their own, without Python's types and names.)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evotune.kernel import Array, Backend, CSource, Problem, Tolerance
from evotune.space import Config, ConfigSpace

if TYPE_CHECKING:
    import triton.language as tl

name = "rms_norm"

EPS = 1e-6

shapes = {
    "small": {"rows": 8, "cols": 128, "dtype": "float32"},
    "odd": {"rows": 7, "cols": 131, "dtype": "float32"},
    "default": {"rows": 256, "cols": 1024, "dtype": "float32"},
    "long": {"rows": 32, "cols": 8192, "dtype": "float32"},
    "gpu": {"rows": 16384, "cols": 4096, "dtype": "float16"},
    "gpu_long": {"rows": 4096, "cols": 16384, "dtype": "float16"},
}

tolerance = {"float32": Tolerance(rtol=1e-4, atol=1e-6), "float16": Tolerance(rtol=5e-3, atol=1e-4)}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """The matrix, (rows, cols), and the weight, (cols,)."""
    dtype = str(problem["dtype"])
    x = rng.standard_normal((int(problem["rows"]), int(problem["cols"])))
    return x.astype(dtype), rng.standard_normal(int(problem["cols"])).astype(dtype)


def reference(problem: Problem, *inputs: Array) -> Array:
    """In double precision."""
    x, weight = (a.astype(np.float64) for a in inputs)
    return (x / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPS) * weight).astype(inputs[0].dtype)


def flops(problem: Problem) -> float:
    """Per element: square, add, scale, multiply by the weight."""
    return 4.0 * int(problem["rows"]) * int(problem["cols"])


def bytes_moved(problem: Problem) -> float:
    """The matrix, read and written once, and the weight."""
    rows, cols = int(problem["rows"]), int(problem["cols"])
    return float((2 * rows * cols + cols) * np.dtype(str(problem["dtype"])).itemsize)


# CPU: plain C.


def cpu_space(problem: Problem) -> ConfigSpace:
    """What the compiler is told, and how the loops are cut."""
    return ConfigSpace.from_dict(
        {
            "OPTIMIZE": ["-O1", "-O2", "-O3"],
            "REORDER": [False, True],  # let the compiler reorder sums
            "UNROLL_LOOPS": [False, True],
            "SUMS": [1, 2, 4, 8, 16, 32, 64],  # independent partial sums of a row
            "ROWS_AT_ONCE": [1, 2, 4, 8],  # rows that share a pass over the weight
        },
        ["SUMS <= cols", "ROWS_AT_ONCE <= rows", "dtype == 'float32'"],
        constants={k: problem[k] for k in ("rows", "cols", "dtype")},
        default={
            "OPTIMIZE": "-O2",
            "REORDER": False,
            "UNROLL_LOOPS": False,
            "SUMS": 1,
            "ROWS_AT_ONCE": 1,
        },
    )


def build_cpu(config: Config, problem: Problem) -> CSource:
    """The C text with sizes defined in front of it, and the flags."""
    constants = {
        "SUMS": config["SUMS"],
        "ROWS_AT_ONCE": config["ROWS_AT_ONCE"],
        "ROWS": problem["rows"],
        "COLS": problem["cols"],
        "EPS": f"{EPS:g}f",
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    flags = [str(config["OPTIMIZE"]), "-march=native", "-fno-math-errno"]
    if config["REORDER"]:
        # Not -ffast-math: gcc before 13 then links code that switches denormals off in the process.
        flags += ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"]
    if config["UNROLL_LOOPS"]:
        flags.append("-funroll-loops")
    return CSource(defines + C_TEXT, tuple(flags))


C_TEXT = r"""
#include <math.h>

static inline float sum_of_squares(const float *x) {
  float sums[SUMS] = {0.0f}, total = 0.0f;
  for (int i = 0; i < COLS / SUMS * SUMS; i += SUMS)
    for (int j = 0; j < SUMS; j++) sums[j] += x[i + j] * x[i + j];
  for (int i = COLS / SUMS * SUMS; i < COLS; i++) total += x[i] * x[i];
  for (int j = 0; j < SUMS; j++) total += sums[j];
  return total;
}

/* `rows` is a constant at each call. */
__attribute__((always_inline)) static inline void normalise(
    const float *restrict x, const float *restrict weight, float *restrict out, int rows) {
  float scale[ROWS_AT_ONCE];
  for (int r = 0; r < rows; r++) scale[r] = 1.0f / sqrtf(sum_of_squares(x + r * COLS) / COLS + EPS);
  for (int i = 0; i < COLS; i++)
    for (int r = 0; r < rows; r++) out[r * COLS + i] = x[r * COLS + i] * scale[r] * weight[i];
}

void evotune_kernel(const float *x, const float *weight, float *out) {
  int row = 0;
  for (; row + ROWS_AT_ONCE <= ROWS; row += ROWS_AT_ONCE)
    normalise(x + row * COLS, weight, out + row * COLS, ROWS_AT_ONCE);
  for (; row < ROWS; row++) normalise(x + row * COLS, weight, out + row * COLS, 1);
}
"""


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """Columns held at once, rows that share a pass over the weight, and warps."""
    return ConfigSpace.from_dict(
        {
            "BLOCK": [128, 256, 512, 1024, 2048, 4096, 8192, 16384],  # columns in one step
            "ROWS_AT_ONCE": [1, 2, 4, 8],
            "num_warps": [1, 2, 4, 8, 16, 32],
            "NUM_STAGES": [1, 2, 3, 4],  # steps whose loads are in flight
        },
        [
            "BLOCK * ROWS_AT_ONCE >= 32 * num_warps",  # at least one element for each thread,
            "BLOCK * ROWS_AT_ONCE <= 64 * 32 * num_warps",  # and no more than its registers hold
            "BLOCK <= max(2 * cols, 128)",
            "BLOCK < cols or NUM_STAGES == 1",  # one step: nothing to overlap
        ],
        constants={"cols": problem["cols"]},
        default={"BLOCK": 128, "ROWS_AT_ONCE": 1, "num_warps": 4, "NUM_STAGES": 1},
    )


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, weight, out) -> None``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    kernel = import_module("triton").jit(rms_norm_rows)
    sizes = {"ROWS": int(problem["rows"]), "COLS": int(problem["cols"]), "EPS_": EPS}
    grid = (-(-sizes["ROWS"] // int(config["ROWS_AT_ONCE"])),)

    def launch(x: Any, weight: Any, out: Any) -> None:
        kernel[grid](x, weight, out, **sizes, **config)

    return launch


def rms_norm_rows(
    x, weight, out, ROWS: tl.constexpr, COLS: tl.constexpr, EPS_: tl.constexpr,
    BLOCK: tl.constexpr, ROWS_AT_ONCE: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """One program is ROWS_AT_ONCE rows; a row that fits into one block is read only once."""
    rows = tl.program_id(0) * ROWS_AT_ONCE + tl.arange(0, ROWS_AT_ONCE)[:, None]
    start_of_row = rows.to(tl.int64) * COLS
    if BLOCK >= COLS:
        at = tl.arange(0, BLOCK)[None, :]
        inside = (rows < ROWS) & (at < COLS)
        e = tl.load(x + start_of_row + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(e * e, 1) / COLS + EPS_)[:, None]
        w = tl.load(weight + at, mask=at < COLS, other=0.0)
        tl.store(out + start_of_row + at, (e * scale * w).to(out.dtype.element_ty), mask=inside)
    else:
        squares = tl.zeros([ROWS_AT_ONCE, BLOCK], tl.float32)
        for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
            at = start + tl.arange(0, BLOCK)[None, :]
            inside = (rows < ROWS) & (at < COLS)
            e = tl.load(x + start_of_row + at, mask=inside, other=0.0).to(tl.float32)
            squares += e * e
        scale = tl.rsqrt(tl.sum(squares, 1) / COLS + EPS_)[:, None]
        for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
            at = start + tl.arange(0, BLOCK)[None, :]
            inside = (rows < ROWS) & (at < COLS)
            e = tl.load(x + start_of_row + at, mask=inside, other=0.0).to(tl.float32)
            w = tl.load(weight + at, mask=at < COLS, other=0.0)
            tl.store(out + start_of_row + at, (e * scale * w).to(out.dtype.element_ty), mask=inside)


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
