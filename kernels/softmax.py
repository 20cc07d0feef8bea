"""Softmax of each row of a matrix, (rows, cols), shifted by the row's maximum.

The choice is between passes over the row: ``PASSES`` = 3 finds the maximum, then stores and sums
exponentials, then divides; 2 keeps the sum right while the maximum still moves (Milakov &
Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3) and reads the row once less.
On the GPU a row that fits into one block stays in registers and is read once; for a longer one
``MAXIMUM`` makes that choice, with one running maximum for each row or for each of its lanes.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false
# (Triton is optional, and its kernels are a language of their own, without Python's types and names.)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evotune.kernel import Array, Backend, CSource, Problem, Tolerance, numpy_dtype
from evotune.space import Config, ConfigSpace

if TYPE_CHECKING:
    import triton.language as tl

name = "softmax"

shapes = {
    "small": {"rows": 8, "cols": 128, "dtype": "float32"},
    "odd": {"rows": 5, "cols": 131, "dtype": "float32"},
    "default": {"rows": 256, "cols": 1024, "dtype": "float32"},
    "long": {"rows": 8, "cols": 32768, "dtype": "float32"},
    "gpu": {"rows": 16384, "cols": 4096, "dtype": "float16"},
    "gpu_bf16": {"rows": 16384, "cols": 4096, "dtype": "bfloat16"},
    "gpu_short": {"rows": 262144, "cols": 256, "dtype": "float16"},
    "gpu_long": {"rows": 2048, "cols": 50257, "dtype": "float32"},
    "gpu_large": {"rows": 32768, "cols": 32768, "dtype": "bfloat16"},
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-7),
    "float16": Tolerance(rtol=5e-3, atol=1e-6),
    "bfloat16": Tolerance(rtol=1e-2, atol=1e-6),
}

CHUNK = 1 << 22  # elements converted at once: 32 MB in double precision, where large shapes would need 8 GB


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """One matrix, (rows, cols)."""
    x = np.empty((int(problem["rows"]), int(problem["cols"])), numpy_dtype(str(problem["dtype"])))
    for part in np.array_split(x, x.size // CHUNK + 1):
        part[...] = rng.standard_normal(part.shape, dtype=np.float32)
    return (x,)


def reference(problem: Problem, *inputs: Array) -> Array:
    """In double precision."""
    out = inputs[0].copy()
    for part in np.array_split(out, out.size // CHUNK + 1):
        x = part.astype(np.float64)
        e = np.exp(x - x.max(axis=1, keepdims=True))
        part[...] = e / e.sum(axis=1, keepdims=True)
    return out


def flops(problem: Problem) -> float:
    """Per element: compare, subtract, exponential (counted as one), add, divide."""
    return 5.0 * int(problem["rows"]) * int(problem["cols"])


def bytes_moved(problem: Problem) -> float:
    """The matrix, read and written once."""
    return 2.0 * int(problem["rows"]) * int(problem["cols"]) * numpy_dtype(str(problem["dtype"])).itemsize


# CPU: C with GCC's vector types, which gcc, clang and zig cc all have, on any processor.


def cpu_space(problem: Problem) -> ConfigSpace:
    """Passes over a row, and how it is walked in each."""
    return ConfigSpace.from_dict(
        {
            "PASSES": [2, 3],
            "VEC_WIDTH": [2, 4, 8, 16],  # floats in a vector: 16 are one AVX-512 register
            "CHAINS_FIRST": [1, 2, 4, 8],  # vectors in a step of the first pass: independent chains
            "CHAINS_REST": [1, 2, 4, 8],  # and of the passes that follow
            "DIVIDE": [False, True],  # divide each element, or multiply by the reciprocal
        },
        ["cols >= VEC_WIDTH * max(CHAINS_FIRST, CHAINS_REST)", "dtype == 'float32'"],
        constants={k: problem[k] for k in ("cols", "dtype")},
        default={"PASSES": 3, "VEC_WIDTH": 8, "CHAINS_FIRST": 1, "CHAINS_REST": 1, "DIVIDE": True},
    )


def build_cpu(config: Config, problem: Problem) -> CSource:
    """The C text with tunables and sizes defined in front of it."""
    constants = {**config, "ROWS": problem["rows"], "COLS": problem["cols"]}
    defines = "".join(f"#define {name} {int(value)}\n" for name, value in constants.items())
    return CSource(defines + C_TEXT, flags=("-O3", "-march=native"))


C_TEXT = r"""
typedef float vec __attribute__((vector_size(4 * VEC_WIDTH), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * VEC_WIDTH), aligned(4), may_alias));
#define EACH(count, j) _Pragma("GCC unroll 16") for (int j = 0; j < count; j++)
#define LOG2_E 1.44269504f

