"""Softmax of each row of a matrix, (rows, cols), shifted by the row's maximum.

The choice is between passes over the row: ``PASSES`` = 3 finds the maximum, then stores and sums
exponentials, then divides; 2 keeps the sum right while the maximum still moves (Milakov &
Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3) and reads the row once less.
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

name = "softmax"

shapes = {
    "small": {"rows": 8, "cols": 128, "dtype": "float32"},
    "odd": {"rows": 5, "cols": 131, "dtype": "float32"},
    "default": {"rows": 256, "cols": 1024, "dtype": "float32"},
    "long": {"rows": 8, "cols": 32768, "dtype": "float32"},
    "gpu": {"rows": 16384, "cols": 4096, "dtype": "float16"},
    "gpu_long": {"rows": 2048, "cols": 50257, "dtype": "float32"},
}

tolerance = {"float32": Tolerance(rtol=1e-4, atol=1e-7), "float16": Tolerance(rtol=5e-3, atol=1e-6)}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """One matrix, (rows, cols)."""
    x = rng.standard_normal((int(problem["rows"]), int(problem["cols"])))
    return (x.astype(str(problem["dtype"])),)


def reference(problem: Problem, *inputs: Array) -> Array:
    """In double precision."""
    x = inputs[0].astype(np.float64)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)).astype(inputs[0].dtype)


def flops(problem: Problem) -> float:
    """Per element: compare, subtract, exponential (counted as one), add, divide."""
    return 5.0 * int(problem["rows"]) * int(problem["cols"])


def bytes_moved(problem: Problem) -> float:
    """The matrix, read and written once."""
    return 2.0 * int(problem["rows"]) * int(problem["cols"]) * np.dtype(str(problem["dtype"])).itemsize


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
    """Columns held at once and warps that share them; a row in one block is read only once."""
    return ConfigSpace.from_dict(
        {
            "BLOCK": [256, 512, 1024, 2048, 4096, 8192, 16384],  # columns in one step
            "num_warps": [1, 2, 4, 8, 16, 32],
            "NUM_STAGES": [1, 2, 3, 4],  # steps whose loads are in flight
            "KEEP": [False, True],  # ask the caches to keep the row for the second pass
        },
        [
            "BLOCK >= 32 * num_warps",  # at least one element for each thread,
            "BLOCK <= 64 * 32 * num_warps",  # and no more than its registers hold
            "BLOCK <= max(2 * cols, 256)",
            "BLOCK < cols or NUM_STAGES == 1 and not KEEP",  # one step: nothing to overlap or keep
        ],
        constants={"cols": problem["cols"]},
        default={"BLOCK": 256, "num_warps": 4, "NUM_STAGES": 1, "KEEP": False},
    )


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, out) -> None``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    kernel = import_module("triton").jit(softmax_row)
    rows, cols = int(problem["rows"]), int(problem["cols"])

    def launch(x: Any, out: Any) -> None:
        kernel[(rows,)](x, out, COLS=cols, **config)

    return launch


def softmax_row(
    x, out, COLS: tl.constexpr, BLOCK: tl.constexpr, NUM_STAGES: tl.constexpr, KEEP: tl.constexpr
):  # fmt: skip
    """One program is one row."""
    row = tl.program_id(0).to(tl.int64) * COLS
    policy: tl.constexpr = "evict_last" if KEEP else ""
    if BLOCK >= COLS:
        at = tl.arange(0, BLOCK)
        e = tl.load(x + row + at, mask=at < COLS, other=-float("inf")).to(tl.float32)
        e = tl.exp(e - tl.max(e, 0))
        tl.store(out + row + at, (e / tl.sum(e, 0)).to(out.dtype.element_ty), mask=at < COLS)
    else:
        # Maximum and sum of each lane; they meet once, at the end of the first pass.
        m = tl.full([BLOCK], -1e30, tl.float32)
        l = tl.zeros([BLOCK], tl.float32)
        for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
            at = start + tl.arange(0, BLOCK)
            e = tl.load(x + row + at, mask=at < COLS, other=-float("inf"), eviction_policy=policy).to(tl.float32)
            m_new = tl.maximum(m, e)
            l = l * tl.exp(m - m_new) + tl.exp(e - m_new)
            m = m_new
        top = tl.max(m, 0)
        total = tl.sum(l * tl.exp(m - top), 0)
        for start in tl.range(0, COLS, BLOCK, num_stages=NUM_STAGES):
            at = start + tl.arange(0, BLOCK)
            e = tl.load(x + row + at, mask=at < COLS).to(tl.float32)
            p = tl.exp(e - top) / total
            tl.store(out + row + at, p.to(out.dtype.element_ty), mask=at < COLS)


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
