"""Cross-entropy of each row of logits, (rows, vocab), and its target: ``log(sum(exp(x))) - x[target]``.

The logits are read once or twice: ``PASSES`` = 2 finds the maximum first; 1 keeps the sum right while the
maximum still moves (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3).
On the GPU it always moves, and ``SPLITS`` programs can share a row, whose maxima and sums a second launch
puts together, as the keys are split in Dao et al. 2023, "Flash-Decoding": that fills a GPU where rows are few.
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

name = "cross_entropy"

# Vocabularies: Llama 2 has 32000 tokens, GPT-2 50257, Llama 3 128256.
shapes = {
    "small": {"rows": 8, "vocab": 128, "dtype": "float32"},
    "odd": {"rows": 5, "vocab": 131, "dtype": "float32"},
    "default": {"rows": 64, "vocab": 4096, "dtype": "float32"},
    "long": {"rows": 8, "vocab": 32000, "dtype": "float32"},
    "gpu": {"rows": 8192, "vocab": 32000, "dtype": "float16"},
    "gpu_bf16": {"rows": 8192, "vocab": 32000, "dtype": "bfloat16"},
    "gpu_float32": {"rows": 4096, "vocab": 32000, "dtype": "float32"},
    "gpu_vocab_50k": {"rows": 8192, "vocab": 50257, "dtype": "bfloat16"},
    "gpu_vocab_128k": {"rows": 8192, "vocab": 128256, "dtype": "bfloat16"},
    "gpu_few_rows": {"rows": 64, "vocab": 128256, "dtype": "bfloat16"},
}

# Whatever the logits' dtype, sums and losses are in single precision; a loss is of order log(vocab).
tolerance = {dtype: Tolerance(rtol=1e-5, atol=2e-5) for dtype in ("float32", "float16", "bfloat16")}

CHUNK = 1 << 22  # elements converted at once: 32 MB in double precision, where large shapes would need 8 GB


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """Logits, (rows, vocab), and the indices of the right tokens, (rows,) of int64."""
    rows, vocab = int(problem["rows"]), int(problem["vocab"])
    x = np.empty((rows, vocab), numpy_dtype(str(problem["dtype"])))
    for part in np.array_split(x, x.size // CHUNK + 1):
        part[...] = rng.standard_normal(part.shape, dtype=np.float32)
    return x, rng.integers(vocab, size=rows)


def reference(problem: Problem, *inputs: Array) -> Array:
    """In double precision; losses, (rows,) of float32."""
    x, target = inputs
    out = np.empty(len(x), np.float32)
    for rows in np.array_split(np.arange(len(x)), x.size // CHUNK + 1):
        part = x[rows].astype(np.float64)
        top = part.max(axis=1)
        out[rows] = np.log(np.exp(part - top[:, None]).sum(axis=1)) + top - part[np.arange(len(rows)), target[rows]]
    return out


def flops(problem: Problem) -> float:
    """Per logit: compare, subtract, exponential (counted as one), add."""
    return 4.0 * int(problem["rows"]) * int(problem["vocab"])


def bytes_moved(problem: Problem) -> float:
    """The logits, read once, and for each row an index of eight bytes and a loss of four."""
    rows, vocab = int(problem["rows"]), int(problem["vocab"])
    return float(rows * vocab * numpy_dtype(str(problem["dtype"])).itemsize + rows * (8 + 4))


# CPU: C with GCC's vector types, which gcc, clang and zig cc all have, on any processor.


def cpu_space(problem: Problem) -> ConfigSpace:
    """Passes over a row, and how it is walked in each."""
    return ConfigSpace.from_dict(
        {
            "PASSES": [1, 2],
            "VEC_WIDTH": [2, 4, 8, 16],  # floats in a vector: 16 are one AVX-512 register
            "CHAINS": [1, 2, 4, 8],  # vectors in a step of the pass that sums: independent chains
            "CHAINS_MAX": [1, 2, 4, 8],  # and of the pass that finds the maximum
            "PREFETCH": [0, 256, 1024],  # floats ahead; 0: left to the hardware
        },
        [
            "vocab >= VEC_WIDTH * max(CHAINS, CHAINS_MAX)",
            "PASSES == 2 or CHAINS_MAX == 1",  # one pass finds the maximum while it sums
            "dtype == 'float32'",
        ],
        constants={k: problem[k] for k in ("vocab", "dtype")},
        default={"PASSES": 2, "VEC_WIDTH": 8, "CHAINS": 1, "CHAINS_MAX": 1, "PREFETCH": 0},
    )


def build_cpu(config: Config, problem: Problem) -> CSource:
    """The C text with tunables and sizes defined in front of it."""
    constants = {**config, "ROWS": problem["rows"], "COLS": problem["vocab"]}
    defines = "".join(f"#define {name} {int(value)}\n" for name, value in constants.items())
    return CSource(defines + C_TEXT, flags=("-O3", "-march=native"))


C_TEXT = r"""
#include <math.h>