enum { FIRST = CHAINS_FIRST * VEC_WIDTH, REST = CHAINS_REST * VEC_WIDTH };

static inline vec select(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

/* Elements from i on of a row whose step is `step`; what lies beyond its end counts as exp(x) = 0. */
static inline vec load(const float *row, int i, int step) {
  if (COLS % step == 0 || i + VEC_WIDTH <= COLS) return *(const vec *)(row + i);
  vec x = (vec){0} - 1e30f;
  for (int j = 0; i + j < COLS; j++) x[j] = row[i + j];
  return x;
}

static inline void store(float *row, int i, int step, vec x) {
  if (COLS % step == 0 || i + VEC_WIDTH <= COLS) *(vec *)(row + i) = x;
  else
    for (int j = 0; i + j < COLS; j++) row[i + j] = x[j];
}

/* e^x for x <= 0: 2^n by the exponent bits, 2^f for |f| <= 1/2 by a polynomial (error 2e-7). */
static inline vec exp_of_negative(vec x) {
  x = select(x > -87.0f, x, (vec){0} - 87.0f) * LOG2_E;
  ivec n = __builtin_convertvector(x - 0.5f, ivec);
  vec f = x - __builtin_convertvector(n, vec);
  vec y = 1.33335581e-3f * f + 9.61812910e-3f;
  y = y * f + 5.55041087e-2f;
  y = y * f + 2.40226507e-1f;
  y = y * f + 6.93147181e-1f;
  y = y * f + 1.0f;
  return (vec)((ivec)y + (n << 23));
}

static inline float max_of(const vec *x, int count) {
  float m = x[0][0];
  for (int c = 0; c < count; c++)
    for (int j = 0; j < VEC_WIDTH; j++) m = x[c][j] > m ? x[c][j] : m;
  return m;
}

static inline float sum_of(const vec *x, int count) {
  float sum = 0.0f;
  for (int c = 0; c < count; c++)
    for (int j = 0; j < VEC_WIDTH; j++) sum += x[c][j];
  return sum;
}

static void three_passes(const float *x, float *out) {
  vec max[CHAINS_FIRST], sum[CHAINS_REST];
  EACH(CHAINS_FIRST, c) max[c] = (vec){0} - 1e30f;
  for (int i = 0; i < COLS; i += FIRST) EACH(CHAINS_FIRST, c) {
    vec e = load(x, i + c * VEC_WIDTH, FIRST);
    max[c] = select(e > max[c], e, max[c]);
  }
  float m = max_of(max, CHAINS_FIRST);
  EACH(CHAINS_REST, c) sum[c] = (vec){0};
  for (int i = 0; i < COLS; i += REST) EACH(CHAINS_REST, c) {
    vec e = exp_of_negative(load(x, i + c * VEC_WIDTH, REST) - m);
    store(out, i + c * VEC_WIDTH, REST, e);
    sum[c] += e;
  }
  float l = sum_of(sum, CHAINS_REST), scale = 1.0f / l;
  for (int i = 0; i < COLS; i += REST) EACH(CHAINS_REST, c) {
    vec e = load(out, i + c * VEC_WIDTH, REST);
    store(out, i + c * VEC_WIDTH, REST, DIVIDE ? e / l : e * scale);
  }
}

static void two_passes(const float *x, float *out) {
  vec max[CHAINS_FIRST], sum[CHAINS_FIRST];
  EACH(CHAINS_FIRST, c) { max[c] = (vec){0} - 1e30f; sum[c] = (vec){0}; }
  for (int i = 0; i < COLS; i += FIRST) EACH(CHAINS_FIRST, c) {
    /* One exponential corrects either the sum so far or the new term: the other factor is 1. */
    vec new = load(x, i + c * VEC_WIDTH, FIRST), difference = new - max[c];
    ivec rises = difference > 0.0f;
    vec e = exp_of_negative(select(rises, -difference, difference));
    sum[c] = select(rises, sum[c] * e + 1.0f, sum[c] + e);
    max[c] = select(rises, new, max[c]);
  }
  float m = max_of(max, CHAINS_FIRST);
  EACH(CHAINS_FIRST, c) sum[c] *= exp_of_negative(max[c] - m);
  float l = sum_of(sum, CHAINS_FIRST), scale = 1.0f / l;
  for (int i = 0; i < COLS; i += REST) EACH(CHAINS_REST, c) {
    vec e = exp_of_negative(load(x, i + c * VEC_WIDTH, REST) - m);
    store(out, i + c * VEC_WIDTH, REST, DIVIDE ? e / l : e * scale);
  }
}

void evotune_kernel(const float *x, float *out) {
  for (int row = 0; row < ROWS; row++) (PASSES == 2 ? two_passes : three_passes)(x + row * COLS, out + row * COLS);
}
"""


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """What a program holds at once, how often it reads a row, how far ahead, and what the caches are told."""
    return ConfigSpace.from_dict(
        {
            "BLOCK": [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768],  # columns at once
            "ROWS_AT_ONCE": [1, 2, 4, 8, 16],
            "num_warps": [1, 2, 4, 8, 16, 32],
            "MAXIMUM": ["first", "row", "lane"],  # found first, or running: one for a row, or one for each lane
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
            # A row in one block is normalised in registers, by its one maximum.
            "BLOCK < cols or MAXIMUM == 'first'",
            "PROGRAMS_PER_SM * num_warps <= 64",  # an SM has room for 64 warps: more would wait, not loop
            "PROGRAMS_PER_SM == 0 or PROGRAMS_PER_SM * multiprocessors * ROWS_AT_ONCE < rows",  # else no loop
            # Loads are ahead in a loop only: over columns, or over rows that are whole in a block.
            "NUM_STAGES == 1 or BLOCK < cols or PROGRAMS_PER_SM > 0",
            "BLOCK >= cols or (NUM_STAGES - 1) * BLOCK < cols",  # no further ahead than the row is long
            # They go to shared memory (cp.async) in aligned pieces of four bytes or more, have no hints,
            "NUM_STAGES == 1 or BLOCK * ROWS_AT_ONCE * itemsize >= 4 * 32 * num_warps",
            "NUM_STAGES == 1 or cols * itemsize % 4 == 0",
            "NUM_STAGES == 1 or not EVICT_HINTS",
            # and a block has 227 KiB of it on sm_90 and sm_100.
            "(NUM_STAGES - 1) * BLOCK * ROWS_AT_ONCE * itemsize <= 227 * 1024",
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
        "MAXIMUM": "first" if block >= cols else "row",
        "PROGRAMS_PER_SM": 0,
        "NUM_STAGES": 1,
        "EVICT_HINTS": False,
        "STORE_CACHE": "",
        "maxnreg": 0,
    }


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, out) -> None``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    kernel = import_module("triton").jit(softmax_rows)
    rows, cols = int(problem["rows"]), int(problem["cols"])
    tunables: dict[str, Any] = {**config, "maxnreg": config["maxnreg"] or None}
    groups = -(-rows // int(config["ROWS_AT_ONCE"]))
    resident = int(problem.get("multiprocessors", 132)) * tunables.pop("PROGRAMS_PER_SM")
    programs = min(resident or groups, groups)

    def launch(x: Any, out: Any) -> None:
        kernel[(programs,)](x, out, ROWS=rows, COLS=cols, PROGRAMS=programs, **tunables)

    return launch


def softmax_rows(
    x, out, ROWS: tl.constexpr, COLS: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr, ROWS_AT_ONCE: tl.constexpr, MAXIMUM: tl.constexpr, NUM_STAGES: tl.constexpr,
    EVICT_HINTS: tl.constexpr, STORE_CACHE: tl.constexpr,
):  # fmt: skip
    """One program is ROWS_AT_ONCE rows, or every PROGRAMS-th group of so many."""
    again: tl.constexpr = "evict_last" if EVICT_HINTS else ""
    last: tl.constexpr = "evict_first" if EVICT_HINTS else ""
    row_stages: tl.constexpr = NUM_STAGES if BLOCK >= COLS else 1
    lanes = tl.arange(0, BLOCK)[None, :]
    for group in tl.range(tl.program_id(0), tl.cdiv(ROWS, ROWS_AT_ONCE), PROGRAMS, num_stages=row_stages):
        rows = group * ROWS_AT_ONCE + tl.arange(0, ROWS_AT_ONCE)[:, None]
        start_of_row = rows.to(tl.int64) * COLS
        if BLOCK >= COLS:
            inside = (rows < ROWS) & (lanes < COLS)
            e = tl.load(x + start_of_row + lanes, mask=inside, other=-float("inf"), eviction_policy=last)
            e = e.to(tl.float32)
            e = tl.exp(e - tl.max(e, 1)[:, None])
            p = e / tl.sum(e, 1)[:, None]
            tl.store(
                out + start_of_row + lanes, p.to(out.dtype.element_ty), mask=inside, cache_modifier=STORE_CACHE
            )
        else:
            # The maximum so far is finite, lest its difference from what lies outside, -inf, be NaN.
            m = tl.full([ROWS_AT_ONCE, 1 if MAXIMUM == "row" else BLOCK], -1e30, tl.float32)
            l = tl.zeros_like(m)
            for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
                at = start + lanes
                inside = (rows < ROWS) & (at < COLS)
                e = tl.load(x + start_of_row + at, mask=inside, other=-float("inf"), eviction_policy=again)
                e = e.to(tl.float32)
                if MAXIMUM == "first":
                    m = tl.maximum(m, e)
                else:
                    m_new = tl.maximum(m, tl.max(e, 1)[:, None] if MAXIMUM == "row" else e)
                    p = tl.exp(e - m_new)
                    l = l * tl.exp(m - m_new) + (tl.sum(p, 1)[:, None] if MAXIMUM == "row" else p)
                    m = m_new
            top = tl.max(m, 1)[:, None]
            if MAXIMUM == "first":
                for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
                    at = start + lanes
                    inside = (rows < ROWS) & (at < COLS)
                    e = tl.load(x + start_of_row + at, mask=inside, other=-float("inf"), eviction_policy=again)
                    l += tl.exp(e.to(tl.float32) - top)
                total = tl.sum(l, 1)[:, None]
            else:
                total = tl.sum(l * tl.exp(m - top), 1)[:, None]
            for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
                at = start + lanes
                inside = (rows < ROWS) & (at < COLS)
                e = tl.load(x + start_of_row + at, mask=inside, other=-float("inf"), eviction_policy=last)
                p = tl.exp(e.to(tl.float32) - top) / total
                tl.store(
                    out + start_of_row + at, p.to(out.dtype.element_ty), mask=inside, cache_modifier=STORE_CACHE
                )


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
