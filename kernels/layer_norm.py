"""Layer normalisation of each row (Ba, Kiros & Hinton 2016).

``out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias``. ``STATISTICS`` chooses between two passes,
mean first and squared deviations then, and one that moves the mean along (Welford 1962, "Note on a
method for calculating corrected sums of squares and products"), here for each of several parts of a
row, which are put together as in Chan, Golub & LeVeque 1983, eq. 2.1. The sum of squares less the square
of the sum would be one pass too, and is not here: it cancels where the mean is large.

A problem with ``training`` has three outputs: what the backward pass needs, the mean of each row and
``1 / sqrt(var + eps)``, both in single precision, comes after the normalised matrix.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportAssignmentType=false, reportPossiblyUnboundVariable=false
# (Triton is optional, and its kernels are a language of their own, without Python's types and names.)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evotune.kernel import Array, Backend, CSource, Problem, Tolerance, numpy_dtype
from evotune.space import Config, ConfigSpace

if TYPE_CHECKING:
    import triton.language as tl

name = "layer_norm"

EPS = 1e-5

shapes = {
    "small": {"rows": 8, "cols": 128, "dtype": "float32"},
    "odd": {"rows": 7, "cols": 131, "dtype": "float32"},
    "default": {"rows": 256, "cols": 1024, "dtype": "float32"},
    "long": {"rows": 32, "cols": 8192, "dtype": "float32"},
    "training": {"rows": 256, "cols": 1024, "training": True, "dtype": "float32"},
    "gpu": {"rows": 16384, "cols": 4096, "dtype": "float16"},
    "gpu_bf16": {"rows": 16384, "cols": 4096, "dtype": "bfloat16"},
    "gpu_float32": {"rows": 16384, "cols": 4096, "dtype": "float32"},
    "gpu_short": {"rows": 65536, "cols": 768, "dtype": "bfloat16"},
    "gpu_long": {"rows": 4096, "cols": 16384, "dtype": "float16"},
    "gpu_training": {"rows": 16384, "cols": 4096, "training": True, "dtype": "bfloat16"},
    "gpu_large": {"rows": 32768, "cols": 32768, "dtype": "bfloat16"},
}

# A result near zero is a difference of larger ones: a bound relative to it alone would be too strict.
tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-5),
    "float16": Tolerance(rtol=5e-3, atol=1e-4),
    "bfloat16": Tolerance(rtol=1e-2, atol=1e-4),
}

CHUNK = 1 << 22  # elements converted at once: 32 MB in double precision, where large shapes would need 8 GB


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """The matrix, (rows, cols), whose mean is not zero, the weight and the bias, both (cols,)."""
    cols, dtype = int(problem["cols"]), numpy_dtype(str(problem["dtype"]))
    x = np.empty((int(problem["rows"]), cols), dtype)
    for part in np.array_split(x, x.size // CHUNK + 1):
        part[...] = rng.standard_normal(part.shape, dtype=np.float32) + 1
    weight, bias = (rng.standard_normal(cols, dtype=np.float32).astype(dtype) for _ in range(2))
    return x, weight, bias


def reference(problem: Problem, *inputs: Array) -> Array | tuple[Array, ...]:
    """In double precision; with ``training`` also the mean and the scale of each row, both (rows,) of float32."""
    out, weight, bias = inputs[0].copy(), inputs[1].astype(np.float64), inputs[2].astype(np.float64)
    means, scales = (np.empty(len(out), np.float32) for _ in range(2))
    parts = out.size // CHUNK + 1
    for part, mean, scale in zip(*(np.array_split(a, parts) for a in (out, means, scales)), strict=True):
        x = part.astype(np.float64)
        middle = x.mean(axis=1, keepdims=True)
        x -= middle
        factor = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPS)
        part[...] = x * factor * weight + bias
        mean[...], scale[...] = middle[:, 0], factor[:, 0]
    return (out, means, scales) if problem.get("training") else out


def flops(problem: Problem) -> float:
    """Per element: add to the mean, subtract it, square, add, scale, multiply by the weight, add the bias."""
    return 7.0 * int(problem["rows"]) * int(problem["cols"])


def bytes_moved(problem: Problem) -> float:
    """The matrix, read and written once, the weight, the bias, and with ``training`` two numbers for each row."""
    rows, cols = int(problem["rows"]), int(problem["cols"])
    kept = 2 * rows * 4 if problem.get("training") else 0
    return float((2 * rows * cols + 2 * cols) * numpy_dtype(str(problem["dtype"])).itemsize + kept)


# CPU: plain C, left to the compiler to vectorise.


def cpu_space(problem: Problem) -> ConfigSpace:
    """What the compiler is told, how the statistics are found, and how the loops are cut."""
    return ConfigSpace.from_dict(
        {
            "OPTIMIZE": ["-O1", "-O2", "-O3"],
            "REORDER": [False, True],  # let the compiler reorder sums
            "UNROLL_LOOPS": [False, True],
            "STATISTICS": ["two_pass", "welford"],
            "PARTS": [1, 2, 4, 8, 16, 32, 64],  # of a row, interleaved, each with its own statistics
            "ROWS_AT_ONCE": [1, 2, 4, 8],  # rows that share a pass over the weight
        },
        ["PARTS <= cols", "ROWS_AT_ONCE <= rows", "dtype == 'float32'"],
        constants={k: problem[k] for k in ("rows", "cols", "dtype")},
        default={
            "OPTIMIZE": "-O2",
            "REORDER": False,
            "UNROLL_LOOPS": False,
            "STATISTICS": "two_pass",
            "PARTS": 1,
            "ROWS_AT_ONCE": 1,
        },
    )


def build_cpu(config: Config, problem: Problem) -> CSource:
    """The C text with sizes defined in front of it, and the flags."""
    constants = {
        "STATISTICS": config["STATISTICS"],
        "PARTS": config["PARTS"],
        "ROWS_AT_ONCE": config["ROWS_AT_ONCE"],
        "ROWS": problem["rows"],
        "COLS": problem["cols"],
        "EPS": f"{EPS:g}f",
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    if problem.get("training"):
        defines += "#define TRAINING\n"
    flags = [str(config["OPTIMIZE"]), "-march=native", "-fno-math-errno"]
    if config["REORDER"]:
        # Not -ffast-math: gcc before 13 then links code that switches denormals off in the process.
        flags += ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"]
    if config["UNROLL_LOOPS"]:
        flags.append("-funroll-loops")
    return CSource(defines + C_TEXT, tuple(flags))


C_TEXT = r"""
#include <math.h>