typedef float vec __attribute__((vector_size(4 * VEC_WIDTH), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * VEC_WIDTH), aligned(4), may_alias));
#define EACH(count, j) _Pragma("GCC unroll 16") for (int j = 0; j < count; j++)
#define LOG2_E 1.44269504f

static inline vec select(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

/* Elements from i on of a row; what lies beyond its end counts as exp(x) = 0. */
static inline vec load(const float *row, int i) {
  if (PREFETCH) __builtin_prefetch(row + i + PREFETCH); /* a hint, harmless beyond the end */
  if (i + VEC_WIDTH <= COLS) return *(const vec *)(row + i);
  vec x = (vec){0} - 1e30f;
  for (int j = 0; i + j < COLS; j++) x[j] = row[i + j];
  return x;
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

/* log(sum(exp(x))) of one row */
static float log_of_sum(const float *x) {
  vec max[CHAINS], sum[CHAINS], tops[CHAINS_MAX];
  EACH(CHAINS, c) { max[c] = (vec){0} - 1e30f; sum[c] = (vec){0}; }
  if (PASSES == 2) {
    EACH(CHAINS_MAX, c) tops[c] = max[0];
    for (int i = 0; i < COLS; i += CHAINS_MAX * VEC_WIDTH) EACH(CHAINS_MAX, c) {
      vec e = load(x, i + c * VEC_WIDTH);
      tops[c] = select(e > tops[c], e, tops[c]);
    }
    EACH(CHAINS, c) max[c] = (vec){0} + max_of(tops, CHAINS_MAX);
  }
  for (int i = 0; i < COLS; i += CHAINS * VEC_WIDTH) EACH(CHAINS, c) {
    vec e = load(x, i + c * VEC_WIDTH), difference = e - max[c];
    if (PASSES == 2) sum[c] += exp_of_negative(difference);
    else {
      /* One exponential corrects either the sum so far or the new term: the other factor is 1. */
      ivec rises = difference > 0.0f;
      vec factor = exp_of_negative(select(rises, -difference, difference));
      sum[c] = select(rises, sum[c] * factor + 1.0f, sum[c] + factor);
      max[c] = select(rises, e, max[c]);
    }
  }
  float m = max_of(max, CHAINS), total = 0.0f;
  EACH(CHAINS, c) {
    sum[c] *= exp_of_negative(max[c] - m);
    for (int j = 0; j < VEC_WIDTH; j++) total += sum[c][j];
  }
  return m + logf(total);
}

void evotune_kernel(const float *x, const long long *target, float *out) {
  for (int row = 0; row < ROWS; row++) out[row] = log_of_sum(x + row * COLS) - x[row * COLS + target[row]];
}
"""


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """How a row is shared out, in which steps it is read, how far ahead, and what the caches are told."""
    return ConfigSpace.from_dict(
        {
            "BLOCK": [256, 512, 1024, 2048, 4096, 8192, 16384, 32768],  # logits at once
            "SPLITS": [1, 2, 4, 8, 16],  # programs that share a row
            "num_warps": [1, 2, 4, 8, 16, 32],
            "MAXIMUM": ["row", "lane"],  # the running one: one for a row, or one for each lane
            "NUM_STAGES": [1, 2, 3, 4],  # steps whose loads are in flight
            "LOAD_CACHE": ["", ".cg"],  # .cg: past L1
            "LOAD_EVICT": ["", "evict_first"],
            "maxnreg": [0, 32, 64, 128],  # registers of a thread; 0: what the compiler likes
        },
        [
            "BLOCK < 2 * vocab or BLOCK == 256",  # else a smaller block holds the row
            "(SPLITS - 1) * BLOCK < vocab",  # a step or more for each program
            "BLOCK >= 32 * num_warps",  # at least one element for each thread,
            "BLOCK <= 64 * 32 * num_warps",  # and no more than its 255 registers work on
            "(NUM_STAGES - 1) * SPLITS * BLOCK < vocab",  # no further ahead than the row is long
            # Loads ahead go to shared memory (cp.async) in aligned pieces of four bytes or more, without hints,
            "NUM_STAGES == 1 or BLOCK * itemsize >= 4 * 32 * num_warps",
            "NUM_STAGES == 1 or vocab * itemsize % 4 == 0",
            "NUM_STAGES == 1 or LOAD_CACHE == '' and LOAD_EVICT == ''",
            # and a block has 227 KiB of it on sm_90 and sm_100.
            "(NUM_STAGES - 1) * BLOCK * itemsize <= 227 * 1024",
            "LOAD_CACHE == '' or LOAD_EVICT == ''",  # PTX: one or the other
            # The compiler keeps to the registers of a block anyway. It needs between one and four for an element.
            "maxnreg * 32 * num_warps < 65536",
            "maxnreg == 0 or BLOCK <= maxnreg * 32 * num_warps <= 4 * BLOCK",
        ],
        constants={"vocab": problem["vocab"], "itemsize": numpy_dtype(str(problem["dtype"])).itemsize},
        default=cuda_default(int(problem["vocab"])),
    )


def cuda_default(vocab: int) -> Config:
    """A program for each row, in steps of 8192 logits or fewer, 16 for each thread."""
    block = min(max(1 << (vocab - 1).bit_length(), 256), 8192)
    return {
        "BLOCK": block,
        "SPLITS": 1,
        "num_warps": max(block // (16 * 32), 1),
        "MAXIMUM": "row",
        "NUM_STAGES": 1,
        "LOAD_CACHE": "",
        "LOAD_EVICT": "",
        "maxnreg": 0,
    }


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, target, out) -> None``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    jit, torch = import_module("triton").jit, import_module("torch")
    reduce, join = jit(log_of_sum), jit(join_splits)
    rows, vocab = int(problem["rows"]), int(problem["vocab"])
    splits, block = int(config["SPLITS"]), int(config["BLOCK"])
    tunables: dict[str, Any] = {**config, "maxnreg": config["maxnreg"] or None}
    # Whole blocks for each program, so that all start at an address as round as the row's.
    span = -(-vocab // (splits * block)) * block

    def launch(x: Any, target: Any, out: Any) -> None:
        parts = out if splits == 1 else torch.empty((rows, splits), dtype=torch.float32, device=x.device)
        reduce[(rows, splits)](x, target, parts, COLS=vocab, SPAN=span, **tunables)
        if splits > 1:
            join[(-(-rows // JOIN_ROWS),)](x, target, parts, out, rows, COLS=vocab, SPLITS=splits, BLOCK=JOIN_ROWS)

    return launch


JOIN_ROWS = 128  # rows that a program of the second launch takes: it is short whatever the number


def log_of_sum(
    x, target, parts, COLS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    MAXIMUM: tl.constexpr, NUM_STAGES: tl.constexpr, LOAD_CACHE: tl.constexpr, LOAD_EVICT: tl.constexpr,
):  # fmt: skip
    """One program is SPAN columns of one row; if these are all, it subtracts the target's logit too."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    # The maximum so far is finite, lest its difference from what lies outside, -inf, be NaN.
    m = tl.full([1 if MAXIMUM == "row" else BLOCK], -1e30, tl.float32)
    l = tl.zeros_like(m)
    for start in tl.range(0, SPAN, BLOCK, num_stages=NUM_STAGES):
        at = split * SPAN + start + tl.arange(0, BLOCK)
        e = tl.load(
            x + row * COLS + at, mask=at < COLS, other=-float("inf"),
            cache_modifier=LOAD_CACHE, eviction_policy=LOAD_EVICT,
        ).to(tl.float32)  # fmt: skip
        m_new = tl.maximum(m, tl.max(e, 0) if MAXIMUM == "row" else e)
        p = tl.exp(e - m_new)
        l = l * tl.exp(m - m_new) + (tl.sum(p, 0) if MAXIMUM == "row" else p)
        m = m_new
    top = tl.max(m, 0)
    out = top + tl.log(tl.sum(l * tl.exp(m - top), 0))
    if SPLITS == 1:
        out -= tl.load(x + row * COLS + tl.load(target + row)).to(tl.float32)
    tl.store(parts + row * SPLITS + split, out)


def join_splits(x, target, parts, out, rows, COLS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """One program is the losses of BLOCK rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    part = tl.load(parts + row[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :], mask=inside[:, None], other=0.0)
    top = tl.max(part, 1)
    total = tl.sum(tl.exp(part - top[:, None]), 1)
    right = tl.load(x + row * COLS + tl.load(target + row, mask=inside, other=0), mask=inside, other=0.0)
    tl.store(out + row, top + tl.log(total) - right.to(tl.float32), mask=inside)


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
