"""Matrix product ``out = a b`` of row-major matrices, (m, k) times (k, n).

On the CPU: the blocking of Goto & van de Geijn 2008. A panel of ``BLOCK_K`` by ``BLOCK_N`` elements
of b stays in a cache while all of a passes by, and the innermost loop keeps a tile of the output,
``ROWS`` by ``VECS`` vectors, in registers.

On the GPU: one program per output tile, programs grouped so that neighbours share tiles in L2.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportAssignmentType=false, reportUnknownLambdaType=false
# pyright: reportPossiblyUnboundVariable=false
# (Triton is optional, and its kernels are a language of their own, without Python's types and names.)
from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evotune.kernel import Array, Backend, CSource, Problem, Tolerance, numpy_dtype
from evotune.space import Config, ConfigSpace, Value

if TYPE_CHECKING:
    import triton.language as tl

name = "matmul"

shapes = {
    "small": {"m": 64, "n": 64, "k": 64, "dtype": "float32"},
    "odd": {"m": 67, "n": 45, "k": 83, "dtype": "float32"},
    "default": {"m": 256, "n": 256, "k": 256, "dtype": "float32"},
    "wide": {"m": 64, "n": 1024, "k": 512, "dtype": "float32"},
    "gpu_256": {"m": 256, "n": 256, "k": 256, "dtype": "float16"},
    "gpu_1024": {"m": 1024, "n": 1024, "k": 1024, "dtype": "float16"},
    "gpu": {"m": 4096, "n": 4096, "k": 4096, "dtype": "float16"},
    "gpu_8192": {"m": 8192, "n": 8192, "k": 8192, "dtype": "float16"},
    "gpu_float32": {"m": 4096, "n": 4096, "k": 4096, "dtype": "float32"},
    "gpu_bf16": {"m": 4096, "n": 4096, "k": 4096, "dtype": "bfloat16"},
    "gpu_bf16_8192": {"m": 8192, "n": 8192, "k": 8192, "dtype": "bfloat16"},
    "gpu_int8": {"m": 4096, "n": 4096, "k": 4096, "dtype": "int8"},
    "gpu_int8_8192": {"m": 8192, "n": 8192, "k": 8192, "dtype": "int8"},
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-4),
    "float16": Tolerance(rtol=1e-2, atol=1e-2),
    "bfloat16": Tolerance(rtol=2e-2, atol=2e-2),  # 8 bits of mantissa: rounding alone is 4e-3 of a value
    "int8": Tolerance(rtol=0.0, atol=0.0),
}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """``a``, (m, k), and ``b``, (k, n); those of floats are scaled so that results are near one for every k."""
    m, n, k = (int(problem[size]) for size in "mnk")
    dtype = numpy_dtype(str(problem["dtype"]))
    if dtype == np.int8:
        return rng.integers(-128, 128, (m, k), np.int8), rng.integers(-128, 128, (k, n), np.int8)
    a = rng.standard_normal((m, k)) / np.sqrt(k)
    return a.astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def reference(problem: Problem, *inputs: Array) -> Array:
    """NumPy's product; of int8 in int32, of others in their own dtype."""
    # Single precision is ample for half-precision inputs and takes half the time; double is exact for int8.
    exact = np.float32 if problem["dtype"] in ("float16", "bfloat16") else np.float64
    a, b = (x.astype(exact) for x in inputs)
    return (a @ b).astype(np.int32 if problem["dtype"] == "int8" else inputs[0].dtype)


def flops(problem: Problem) -> float:
    """A multiplication and an addition for each (i, j, k)."""
    return 2.0 * int(problem["m"]) * int(problem["n"]) * int(problem["k"])