enum { EVEN = COLS / PARTS * PARTS };
#ifdef TRAINING
#define KEPT_OUT , float *restrict mean, float *restrict scale
#define KEPT_FROM(row) , mean + (row), scale + (row)
#else
#define KEPT_OUT
#define KEPT_FROM(row)
#endif
typedef struct { float mean, scale; } statistics;

static inline statistics two_pass(const float *x) {
  float sums[PARTS] = {0.0f}, squares[PARTS] = {0.0f}, sum = 0.0f, square = 0.0f;
  for (int i = 0; i < EVEN; i += PARTS)
    for (int j = 0; j < PARTS; j++) sums[j] += x[i + j];
  for (int i = EVEN; i < COLS; i++) sum += x[i];
  for (int j = 0; j < PARTS; j++) sum += sums[j];
  float mean = sum / COLS;
  for (int i = 0; i < EVEN; i += PARTS)
    for (int j = 0; j < PARTS; j++) squares[j] += (x[i + j] - mean) * (x[i + j] - mean);
  for (int i = EVEN; i < COLS; i++) square += (x[i] - mean) * (x[i] - mean);
  for (int j = 0; j < PARTS; j++) square += squares[j];
  return (statistics){mean, 1.0f / sqrtf(square / COLS + EPS)};
}

