"""Attention forward: ``out = softmax(q k^T / sqrt(head_dim)) v``, one pass, no score matrix in memory.

The online softmax of FlashAttention (Dao et al. 2022, algorithm 1; Dao 2023, section 3.1): scores are
made a tile of ``BLOCK_M`` queries by ``BLOCK_N`` keys at a time, and the running maximum ``m``, sum
``l`` and output ``acc`` of each query are corrected when a tile raises its maximum.

On the CPU the lanes of a vector are *queries*, so maximum, sum and correction need no horizontal
operation, and keys and values are read where they lie; only a tile of queries is transposed.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportAssignmentType=false, reportUnknownLambdaType=false
# (Triton is optional, and its kernels are a language of their own, without Python's types and names.)
from __future__ import annotations

import math
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evotune.kernel import Array, Backend, CSource, Problem, Tolerance, numpy_dtype
from evotune.space import Config, ConfigSpace, Value

if TYPE_CHECKING:
    import triton.language as tl

name = "attention"

shapes = {  # `heads` counts the heads of all sequences of a batch
    "small": {"heads": 2, "seq": 96, "head_dim": 32, "causal": False, "dtype": "float32"},
    "odd": {"heads": 1, "seq": 77, "head_dim": 32, "causal": True, "dtype": "float32"},
    "default": {"heads": 2, "seq": 512, "head_dim": 64, "causal": False, "dtype": "float32"},
    "causal": {"heads": 2, "seq": 512, "head_dim": 64, "causal": True, "dtype": "float32"},
    "long": {"heads": 1, "seq": 2048, "head_dim": 64, "causal": False, "dtype": "float32"},
    "gpu_1024": {"heads": 64, "seq": 1024, "head_dim": 64, "causal": False, "dtype": "float16"},
    "gpu": {"heads": 64, "seq": 4096, "head_dim": 128, "causal": False, "dtype": "float16"},
    "gpu_causal": {"heads": 64, "seq": 4096, "head_dim": 128, "causal": True, "dtype": "float16"},
    "gpu_64": {"heads": 64, "seq": 4096, "head_dim": 64, "causal": False, "dtype": "float16"},
    "gpu_64_causal": {"heads": 64, "seq": 4096, "head_dim": 64, "causal": True, "dtype": "float16"},
    "gpu_8192": {"heads": 32, "seq": 8192, "head_dim": 128, "causal": False, "dtype": "float16"},
    "gpu_8192_causal": {"heads": 32, "seq": 8192, "head_dim": 128, "causal": True, "dtype": "float16"},
    "gpu_long": {"heads": 16, "seq": 16384, "head_dim": 64, "causal": True, "dtype": "float16"},
    "gpu_bf16": {"heads": 64, "seq": 4096, "head_dim": 128, "causal": False, "dtype": "bfloat16"},
    "gpu_bf16_causal": {"heads": 64, "seq": 4096, "head_dim": 128, "causal": True, "dtype": "bfloat16"},
    "gpu_float32": {"heads": 16, "seq": 2048, "head_dim": 64, "causal": False, "dtype": "float32"},
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-5),
    "float16": Tolerance(rtol=1e-2, atol=2e-3),
    "bfloat16": Tolerance(rtol=2e-2, atol=8e-3),  # weights are rounded to 8 bits before they meet the values
}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """Queries, keys and values, each (heads, seq, head_dim)."""
    shape = (int(problem["heads"]), int(problem["seq"]), int(problem["head_dim"]))
    return tuple(rng.standard_normal(shape).astype(numpy_dtype(str(problem["dtype"]))) for _ in range(3))


def reference(problem: Problem, *inputs: Array) -> Array:
    """One head at a time, with the whole score matrix."""
    # Single precision is ample for half-precision inputs and takes a quarter of the time.
    exact = np.float32 if problem["dtype"] in ("float16", "bfloat16") else np.float64
    out = np.empty_like(inputs[0])
    for head, qkv in enumerate(zip(*inputs, strict=True)):
        q, k, v = (x.astype(exact) for x in qkv)
        scores = q @ k.T / math.sqrt(int(problem["head_dim"]))
        if problem["causal"]:
            scores[np.triu_indices_from(scores, 1)] = -np.inf
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[head] = (p @ v) / p.sum(axis=1, keepdims=True)
    return out


def flops(problem: Problem) -> float:
    """Two products of 2 · head_dim per (query, key); a causal query sees itself and what is before."""
    seq = int(problem["seq"])
    pairs = seq * (seq + 1) / 2 if problem["causal"] else seq * seq
    return 4.0 * int(problem["heads"]) * pairs * int(problem["head_dim"])


def bytes_moved(problem: Problem) -> float:
    """Queries, keys, values and output, once each."""
    elements = int(problem["heads"]) * int(problem["seq"]) * int(problem["head_dim"])
    return 4.0 * elements * numpy_dtype(str(problem["dtype"])).itemsize


# CPU: C with GCC's vector types, which gcc, clang and zig cc all have, on any processor.


def cpu_space(problem: Problem) -> ConfigSpace:
    """Tile of queries and keys, and the register tiles of the two products."""
    return ConfigSpace.from_dict(
        {
            "VEC_WIDTH": [4, 8, 16],  # queries in a vector: 16 floats are one AVX-512 register
            "VECS": [1, 2, 4],  # vectors of queries in a register tile
            "ROWS_QK": [1, 2, 4, 8],  # keys in the register tile of q k^T
            "ROWS_PV": [1, 2, 4, 8],  # head dimensions in the register tile of p v
            "BLOCK_M": [16, 32, 64, 128],  # queries that share a pass over the keys
            "BLOCK_N": [16, 32, 64, 128, 256],  # keys between two corrections of the softmax
        },
        [
            "BLOCK_M % (VECS * VEC_WIDTH) == 0",
            "head_dim % ROWS_PV == 0",
            "BLOCK_N <= max(seq, 32)",
            "dtype == 'float32'",
        ],
        constants={k: problem[k] for k in ("head_dim", "seq", "dtype")},
        default={"VEC_WIDTH": 8, "VECS": 1, "ROWS_QK": 2, "ROWS_PV": 2, "BLOCK_M": 32, "BLOCK_N": 32},
    )


def build_cpu(config: Config, problem: Problem) -> CSource:
    """The C text with tunables and sizes defined in front of it."""
    head_dim = int(problem["head_dim"])
    constants = {
        **config,
        "HEADS": problem["heads"],
        "SEQ": problem["seq"],
        "DIM": head_dim,
        "CAUSAL": int(problem["causal"]),
        # Softmax in base 2: exp(s / sqrt(d)) = 2^(s * SCALE).
        "SCALE": f"{1 / (math.sqrt(head_dim) * math.log(2)):.9g}f",
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    return CSource(defines + C_TEXT, flags=("-O3", "-march=native"))


C_TEXT = r"""
typedef float vec __attribute__((vector_size(4 * VEC_WIDTH), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * VEC_WIDTH), aligned(4), may_alias));
#define UNROLL _Pragma("GCC unroll 16")
#define EACH_VEC UNROLL for (int j = 0; j < VECS; j++)

