"""Matrix product ``out = a b`` of row-major matrices, (m, k) times (k, n).

On the CPU: the blocking of Goto & van de Geijn 2008. A panel of ``BLOCK_K`` by ``BLOCK_N`` elements
of b stays in a cache while all of a passes by, and the innermost loop keeps a tile of the output,
``ROWS`` by ``VECS`` vectors, in registers.

On the GPU: one program per output tile, programs grouped so that neighbours share tiles in L2.
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

name = "matmul"

shapes = {
    "small": {"m": 64, "n": 64, "k": 64, "dtype": "float32"},
    "odd": {"m": 67, "n": 45, "k": 83, "dtype": "float32"},
    "default": {"m": 256, "n": 256, "k": 256, "dtype": "float32"},
    "wide": {"m": 64, "n": 1024, "k": 512, "dtype": "float32"},
    "gpu_1024": {"m": 1024, "n": 1024, "k": 1024, "dtype": "float16"},
    "gpu": {"m": 4096, "n": 4096, "k": 4096, "dtype": "float16"},
    "gpu_8192": {"m": 8192, "n": 8192, "k": 8192, "dtype": "float16"},
}

tolerance = {"float32": Tolerance(rtol=1e-4, atol=1e-4), "float16": Tolerance(rtol=1e-2, atol=1e-2)}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """``a``, (m, k), and ``b``, (k, n); scaled so that results are near one for every k."""
    m, n, k = (int(problem[size]) for size in "mnk")
    dtype = str(problem["dtype"])
    a = rng.standard_normal((m, k)) / np.sqrt(k)
    return a.astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def reference(problem: Problem, *inputs: Array) -> Array:
    """NumPy's product, in double precision for single-precision inputs."""
    # Single precision is ample for half-precision inputs and takes half the time.
    exact = np.float32 if problem["dtype"] == "float16" else np.float64
    a, b = (x.astype(exact) for x in inputs)
    return (a @ b).astype(inputs[0].dtype)


def flops(problem: Problem) -> float:
    """A multiplication and an addition for each (i, j, k)."""
    return 2.0 * int(problem["m"]) * int(problem["n"]) * int(problem["k"])


def bytes_moved(problem: Problem) -> float:
    """Both inputs and the output, once each."""
    m, n, k = (int(problem[size]) for size in "mnk")
    return float((m * k + k * n + m * n) * np.dtype(str(problem["dtype"])).itemsize)


# CPU: C with GCC's vector types, which gcc, clang and zig cc all have, on any processor.


def cpu_space(problem: Problem) -> ConfigSpace:
    """Register tile, panel of b, its layout, and the order of the loops over it."""
    return ConfigSpace.from_dict(
        {
            "VEC_WIDTH": [4, 8, 16],  # floats in a vector: 16 are one AVX-512 register
            "VECS": [1, 2, 4],  # vectors in a row of the register tile
            "ROWS": [1, 2, 4, 8],  # rows of the register tile
            "BLOCK_N": [32, 64, 128, 256],  # columns of the panel of b
            "BLOCK_K": [16, 64, 256],  # rows of the panel of b
            "PACK_B": [False, True],  # copy the panel, so that the innermost loop reads it in order
            "ROWS_FIRST": [False, True],  # for each row of tiles all of the panel's columns, or the reverse
        },
        [
            "BLOCK_N % (VECS * VEC_WIDTH) == 0",
            "PACK_B or n % (VECS * VEC_WIDTH) == 0",  # packing also pads b to whole vectors
            "dtype == 'float32'",
        ],
        constants={k: problem[k] for k in ("n", "dtype")},
        default={
            "VEC_WIDTH": 8,
            "VECS": 1,
            "ROWS": 4,
            "BLOCK_N": 64,
            "BLOCK_K": 64,
            "PACK_B": True,
            "ROWS_FIRST": True,
        },
    )


def build_cpu(config: Config, problem: Problem) -> CSource:
    """The C text with tunables and sizes defined in front of it."""
    constants = {**config, **{size.upper(): problem[size] for size in "mnk"}}
    defines = "".join(f"#define {name} {int(value)}\n" for name, value in constants.items())
    return CSource(defines + C_TEXT, flags=("-O3", "-march=native"))