static inline void move(float *mean, float *square, float x, float share) {
  float off = x - *mean;
  *mean += off * share;
  *square += off * (x - *mean);
}

static inline statistics welford(const float *x) {
  float means[PARTS] = {0.0f}, squares[PARTS] = {0.0f}, sum = 0.0f, square = 0.0f;
  for (int i = 0; i < EVEN; i += PARTS) {
    float share = 1.0f / (i / PARTS + 1);
    for (int j = 0; j < PARTS; j++) move(&means[j], &squares[j], x[i + j], share);
  }
  for (int i = EVEN; i < COLS; i++) move(&means[i - EVEN], &squares[i - EVEN], x[i], 1.0f / (EVEN / PARTS + 1));
  for (int j = 0; j < PARTS; j++) sum += means[j] * (EVEN / PARTS + (j < COLS - EVEN));
  float mean = sum / COLS;
  for (int j = 0; j < PARTS; j++)
    square += squares[j] + (means[j] - mean) * (means[j] - mean) * (EVEN / PARTS + (j < COLS - EVEN));
  return (statistics){mean, 1.0f / sqrtf(square / COLS + EPS)};
}

/* `rows` is a constant at each call. */
__attribute__((always_inline)) static inline void normalise(
    int rows, const float *restrict x, const float *restrict weight, const float *restrict bias,
    float *restrict out KEPT_OUT) {
  statistics of[ROWS_AT_ONCE];
  for (int r = 0; r < rows; r++) of[r] = STATISTICS(x + r * COLS);
#ifdef TRAINING
  for (int r = 0; r < rows; r++) mean[r] = of[r].mean, scale[r] = of[r].scale;
#endif
  for (int i = 0; i < COLS; i++)
    for (int r = 0; r < rows; r++)
      out[r * COLS + i] = (x[r * COLS + i] - of[r].mean) * of[r].scale * weight[i] + bias[i];
}