enum { STRIP = VECS * VEC_WIDTH };
typedef struct {  /* a strip of queries and what is known about them so far */
  vec q[DIM][VECS], acc[DIM][VECS], m[VECS], l[VECS];
} strip;
static strip strips[BLOCK_M / STRIP] __attribute__((aligned(64)));
static vec p[BLOCK_N][VECS] __attribute__((aligned(64)));  /* scores, then exp2 of them */

static inline int min(int a, int b) { return a < b ? a : b; }
static inline vec select(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

/* 2^x for x <= 0: 2^n by the exponent bits, 2^f for |f| <= 1/2 by a polynomial (error 2e-7). */
static inline vec exp2_of_negative(vec x) {
  x = select(x > -126.0f, x, (vec){0} - 126.0f);
  ivec n = __builtin_convertvector(x - 0.5f, ivec);
  vec f = x - __builtin_convertvector(n, vec);
  vec y = 1.33335581e-3f * f + 9.61812910e-3f;
  y = y * f + 5.55041087e-2f;
  y = y * f + 2.40226507e-1f;
  y = y * f + 6.93147181e-1f;
  y = y * f + 1.0f;
  return (vec)((ivec)y + (n << 23));
}

/* p = q k^T for `rows` keys; `rows` is a constant at each call, so the sums stay in registers. */
__attribute__((always_inline)) static inline void scores(const strip *s, const float *k, int n, int rows) {
  vec sum[ROWS_QK][VECS];
  UNROLL for (int r = 0; r < rows; r++) EACH_VEC sum[r][j] = (vec){0};
  for (int d = 0; d < DIM; d++)
    UNROLL for (int r = 0; r < rows; r++) EACH_VEC sum[r][j] += k[(n + r) * DIM + d] * s->q[d][j];
  UNROLL for (int r = 0; r < rows; r++) EACH_VEC p[n + r][j] = sum[r][j];
}

/* p = exp2(p - m) with the maximum m so far; alpha corrects what was summed under the old one. */
static inline void softmax(strip *s, int keys, vec alpha[VECS]) {
  vec m[VECS], l[VECS];
  EACH_VEC m[j] = s->m[j];
  for (int n = 0; n < keys; n++) EACH_VEC m[j] = select(p[n][j] > m[j], p[n][j], m[j]);
  EACH_VEC {
    alpha[j] = exp2_of_negative(s->m[j] - m[j]);
    l[j] = s->l[j] * alpha[j];
  }
  for (int n = 0; n < keys; n++)
    EACH_VEC l[j] += p[n][j] = exp2_of_negative(p[n][j] - m[j]);
  EACH_VEC { s->m[j] = m[j]; s->l[j] = l[j]; }
}

/* acc = alpha * acc + p v for ROWS_PV head dimensions from d on. */
static inline void weigh(strip *s, const float *v, int keys, int d, const vec alpha[VECS]) {
  vec sum[ROWS_PV][VECS];
  UNROLL for (int r = 0; r < ROWS_PV; r++) EACH_VEC sum[r][j] = s->acc[d + r][j] * alpha[j];
  for (int n = 0; n < keys; n++)
    UNROLL for (int r = 0; r < ROWS_PV; r++) EACH_VEC sum[r][j] += v[n * DIM + d + r] * p[n][j];
  UNROLL for (int r = 0; r < ROWS_PV; r++) EACH_VEC s->acc[d + r][j] = sum[r][j];
}

/* Queries from m0 on meet keys n0 to n0 + keys. */
static void attend(strip *s, const float *k, const float *v, int m0, int n0, int keys) {
  int n = 0;
  for (; n + ROWS_QK <= keys; n += ROWS_QK) scores(s, k, n, ROWS_QK);
  for (; n < keys; n++) scores(s, k, n, 1);
  if (CAUSAL)  /* only keys after the first query are hidden from any */
    for (n = m0 > n0 ? m0 - n0 : 0; n < keys; n++)
      for (int i = 0; i < min(STRIP, n0 + n - m0); i++) ((float *)p[n])[i] = -1e30f;
  vec alpha[VECS];
  softmax(s, keys, alpha);
  for (int d = 0; d < DIM; d += ROWS_PV) weigh(s, v, keys, d, alpha);
}

static void load(strip *s, const float *q, int rows) {
  EACH_VEC { s->m[j] = (vec){0} - 1e30f; s->l[j] = (vec){0}; }
  for (int d = 0; d < DIM; d++) {
    EACH_VEC s->acc[d][j] = (vec){0};
    for (int i = 0; i < STRIP; i++) ((float *)s->q[d])[i] = i < rows ? q[i * DIM + d] * SCALE : 0.0f;
  }
}

static void store(const strip *s, float *out, int rows) {
  for (int i = 0; i < min(rows, STRIP); i++)
    for (int d = 0; d < DIM; d++) out[i * DIM + d] = ((float *)s->acc[d])[i] / ((float *)s->l)[i];
}

void evotune_kernel(const float *q, const float *k, const float *v, float *out) {
  for (int h = 0; h < HEADS; h++, q += SEQ * DIM, k += SEQ * DIM, v += SEQ * DIM, out += SEQ * DIM)
    for (int m0 = 0; m0 < SEQ; m0 += BLOCK_M) {
      int m1 = min(m0 + BLOCK_M, SEQ), n1 = CAUSAL ? m1 : SEQ;
      for (int m = m0; m < m1; m += STRIP) load(&strips[(m - m0) / STRIP], q + m * DIM, SEQ - m);
      for (int n = 0; n < n1; n += BLOCK_N)
        for (int m = m0; m < m1; m += STRIP)
          if (!CAUSAL || n < m + STRIP)
            attend(&strips[(m - m0) / STRIP], k + n * DIM, v + n * DIM, m, n, min(BLOCK_N, SEQ - n));
      for (int m = m0; m < m1; m += STRIP) store(&strips[(m - m0) / STRIP], out + m * DIM, SEQ - m);
    }
}
"""


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """Tile of queries and keys, order of the tiles and who computes them, and how loads are made."""
    itemsize = numpy_dtype(str(problem["dtype"])).itemsize
    constants = {
        **{size: problem[size] for size in ("heads", "seq", "head_dim")},
        "causal": bool(problem["causal"]),
        "itemsize": itemsize,
        "multiprocessors": problem.get("multiprocessors", 132),
    }
    values: dict[str, list[Value]] = {
        "BLOCK_M": [16, 32, 64, 128, 256],
        "BLOCK_N": [16, 32, 64, 128, 256],
        "LONGEST_FIRST": [False, True],  # start with the queries that see most keys
        "PERSISTENT": [0, 1, 2],  # programs on a multiprocessor that stay and walk; 0: one for each tile
        "DESCRIPTORS": [False, True],  # loads and stores by TMA, or by pointers
        "num_warps": [1, 2, 4, 8, 16],
        "num_stages": [1, 2, 3, 4, 5],
        "maxnreg": [0, 96, 128, 160],  # registers of a thread; 0: as many as the compiler likes
    }
    bytes_of_row = int(problem["head_dim"]) * itemsize
    default: dict[str, Value] = {"BLOCK_M": 128, "BLOCK_N": 64, "LONGEST_FIRST": False, "PERSISTENT": 0}
    default |= {"DESCRIPTORS": True, "num_warps": 8, "num_stages": 3 if bytes_of_row <= 256 else 2, "maxnreg": 0}
    constraints = [
        "head_dim in (16, 32, 64, 128, 256)",  # Triton's tiles are powers of two
        "causal or not LONGEST_FIRST",
        # Keys and values of the stages in flight; 227 KB is what a block can have on sm_90 and sm_100.
        "2 * BLOCK_N * head_dim * itemsize * max(num_stages - 1, 1) <= 232448",
        # Scores and output are float32 in registers, 255 in each thread.
        "BLOCK_M * (BLOCK_N + head_dim) <= 255 * 32 * num_warps",
        "BLOCK_M >= 16 * num_warps or BLOCK_N >= 16 * num_warps",  # else warps repeat each other's work
        "maxnreg * 32 * num_warps < 65536",  # else it is no limit: a block has 65536
        "maxnreg == 0 or BLOCK_M * (BLOCK_N + head_dim) < maxnreg * 32 * num_warps",  # scores and output again
        # With no more tiles than programs, persistent ones have nothing to walk to.
        "PERSISTENT == 0 or PERSISTENT * multiprocessors < heads * -(-seq // BLOCK_M)",
    ]
    if problem["dtype"] == "float32":
        values["PRECISION"] = ["ieee", "tf32x3"]  # on the ordinary units, or three times on the tensor cores
        default |= {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "PRECISION": "tf32x3"}
    if int(problem.get("capability", 90)) >= 100:
        values["WARP_SPECIALIZE"] = [False, True]  # loads, products and softmax each by warps of their own
        # Triton 3.9 specializes only where TMA loads and tcgen05 multiplies: 64 rows and four warps at least.
        constraints += ["not WARP_SPECIALIZE or DESCRIPTORS and num_warps >= 4 and BLOCK_M >= 64"]
        default["WARP_SPECIALIZE"] = False
    return ConfigSpace.from_dict(values, constraints, constants=constants, default=default)


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(q, k, v, out) -> None`` for tensors of (heads, seq, head_dim)."""
    triton, torch, kernel = import_module("triton"), import_module("torch"), compiled()
    sizes = {size.upper(): int(problem[size]) for size in ("heads", "seq", "head_dim")}
    tiles = sizes["HEADS"] * -(-sizes["SEQ"] // int(config["BLOCK_M"]))
    programs = int(config["PERSISTENT"]) * int(problem.get("multiprocessors", 132))
    grid = (min(tiles, programs) if programs else tiles,)
    options = {"PRECISION": "ieee", "WARP_SPECIALIZE": False, **config, "CAUSAL": bool(problem["causal"])}
    options["SCALE"] = 1 / (math.sqrt(sizes["HEAD_DIM"]) * math.log(2))  # softmax in base 2
    options["maxnreg"] = config["maxnreg"] or None

    def launch(q: Any, k: Any, v: Any, out: Any) -> None:
        triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=q.device))
        kernel[grid](q, k, v, out, **sizes, **options)

    return launch