C_TEXT = r"""
typedef float vec __attribute__((vector_size(4 * VEC_WIDTH), aligned(4), may_alias));
#define UNROLL _Pragma("GCC unroll 16")
#define EACH_VEC UNROLL for (int j = 0; j < VECS; j++)

enum { COLS = VECS * VEC_WIDTH };
static float packed[BLOCK_K * BLOCK_N] __attribute__((aligned(64)));

static inline int min(int a, int b) { return a < b ? a : b; }

/* Columns in groups of COLS, each group row by row; zeros beyond the edge of b. */
static void pack(const float *b, int depth, int cols) {
  for (int n = 0; n < cols; n += COLS)
    for (int k = 0; k < depth; k++)
      for (int j = 0; j < COLS; j++)
        packed[n * BLOCK_K + k * COLS + j] = n + j < cols ? b[k * N + n + j] : 0.0f;
}

/* c += a b for a tile of `rows` by COLS; `rows` is a constant at each call, so sums stay in registers. */
__attribute__((always_inline)) static inline void tile(
    const float *a, const float *b, int b_stride, float *c, int c_stride, int depth, int first, int rows) {
  vec sum[ROWS][VECS];
  UNROLL for (int r = 0; r < rows; r++)
    EACH_VEC sum[r][j] = first ? (vec){0} : *(vec *)(c + r * c_stride + j * VEC_WIDTH);
  for (int k = 0; k < depth; k++)
    UNROLL for (int r = 0; r < rows; r++)
      EACH_VEC sum[r][j] += a[r * K + k] * *(const vec *)(b + k * b_stride + j * VEC_WIDTH);
  UNROLL for (int r = 0; r < rows; r++) EACH_VEC *(vec *)(c + r * c_stride + j * VEC_WIDTH) = sum[r][j];
}

/* Rows m to m + rows meet the group of columns at n; `cols` of them exist. */
__attribute__((always_inline)) static inline void group(
    const float *a, const float *b, float *out, int depth, int first, int n, int cols, int rows) {
  const float *panel = PACK_B ? packed + n * BLOCK_K : b + n;
  int stride = PACK_B ? COLS : N;
  if (cols >= COLS) {
    tile(a, panel, stride, out + n, N, depth, first, rows);
    return;
  }
  float edge[ROWS][COLS];
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < COLS; j++) edge[r][j] = j < cols && !first ? out[r * N + n + j] : 0.0f;
  tile(a, panel, stride, edge[0], COLS, depth, 0, rows);
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < cols; j++) out[r * N + n + j] = edge[r][j];
}

static void row_of_tiles(const float *a, const float *b, float *out, int k0, int n0, int m, int n) {
  int depth = min(BLOCK_K, K - k0), first = k0 == 0, cols = N - n0 - n;
  if (m + ROWS <= M) group(a + m * K + k0, b, out + m * N + n0, depth, first, n, cols, ROWS);
  else
    for (; m < M; m++) group(a + m * K + k0, b, out + m * N + n0, depth, first, n, cols, 1);
}

/* All of a passes by the panel of b at (k0, n0). */
static void panel(const float *a, const float *b, float *out, int k0, int n0) {
  int cols = min(BLOCK_N, N - n0);
  b += k0 * N + n0;
  if (PACK_B) pack(b, min(BLOCK_K, K - k0), cols);
  if (ROWS_FIRST) {
    for (int m = 0; m < M; m += ROWS)
      for (int n = 0; n < cols; n += COLS) row_of_tiles(a, b, out, k0, n0, m, n);
  } else {
    for (int n = 0; n < cols; n += COLS)
      for (int m = 0; m < M; m += ROWS) row_of_tiles(a, b, out, k0, n0, m, n);
  }
}

void evotune_kernel(const float *a, const float *b, float *out) {
  for (int n = 0; n < N; n += BLOCK_N)
    for (int k = 0; k < K; k += BLOCK_K) panel(a, b, out, k, n);
}
"""


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """Output tile, depth of a step, order of the tiles, warps, and how far loads run ahead."""
    return ConfigSpace.from_dict(
        {
            "BLOCK_M": [16, 32, 64, 128, 256],
            "BLOCK_N": [16, 32, 64, 128, 256],
            "BLOCK_K": [16, 32, 64, 128],
            "GROUP_M": [1, 4, 8, 16],  # rows of tiles that are walked column by column
            "num_warps": [2, 4, 8],
            "num_stages": [1, 2, 3, 4, 5],
        },
        [
            # Tiles of the stages in flight; 227 KB is what a block can have on sm_90 and sm_100.
            "(BLOCK_M + BLOCK_N) * BLOCK_K * itemsize * max(num_stages - 1, 1) <= 232448",
            # The output tile is float32 in registers, 255 in each thread.
            "BLOCK_M * BLOCK_N <= 255 * 32 * num_warps",
            "BLOCK_M * BLOCK_N >= 256 * num_warps",  # else warps repeat each other's work
        ],
        constants={"itemsize": np.dtype(str(problem["dtype"])).itemsize},
        default={
            "BLOCK_M": 64,
            "BLOCK_N": 64,
            "BLOCK_K": 32,
            "GROUP_M": 8,
            "num_warps": 4,
            "num_stages": 3,
        },
    )


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(a, b, out) -> None``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    kernel = import_module("triton").jit(matmul)
    sizes = {size.upper(): int(problem[size]) for size in "mnk"}
    grid = (-(-sizes["M"] // int(config["BLOCK_M"])) * -(-sizes["N"] // int(config["BLOCK_N"])),)

    def launch(a: Any, b: Any, out: Any) -> None:
        kernel[grid](a, b, out, **sizes, **config)

    return launch


def matmul(
    a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One program is one tile of the output."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0)
    group = tile // (GROUP_M * tiles_n)
    rows_in_group = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    in_group = tile % (GROUP_M * tiles_n)
    rows = (group * GROUP_M + in_group % rows_in_group) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = (in_group // rows_in_group) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the edge wrap round: loads need a mask along k only.
    a_rows = a + (rows % M)[:, None].to(tl.int64) * K
    b_cols = b + (cols % N)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        a_tile = tl.load(a_rows + ks[None, :], mask=ks[None, :] < K, other=0.0)
        b_tile = tl.load(b_cols + ks[:, None].to(tl.int64) * N, mask=ks[:, None] < K, other=0.0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision="ieee")
    inside = (rows[:, None] < M) & (cols[None, :] < N)
    tl.store(out + rows[:, None].to(tl.int64) * N + cols[None, :], acc.to(out.dtype.element_ty), mask=inside)


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