void evotune_kernel(const float *x, const float *weight, const float *bias, float *out KEPT_OUT) {
  int row = 0;
  for (; row + ROWS_AT_ONCE <= ROWS; row += ROWS_AT_ONCE)
    normalise(ROWS_AT_ONCE, x + row * COLS, weight, bias, out + row * COLS KEPT_FROM(row));
  for (; row < ROWS; row++) normalise(1, x + row * COLS, weight, bias, out + row * COLS KEPT_FROM(row));
}
"""


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """What a program holds at once, how it finds the statistics, how far ahead it loads."""
    return ConfigSpace.from_dict(
        {
            "BLOCK": [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768],  # columns at once
            "ROWS_AT_ONCE": [1, 2, 4, 8, 16],  # rows that share a pass over weight and bias
            "num_warps": [1, 2, 4, 8, 16, 32],
            "STATISTICS": ["two_pass", "welford"],
            "PROGRAMS_PER_SM": [0, 1, 2, 4, 8],  # 0: as many as there are rows; else they loop over rows
            "NUM_STAGES": [1, 2, 3, 4],  # rounds of the loop whose loads are in flight
            "EVICT_HINTS": [False, True],  # tell the caches which read of a row is the last one
            "STORE_CACHE": ["", ".cg", ".cs"],  # .cg: past L1; .cs: streaming, to be evicted first
            "maxnreg": [0, 32, 64, 128],  # registers of a thread; 0: what the compiler likes
        },
        [
            "BLOCK < 2 * cols or BLOCK == 128",  # else a smaller block holds the row
            "ROWS_AT_ONCE <= rows",
            "BLOCK * ROWS_AT_ONCE >= 32 * num_warps",  # at least one element for each thread,
            "BLOCK * ROWS_AT_ONCE <= 64 * 32 * num_warps",  # and no more than its 255 registers work on
            "BLOCK * ROWS_AT_ONCE <= 32768",  # nor than half of the 65536 registers of a block
            # A row in one block is in registers: a second pass over it is free.
            "BLOCK < cols or STATISTICS == 'two_pass'",
            "PROGRAMS_PER_SM * num_warps <= 64",  # an SM has room for 64 warps: more would wait, not loop
            "PROGRAMS_PER_SM == 0 or PROGRAMS_PER_SM * multiprocessors * ROWS_AT_ONCE < rows",  # else no loop
            # Loads are ahead in a loop only: over columns, or over rows that are whole in a block.
            "NUM_STAGES == 1 or BLOCK < cols or PROGRAMS_PER_SM > 0",
            "BLOCK >= cols or (NUM_STAGES - 1) * BLOCK < cols",  # no further ahead than the row is long
            # They go to shared memory (cp.async) in aligned pieces of four bytes or more, have no hints,
            "NUM_STAGES == 1 or BLOCK * ROWS_AT_ONCE * itemsize >= 4 * 32 * num_warps",
            "NUM_STAGES == 1 or cols * itemsize % 4 == 0",
            "NUM_STAGES == 1 or not EVICT_HINTS",
            # and a block has 227 KiB of it, for weight and bias too, on sm_90 and sm_100.
            "(NUM_STAGES - 1) * BLOCK * (ROWS_AT_ONCE + 2) * itemsize <= 227 * 1024",
            # The compiler keeps to the registers of a block anyway. It needs between one and four for an element.
            "maxnreg * 32 * num_warps < 65536",
            "maxnreg == 0 or BLOCK * ROWS_AT_ONCE <= maxnreg * 32 * num_warps <= 4 * BLOCK * ROWS_AT_ONCE",
        ],
        constants={
            "rows": problem["rows"],
            "cols": problem["cols"],
            "itemsize": numpy_dtype(str(problem["dtype"])).itemsize,
            "multiprocessors": problem.get("multiprocessors", 132),
        },
        default=cuda_default(int(problem["cols"])),
    )


def cuda_default(cols: int) -> Config:
    """A program for each row, which is read once if it is not too long, with 16 elements for each thread."""
    block = min(max(1 << (cols - 1).bit_length(), 128), 16384)
    return {
        "BLOCK": block,
        "ROWS_AT_ONCE": 1,
        "num_warps": max(block // (16 * 32), 1),
        "STATISTICS": "two_pass",
        "PROGRAMS_PER_SM": 0,
        "NUM_STAGES": 1,
        "EVICT_HINTS": False,
        "STORE_CACHE": "",
        "maxnreg": 0,
    }


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, weight, bias, out) -> None``, with ``training`` ``(x, weight, bias, out, mean, scale)``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    kernel = import_module("triton").jit(layer_norm_rows)
    rows, cols = int(problem["rows"]), int(problem["cols"])
    tunables: dict[str, Any] = {**config, "maxnreg": config["maxnreg"] or None}
    groups = -(-rows // int(config["ROWS_AT_ONCE"]))
    resident = int(problem.get("multiprocessors", 132)) * tunables.pop("PROGRAMS_PER_SM")
    programs = min(resident or groups, groups)

    def launch(x: Any, weight: Any, bias: Any, out: Any, means: Any = None, scales: Any = None) -> None:
        arrays = (x, weight, bias, out, means, scales)
        kernel[(programs,)](*arrays, ROWS=rows, COLS=cols, EPS_=EPS, PROGRAMS=programs, **tunables)

    return launch


def layer_norm_rows(  # noqa: PLR0915 - a kernel is one function
    x, weight, bias, out, means_out, scales_out, ROWS: tl.constexpr, COLS: tl.constexpr, EPS_: tl.constexpr,
    PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, ROWS_AT_ONCE: tl.constexpr, STATISTICS: tl.constexpr,
    NUM_STAGES: tl.constexpr, EVICT_HINTS: tl.constexpr, STORE_CACHE: tl.constexpr,
):  # fmt: skip
    """One program is ROWS_AT_ONCE rows, or every PROGRAMS-th group of so many."""
    again: tl.constexpr = "evict_last" if EVICT_HINTS else ""
    last: tl.constexpr = "evict_first" if EVICT_HINTS else ""
    row_stages: tl.constexpr = NUM_STAGES if BLOCK >= COLS else 1
    lanes = tl.arange(0, BLOCK)[None, :]
    if BLOCK >= COLS:
        w = tl.load(weight + lanes, mask=lanes < COLS, other=0.0, eviction_policy=again).to(tl.float32)
        b = tl.load(bias + lanes, mask=lanes < COLS, other=0.0, eviction_policy=again).to(tl.float32)
    for group in tl.range(tl.program_id(0), tl.cdiv(ROWS, ROWS_AT_ONCE), PROGRAMS, num_stages=row_stages):
        rows = group * ROWS_AT_ONCE + tl.arange(0, ROWS_AT_ONCE)[:, None]
        start_of_row = rows.to(tl.int64) * COLS
        if BLOCK >= COLS:
            inside = (rows < ROWS) & (lanes < COLS)
            e = tl.load(x + start_of_row + lanes, mask=inside, other=0.0, eviction_policy=last).to(tl.float32)
            mean = (tl.sum(e, 1) / COLS)[:, None]
            off = tl.where(lanes < COLS, e - mean, 0.0)
            scale = tl.rsqrt(tl.sum(off * off, 1) / COLS + EPS_)[:, None]
            y = (off * scale * w + b).to(out.dtype.element_ty)
            tl.store(out + start_of_row + lanes, y, mask=inside, cache_modifier=STORE_CACHE)
        else:
            means = tl.zeros([ROWS_AT_ONCE, BLOCK], tl.float32)
            squares = tl.zeros([ROWS_AT_ONCE, BLOCK], tl.float32)
            for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
                at = start + lanes
                inside = (rows < ROWS) & (at < COLS)
                e = tl.load(x + start_of_row + at, mask=inside, other=0.0, eviction_policy=again).to(tl.float32)
                if STATISTICS == "welford":
                    off = tl.where(at < COLS, e - means, 0.0)
                    means += off * (1.0 / (start // BLOCK + 1))
                    squares += off * (e - means)
                else:
                    means += e
            if STATISTICS == "welford":
                # A lane beyond the end of the last step has seen one element less than the others.
                steps: tl.constexpr = (COLS + BLOCK - 1) // BLOCK
                seen = tl.where(lanes < COLS - (steps - 1) * BLOCK, steps, steps - 1).to(tl.float32)
                mean = (tl.sum(means * seen, 1) / COLS)[:, None]
                squares += (means - mean) * (means - mean) * seen
            else:
                mean = (tl.sum(means, 1) / COLS)[:, None]
                for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
                    at = start + lanes
                    inside = (rows < ROWS) & (at < COLS)
                    e = tl.load(x + start_of_row + at, mask=inside, other=0.0, eviction_policy=again).to(tl.float32)
                    off = tl.where(at < COLS, e - mean, 0.0)
                    squares += off * off
            scale = tl.rsqrt(tl.sum(squares, 1) / COLS + EPS_)[:, None]
            for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
                at = start + lanes
                inside = (rows < ROWS) & (at < COLS)
                e = tl.load(x + start_of_row + at, mask=inside, other=0.0, eviction_policy=last).to(tl.float32)
                w = tl.load(weight + at, mask=at < COLS, other=0.0, eviction_policy=again).to(tl.float32)
                b = tl.load(bias + at, mask=at < COLS, other=0.0, eviction_policy=again).to(tl.float32)
                y = ((e - mean) * scale * w + b).to(out.dtype.element_ty)
                tl.store(out + start_of_row + at, y, mask=inside, cache_modifier=STORE_CACHE)
        if means_out is not None:
            tl.store(means_out + rows, mean, mask=rows < ROWS)
            tl.store(scales_out + rows, scale, mask=rows < ROWS)


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