def bytes_moved(problem: Problem) -> float:
    """Both inputs and the output, once each."""
    m, n, k = (int(problem[size]) for size in "mnk")
    itemsize = numpy_dtype(str(problem["dtype"])).itemsize
    return float((m * k + k * n) * itemsize + m * n * (4 if itemsize == 1 else itemsize))


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
    """Output tile, depth of a step, order of the tiles and who computes them, and how loads are made."""
    constants = {
        **{size: problem[size] for size in "mnk"},
        "itemsize": numpy_dtype(str(problem["dtype"])).itemsize,
        "multiprocessors": problem.get("multiprocessors", 132),
    }
    values: dict[str, list[Value]] = {
        "BLOCK_M": [16, 32, 64, 128, 256],
        "BLOCK_N": [16, 32, 64, 128, 256],
        "BLOCK_K": [32, 64, 128, 256] if problem["dtype"] == "int8" else [16, 32, 64, 128],
        "GROUP_M": [1, 2, 4, 8, 16],  # rows of tiles that are walked column by column
        "PERSISTENT": [0, 1, 2],  # programs on a multiprocessor that stay and walk; 0: one for each tile
        "DESCRIPTORS": [False, True],  # loads and stores by TMA, or by pointers
        "num_warps": [2, 4, 8],
        "num_stages": [1, 2, 3, 4, 5],
        "num_ctas": [1, 2],  # blocks of a cluster, which share a tile
        "maxnreg": [0, 96, 128, 160],  # registers of a thread; 0: as many as the compiler likes
    }
    constraints = [
        # Tiles of the stages in flight; 227 KB is what a block can have on sm_90 and sm_100.
        "(BLOCK_M + BLOCK_N) * BLOCK_K * itemsize * max(num_stages - 1, 1) <= 232448 * num_ctas",
        # The output tile is in registers at the end, four bytes an element, 255 registers in each thread.
        "BLOCK_M * BLOCK_N <= 255 * 32 * num_warps * num_ctas",
        "BLOCK_M * BLOCK_N >= 256 * num_warps * num_ctas",  # else warps repeat each other's work
        "maxnreg * 32 * num_warps < 65536",  # else it is no limit: a block has 65536
        "maxnreg == 0 or BLOCK_M * BLOCK_N < maxnreg * 32 * num_warps * num_ctas",  # the output tile again
        "GROUP_M == 1 or GROUP_M < 2 * -(-m // BLOCK_M)",  # with all rows in a group, a larger one is the same
        # With no more tiles than programs, persistent ones have nothing to walk to.
        "PERSISTENT == 0 or PERSISTENT * multiprocessors // num_ctas < -(-m // BLOCK_M) * -(-n // BLOCK_N)",
        "not DESCRIPTORS or k * itemsize % 16 == 0 and n * itemsize % 16 == 0",  # rows as TMA takes them
    ]
    if problem["dtype"] == "float32":
        values["PRECISION"] = ["ieee", "tf32x3"]  # on the ordinary units, or three times on the tensor cores
        constraints += [
            # Steps on the ordinary units are unrolled: deeper ones spill kilobytes and take a minute to compile.
            "PRECISION != 'ieee' or BLOCK_K <= 64",
            "PRECISION != 'tf32x3' or num_ctas == 1",  # Triton 3.9 fails on most that have two
        ]
    if int(problem.get("capability", 90)) >= 100:
        values["WARP_SPECIALIZE"] = [False, True]  # loads, products and the rest each by warps of their own
        values["EPILOGUE_SUBTILE"] = [1, 2]  # parts in which a tile leaves tensor memory
        constraints += [
            # Triton 3.9 specializes only where TMA loads and tcgen05 multiplies: 64 rows and four warps at least.
            "not WARP_SPECIALIZE or DESCRIPTORS and num_warps >= 4 and BLOCK_M >= 64",
            "EPILOGUE_SUBTILE == 1 or DESCRIPTORS",
        ]
    return ConfigSpace.from_dict(values, constraints, constants=constants, default=cuda_default(problem))