@lru_cache
def compiled() -> Any:
    """The Triton kernel. It looks names up in this module, which imports no Triton before."""
    triton = import_module("triton")
    globals().update(tl=triton.language, blocks_of=triton.jit(blocks_of), rows_of=triton.jit(rows_of))
    return triton.jit(attention_forward)


def attention_forward(
    q, k, v, out, HEADS: tl.constexpr, SEQ: tl.constexpr, HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr,
    SCALE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LONGEST_FIRST: tl.constexpr,
    PERSISTENT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr, WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """One program is one tile of queries of one head, or walks over tiles."""
    dtype: tl.constexpr = out.dtype.element_ty
    if DESCRIPTORS:
        q = blocks_of(q, HEADS, SEQ, HEAD_DIM, BLOCK_M)
        k = blocks_of(k, HEADS, SEQ, HEAD_DIM, BLOCK_N)
        v = blocks_of(v, HEADS, SEQ, HEAD_DIM, BLOCK_N)
        out = blocks_of(out, HEADS, SEQ, HEAD_DIM, BLOCK_M)
    tiles_m = tl.cdiv(SEQ, BLOCK_M)
    first = tl.program_id(0)
    last = HEADS * tiles_m if PERSISTENT else first + 1
    for tile in tl.range(first, last, tl.num_programs(0) if PERSISTENT else 1):
        head, tile_m = tile // tiles_m, tile % tiles_m
        row = (tiles_m - 1 - tile_m if LONGEST_FIRST else tile_m) * BLOCK_M
        rows = row + tl.arange(0, BLOCK_M)
        q_tile = rows_of(q, head, row, SEQ, HEAD_DIM, BLOCK_M, DESCRIPTORS, True)
        m_i = tl.full([BLOCK_M], -1e30, tl.float32)
        l_i = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
        end = tl.minimum(row + BLOCK_M, SEQ) if CAUSAL else SEQ
        # Key tiles that every query sees whole need no mask: all but the diagonal and the last.
        whole = (row if CAUSAL else SEQ) // BLOCK_N * BLOCK_N
        for masked in tl.static_range(2):
            start, stop = (whole, end) if masked else (0, whole)
            for key in tl.range(start, stop, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
                k_tile = rows_of(k, head, key, SEQ, HEAD_DIM, BLOCK_N, DESCRIPTORS, masked)
                s = tl.dot(q_tile, k_tile.T, input_precision=PRECISION) * SCALE
                if masked:
                    keys = key + tl.arange(0, BLOCK_N)
                    seen = (keys[None, :] <= rows[:, None]) if CAUSAL else (keys[None, :] < SEQ)
                    s = tl.where(seen, s, -1e30)
                m_new = tl.maximum(m_i, tl.max(s, 1))
                p = tl.exp2(s - m_new[:, None])
                alpha = tl.exp2(m_i - m_new)
                l_i = l_i * alpha + tl.sum(p, 1)
                v_tile = rows_of(v, head, key, SEQ, HEAD_DIM, BLOCK_N, DESCRIPTORS, masked)
                acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * alpha[:, None], input_precision=PRECISION)
                m_i = m_new
        result = (acc / l_i[:, None]).to(dtype)
        if DESCRIPTORS:
            out.store([head, row, 0], tl.reshape(result, [1, BLOCK_M, HEAD_DIM]))
        else:
            at = (head.to(tl.int64) * SEQ + rows[:, None]) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
            tl.store(out + at, result, mask=rows[:, None] < SEQ)


def blocks_of(x, HEADS: tl.constexpr, SEQ: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    """A descriptor whose blocks are BLOCK rows of one head."""
    return tl.make_tensor_descriptor(x, [HEADS, SEQ, HEAD_DIM], [SEQ * HEAD_DIM, HEAD_DIM, 1], [1, BLOCK, HEAD_DIM])


def rows_of(
    x, head, row, SEQ: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of a head from `row` on; zeros beyond its end, where MASKED says that there may be such."""
    rows = row + tl.arange(0, BLOCK)[:, None]
    at = (head.to(tl.int64) * SEQ + rows) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    if DESCRIPTORS:
        tile = tl.reshape(x.load([head, row, 0]), [BLOCK, HEAD_DIM])
    elif MASKED:
        tile = tl.load(x + at, mask=rows < SEQ, other=0.0)
    else:
        tile = tl.load(x + at)
    return tile


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
