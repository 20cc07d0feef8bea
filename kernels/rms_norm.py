"""RMS normalisation of each row (Zhang & Sennrich 2019): ``out = x / sqrt(mean(x²) + eps) * weight``.

The C here is plain loops, left to the compiler to vectorise: its flags are tunables, and so is the
shape of the sum, because a compiler may not reorder additions unless it is told that it may.
On the GPU a row that fits into one block stays in registers and is read once, a longer one twice.
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

name = "rms_norm"

EPS = 1e-6

shapes = {
    "small": {"rows": 8, "cols": 128, "dtype": "float32"},
    "odd": {"rows": 7, "cols": 131, "dtype": "float32"},
    "default": {"rows": 256, "cols": 1024, "dtype": "float32"},
    "long": {"rows": 32, "cols": 8192, "dtype": "float32"},
    "gpu": {"rows": 16384, "cols": 4096, "dtype": "float16"},
    "gpu_bf16": {"rows": 16384, "cols": 4096, "dtype": "bfloat16"},
    "gpu_float32": {"rows": 16384, "cols": 4096, "dtype": "float32"},
    "gpu_short": {"rows": 262144, "cols": 128, "dtype": "bfloat16"},  # of each head's queries and keys
    "gpu_long": {"rows": 4096, "cols": 16384, "dtype": "float16"},
    "gpu_large": {"rows": 32768, "cols": 32768, "dtype": "bfloat16"},
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-6),
    "float16": Tolerance(rtol=5e-3, atol=1e-4),
    "bfloat16": Tolerance(rtol=1e-2, atol=1e-4),
}

CHUNK = 1 << 22  # elements converted at once: 32 MB in double precision, where large shapes would need 8 GB


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
    """What a program holds at once, how far ahead it loads, and what the caches are told."""
    return ConfigSpace.from_dict(
        {
            "BLOCK": [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768],  # columns at once
            "ROWS_AT_ONCE": [1, 2, 4, 8, 16],  # rows that share a pass over the weight
            "num_warps": [1, 2, 4, 8, 16, 32],
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
            "PROGRAMS_PER_SM * num_warps <= 64",  # an SM has room for 64 warps: more would wait, not loop
            "PROGRAMS_PER_SM == 0 or PROGRAMS_PER_SM * multiprocessors * ROWS_AT_ONCE < rows",  # else no loop
            # Loads are ahead in a loop only: over columns, or over rows that are whole in a block.
            "NUM_STAGES == 1 or BLOCK < cols or PROGRAMS_PER_SM > 0",
            "BLOCK >= cols or (NUM_STAGES - 1) * BLOCK < cols",  # no further ahead than the row is long
            # They go to shared memory (cp.async) in aligned pieces of four bytes or more, have no hints,
            "NUM_STAGES == 1 or BLOCK * ROWS_AT_ONCE * itemsize >= 4 * 32 * num_warps",
            "NUM_STAGES == 1 or cols * itemsize % 4 == 0",
            "NUM_STAGES == 1 or not EVICT_HINTS",
            # and a block has 227 KiB of it, for the weight too, on sm_90 and sm_100.
            "(NUM_STAGES - 1) * BLOCK * (ROWS_AT_ONCE + 1) * itemsize <= 227 * 1024",
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
        "PROGRAMS_PER_SM": 0,
        "NUM_STAGES": 1,
        "EVICT_HINTS": False,
        "STORE_CACHE": "",
        "maxnreg": 0,
    }


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, weight, out) -> None``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    kernel = import_module("triton").jit(rms_norm_rows)
    rows, cols = int(problem["rows"]), int(problem["cols"])
    tunables: dict[str, Any] = {**config, "maxnreg": config["maxnreg"] or None}
    groups = -(-rows // int(config["ROWS_AT_ONCE"]))
    resident = int(problem.get("multiprocessors", 132)) * tunables.pop("PROGRAMS_PER_SM")
    programs = min(resident or groups, groups)

    def launch(x: Any, weight: Any, out: Any) -> None:
        kernel[(programs,)](x, weight, out, ROWS=rows, COLS=cols, EPS_=EPS, PROGRAMS=programs, **tunables)

    return launch


def rms_norm_rows(
    x, weight, out, ROWS: tl.constexpr, COLS: tl.constexpr, EPS_: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr, ROWS_AT_ONCE: tl.constexpr, NUM_STAGES: tl.constexpr,
    EVICT_HINTS: tl.constexpr, STORE_CACHE: tl.constexpr,
):  # fmt: skip
    """One program is ROWS_AT_ONCE rows, or every PROGRAMS-th group of so many."""
    again: tl.constexpr = "evict_last" if EVICT_HINTS else ""
    last: tl.constexpr = "evict_first" if EVICT_HINTS else ""
    row_stages: tl.constexpr = NUM_STAGES if BLOCK >= COLS else 1
    lanes = tl.arange(0, BLOCK)[None, :]
    if BLOCK >= COLS:
        w = tl.load(weight + lanes, mask=lanes < COLS, other=0.0, eviction_policy=again).to(tl.float32)
    for group in tl.range(tl.program_id(0), tl.cdiv(ROWS, ROWS_AT_ONCE), PROGRAMS, num_stages=row_stages):
        rows = group * ROWS_AT_ONCE + tl.arange(0, ROWS_AT_ONCE)[:, None]
        start_of_row = rows.to(tl.int64) * COLS
        if BLOCK >= COLS:
            inside = (rows < ROWS) & (lanes < COLS)
            e = tl.load(x + start_of_row + lanes, mask=inside, other=0.0, eviction_policy=last).to(tl.float32)
            scale = tl.rsqrt(tl.sum(e * e, 1) / COLS + EPS_)[:, None]
            y = (e * scale * w).to(out.dtype.element_ty)
            tl.store(out + start_of_row + lanes, y, mask=inside, cache_modifier=STORE_CACHE)
        else:
            squares = tl.zeros([ROWS_AT_ONCE, BLOCK], tl.float32)
            for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
                at = start + lanes
                inside = (rows < ROWS) & (at < COLS)
                e = tl.load(x + start_of_row + at, mask=inside, other=0.0, eviction_policy=again).to(tl.float32)
                squares += e * e
            scale = tl.rsqrt(tl.sum(squares, 1) / COLS + EPS_)[:, None]
            for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
                at = start + lanes
                inside = (rows < ROWS) & (at < COLS)
                e = tl.load(x + start_of_row + at, mask=inside, other=0.0, eviction_policy=last).to(tl.float32)
                w = tl.load(weight + at, mask=at < COLS, other=0.0, eviction_policy=again).to(tl.float32)
                y = (e * scale * w).to(out.dtype.element_ty)
                tl.store(out + start_of_row + at, y, mask=inside, cache_modifier=STORE_CACHE)


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