def cuda_default(problem: Problem) -> Config:
    """The largest tile that a block holds, as Triton's tutorials do for large matrices."""
    m, n, k = (int(problem[size]) for size in "mnk")
    itemsize = numpy_dtype(str(problem["dtype"])).itemsize
    config: dict[str, Value] = {
        "BLOCK_M": 128,
        "BLOCK_N": {1: 128, 2: 256, 4: 64}[itemsize],
        "BLOCK_K": 128 // itemsize,  # a row of 128 bytes: the widest that shared memory swizzles
        "GROUP_M": 8,
        "PERSISTENT": 0,
        "DESCRIPTORS": k * itemsize % 16 == 0 and n * itemsize % 16 == 0,
        "num_warps": 8,
        "num_stages": 3,
        "num_ctas": 1,
        "maxnreg": 0,
    }
    if m * n < 128 * 256 * int(problem.get("multiprocessors", 132)):  # too few such tiles for the device
        config |= {"BLOCK_M": 64, "BLOCK_N": 64, "GROUP_M": 1, "num_warps": 4}
    if problem["dtype"] == "float32":
        config["PRECISION"] = "tf32x3"
    if int(problem.get("capability", 90)) >= 100:
        config |= {"WARP_SPECIALIZE": False, "EPILOGUE_SUBTILE": 1}
    return config


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(a, b, out) -> None``."""
    triton, torch, kernel = import_module("triton"), import_module("torch"), compiled()
    sizes = {size.upper(): int(problem[size]) for size in "mnk"}
    tiles = -(-sizes["M"] // int(config["BLOCK_M"])) * -(-sizes["N"] // int(config["BLOCK_N"]))
    programs = int(config["PERSISTENT"]) * int(problem.get("multiprocessors", 132)) // int(config["num_ctas"])
    grid = (min(tiles, programs) if programs else tiles,)
    options = {"PRECISION": "ieee", "WARP_SPECIALIZE": False, "EPILOGUE_SUBTILE": 1, **config}
    options["maxnreg"] = config["maxnreg"] or None

    def launch(a: Any, b: Any, out: Any) -> None:
        triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=a.device))
        kernel[grid](a, b, out, **sizes, **options)

    return launch


@lru_cache
def compiled() -> Any:
    """The Triton kernel. It looks names up in this module, which imports no Triton before."""
    triton = import_module("triton")
    globals().update(tl=triton.language, tile_at=triton.jit(tile_at))
    return triton.jit(matmul)


def matmul(
    a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PERSISTENT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr, EPILOGUE_SUBTILE: tl.constexpr,
):  # fmt: skip
    """One program is one tile of the output, or walks over tiles."""
    if DESCRIPTORS:
        a_blocks = tl.make_tensor_descriptor(a, [M, K], [K, 1], [BLOCK_M, BLOCK_K])
        b_blocks = tl.make_tensor_descriptor(b, [K, N], [N, 1], [BLOCK_K, BLOCK_N])
        out_blocks = tl.make_tensor_descriptor(out, [M, N], [N, 1], [BLOCK_M, BLOCK_N // EPILOGUE_SUBTILE])
    first = tl.program_id(0)
    last = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N) if PERSISTENT else first + 1
    # Flattened, the two loops are one: the loads of the next tile overlap the end of this one.
    for tile in tl.range(
        first, last, tl.num_programs(0) if PERSISTENT else 1, flatten=PERSISTENT > 0 and DESCRIPTORS,
        warp_specialize=WARP_SPECIALIZE and PERSISTENT > 0,
    ):  # fmt: skip
        row, col = tile_at(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        rows, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32 if a.dtype.element_ty == tl.int8 else tl.float32)
        for k in tl.range(0, K, BLOCK_K, warp_specialize=WARP_SPECIALIZE and PERSISTENT == 0):
            if DESCRIPTORS:
                a_tile, b_tile = a_blocks.load([row, k]), b_blocks.load([k, col])
            else:
                ks = k + tl.arange(0, BLOCK_K)
                # Rows and columns beyond the edge wrap round: loads need a mask along k only.
                a_at = (rows % M)[:, None].to(tl.int64) * K + ks[None, :]
                b_at = ks[:, None].to(tl.int64) * N + (cols % N)[None, :]
                a_tile = tl.load(a + a_at, mask=ks[None, :] < K, other=0)
                b_tile = tl.load(b + b_at, mask=ks[:, None] < K, other=0)
            acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        result = acc.to(out.dtype.element_ty)
        if not DESCRIPTORS:
            inside = (rows[:, None] < M) & (cols[None, :] < N)
            tl.store(out + rows[:, None].to(tl.int64) * N + cols[None, :], result, mask=inside)
        elif EPILOGUE_SUBTILE == 1:
            out_blocks.store([row, col], result)
        else:
            left, right = tl.split(tl.permute(tl.reshape(result, [BLOCK_M, 2, BLOCK_N // 2]), [0, 2, 1]))
            out_blocks.store([row, col], left)
            out_blocks.store([row, col + BLOCK_N // 2], right)


def tile_at(
    tile, M: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr
):
    """First row and column of a tile: groups of GROUP_M rows of tiles, column by column."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * tiles_n)
    rows_in_group = tl.minimum(tl.cdiv(M, BLOCK_M) - group * GROUP_M, GROUP_M)
    in_group = tile % (GROUP_M * tiles_n)
    return (group * GROUP_M + in_group % rows_in_group) * BLOCK_M, (in_group // rows_in_group) * BLOCK_N


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
