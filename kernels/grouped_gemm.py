"""Grouped matrix product of a mixture of experts: each row of x meets the weights of its own expert.

Rows are sorted by expert, and how many an expert has is known on the device only: ``offsets`` tells,
as in MegaBlocks (Gale et al. 2022, section 4). No row is padded or dropped. A program finds the expert
of its tile in the running sum of all experts' tiles, so that one launch does whatever the router chose.

There is no CPU backend.
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

from evotune.kernel import Array, Backend, Problem, Tolerance, numpy_dtype
from evotune.space import Config, ConfigSpace, Value

if TYPE_CHECKING:
    import triton.language as tl

name = "grouped_gemm"

shapes = {  # `tokens` counts each token once for each expert that it goes to
    "small": {"tokens": 64, "experts": 4, "n": 48, "k": 32, "dtype": "float32"},
    "odd": {"tokens": 77, "experts": 5, "n": 45, "k": 83, "dtype": "float32"},
    "default": {"tokens": 512, "experts": 8, "n": 256, "k": 128, "dtype": "float32"},
    # 4096 tokens, each to 8 of 64 experts, and a step of decoding 64 sequences: the sizes of OLMoE-1B-7B.
    "gpu": {"tokens": 32768, "experts": 64, "n": 1024, "k": 2048, "dtype": "float16"},
    "gpu_decode": {"tokens": 512, "experts": 64, "n": 1024, "k": 2048, "dtype": "float16"},
    "gpu_4096": {"tokens": 16384, "experts": 8, "n": 4096, "k": 4096, "dtype": "float16"},
    "gpu_bf16": {"tokens": 32768, "experts": 64, "n": 1024, "k": 2048, "dtype": "bfloat16"},
    "gpu_bf16_decode": {"tokens": 512, "experts": 64, "n": 1024, "k": 2048, "dtype": "bfloat16"},
    "gpu_float32": {"tokens": 8192, "experts": 16, "n": 1024, "k": 1024, "dtype": "float32"},
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-4),
    "float16": Tolerance(rtol=1e-2, atol=1e-2),
    "bfloat16": Tolerance(rtol=2e-2, atol=2e-2),  # 8 bits of mantissa: rounding alone is 4e-3 of a value
}


def rows_by_rank(problem: Problem) -> Array:
    """Rows of the busiest expert, of the next, …: in proportion to 1 / sqrt(rank), (experts,) of int64.

    Of 64 experts the first has 4.4 times the mean. The law is fixed, so that timings on different
    inputs compare.
    """
    share = np.cumsum(1 / np.sqrt(np.arange(1, int(problem["experts"]) + 1)))
    return np.diff(np.floor(int(problem["tokens"]) * share / share[-1]).astype(np.int64), prepend=0)


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """``x``, (tokens, k); weights, (experts, k, n); ``offsets``, (experts + 1,) of int32.

    Rows ``offsets[e]`` to ``offsets[e + 1]`` are expert e's. Which expert is how busy is drawn.
    """
    tokens, experts, n, k = (int(problem[size]) for size in ("tokens", "experts", "n", "k"))
    dtype = numpy_dtype(str(problem["dtype"]))
    x = rng.standard_normal((tokens, k), np.float32) / np.float32(np.sqrt(k))
    weights = rng.standard_normal((experts, k, n), np.float32)
    offsets = np.zeros(experts + 1, np.int32)
    np.cumsum(rng.permutation(rows_by_rank(problem)), out=offsets[1:])
    return x.astype(dtype), weights.astype(dtype), offsets


def reference(problem: Problem, *inputs: Array) -> Array:
    """One expert after the other, in double precision for single-precision inputs."""
    # Single precision is ample for half-precision inputs and takes half the time.
    exact = np.float64 if problem["dtype"] == "float32" else np.float32
    x, weights, offsets = inputs
    out = np.empty((x.shape[0], weights.shape[2]), x.dtype)
    for w, start, end in zip(weights, offsets, offsets[1:], strict=False):
        out[start:end] = x[start:end].astype(exact) @ w.astype(exact)
    return out


def flops(problem: Problem) -> float:
    """A multiplication and an addition for each row, column and k, whatever its expert."""
    return 2.0 * int(problem["tokens"]) * int(problem["n"]) * int(problem["k"])


def bytes_moved(problem: Problem) -> float:
    """Rows, weights of the experts that have any, output, and offsets, once each."""
    tokens, experts, n, k = (int(problem[size]) for size in ("tokens", "experts", "n", "k"))
    busy = int((rows_by_rank(problem) > 0).sum())
    itemsize = numpy_dtype(str(problem["dtype"])).itemsize
    return float((tokens * k + busy * k * n + tokens * n) * itemsize + (experts + 1) * 4)


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """Output tile, depth of a step, order of the tiles and who computes them, and how loads are made."""
    tokens, experts, n, k = (int(problem[size]) for size in ("tokens", "experts", "n", "k"))
    itemsize = numpy_dtype(str(problem["dtype"])).itemsize
    constants = {
        "n": n,
        "k": k,
        "itemsize": itemsize,
        "tokens": tokens,
        "most_rows": int(rows_by_rank(problem)[0]),
        "multiprocessors": problem.get("multiprocessors", 132),
    }
    values: dict[str, list[Value]] = {
        "BLOCK_M": [16, 32, 64, 128, 256],
        "BLOCK_N": [16, 32, 64, 128, 256],
        "BLOCK_K": [16, 32, 64, 128],
        "GROUP_M": [1, 2, 4, 8, 16],  # rows of an expert's tiles that are walked column by column
        "PERSISTENT": [0, 1, 2],  # programs on a multiprocessor that stay and walk; 0: one for each tile
        "DESCRIPTORS": [False, True],  # loads by TMA, or by pointers
        "num_warps": [2, 4, 8],
        "num_stages": [1, 2, 3, 4, 5],
        "maxnreg": [0, 96, 128, 160],  # registers of a thread; 0: as many as the compiler likes
    }
    default: dict[str, Value] = {
        "BLOCK_M": 128 if tokens >= 128 * experts else 16,
        "BLOCK_N": 128 if itemsize == 2 else 64,
        "BLOCK_K": 128 // itemsize,  # a row of 128 bytes: the widest that shared memory swizzles
        "GROUP_M": 1,
        "PERSISTENT": 0,
        "DESCRIPTORS": k * itemsize % 16 == 0 and n * itemsize % 16 == 0,
        "num_warps": 8 if tokens >= 128 * experts else 4,
        "num_stages": 3,
        "maxnreg": 0,
    }
    constraints = [
        # Tiles of the stages in flight; 227 KB is what a block can have on sm_90 and sm_100.
        "(BLOCK_M + BLOCK_N) * BLOCK_K * itemsize * max(num_stages - 1, 1) <= 232448",
        # The output tile is in registers at the end, four bytes an element, 255 registers in each thread.
        "BLOCK_M * BLOCK_N <= 255 * 32 * num_warps",
        "BLOCK_M * BLOCK_N >= 256 * num_warps",  # else warps repeat each other's work
        "maxnreg * 32 * num_warps < 65536",  # else it is no limit: a block has 65536
        "maxnreg == 0 or BLOCK_M * BLOCK_N < maxnreg * 32 * num_warps",  # the output tile again
        # With all rows of the busiest expert in a group, a larger one is the same.
        "GROUP_M == 1 or GROUP_M < 2 * -(-most_rows // BLOCK_M)",
        # With no more tiles than programs, persistent ones have nothing to walk to.
        "PERSISTENT == 0 or PERSISTENT * multiprocessors < -(-tokens // BLOCK_M) * -(-n // BLOCK_N)",
        "not DESCRIPTORS or k * itemsize % 16 == 0 and n * itemsize % 16 == 0",  # rows as TMA takes them
    ]
    if problem["dtype"] == "float32":
        values["PRECISION"] = ["ieee", "tf32x3"]  # on the ordinary units, or three times on the tensor cores
        # Steps on the ordinary units are unrolled: deeper ones spill kilobytes and take a minute to compile.
        constraints += ["PRECISION != 'ieee' or BLOCK_K <= 64"]
        default["PRECISION"] = "tf32x3"
    if int(problem.get("capability", 90)) >= 100:
        values["WARP_SPECIALIZE"] = [False, True]  # loads, products and the rest each by warps of their own
        # Triton 3.9 specializes only where TMA loads and tcgen05 multiplies: 64 rows and four warps at least.
        constraints += ["not WARP_SPECIALIZE or DESCRIPTORS and num_warps >= 4 and BLOCK_M >= 64"]
        default["WARP_SPECIALIZE"] = False
    return ConfigSpace.from_dict(values, constraints, constants=constants, default=default)


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, weights, offsets, out) -> None``."""
    triton, torch, kernel = import_module("triton"), import_module("torch"), compiled()
    sizes = {size.upper(): int(problem[size]) for size in ("tokens", "experts", "n", "k")}
    # How many tiles there are depends on the offsets. The most: each expert ends with a tile of one row.
    tiles_m = (sizes["TOKENS"] + sizes["EXPERTS"] * (int(config["BLOCK_M"]) - 1)) // int(config["BLOCK_M"])
    tiles = tiles_m * -(-sizes["N"] // int(config["BLOCK_N"]))
    programs = int(config["PERSISTENT"]) * int(problem.get("multiprocessors", 132))
    grid = (min(tiles, programs) if programs else tiles,)
    options = {"PRECISION": "ieee", "WARP_SPECIALIZE": False, **config}
    options["maxnreg"] = config["maxnreg"] or None
    options["SLOTS"] = 1 << (sizes["EXPERTS"] - 1).bit_length()  # Triton's vectors are powers of two

    def launch(x: Any, weights: Any, offsets: Any, out: Any) -> None:
        triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=x.device))
        kernel[grid](x, weights, offsets, out, **sizes, **options)

    return launch


@lru_cache
def compiled() -> Any:
    """The Triton kernel. It looks names up in this module, which imports no Triton before."""
    triton = import_module("triton")
    globals().update(tl=triton.language, chosen=triton.jit(chosen))
    return triton.jit(grouped_gemm)


def grouped_gemm(
    x, weights, offsets, out, TOKENS: tl.constexpr, EXPERTS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    SLOTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PERSISTENT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr, WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """One program is one tile of one expert's output, or walks over tiles of all experts."""
    if DESCRIPTORS:
        x_blocks = tl.make_tensor_descriptor(x, [TOKENS, K], [K, 1], [BLOCK_M, BLOCK_K])
        w_blocks = tl.make_tensor_descriptor(weights, [EXPERTS, K, N], [K * N, N, 1], [1, BLOCK_K, BLOCK_N])
    slots = tl.arange(0, SLOTS)
    starts = tl.load(offsets + slots, mask=slots < EXPERTS, other=0)
    ends = tl.load(offsets + slots + 1, mask=slots < EXPERTS, other=0)
    tiles_m = tl.cdiv(ends - starts, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile_ends = tl.cumsum(tiles_m * tiles_n, 0)
    tiles = tl.sum(tiles_m * tiles_n, 0)
    first = tl.program_id(0)
    last = tiles if PERSISTENT else tl.minimum(first + 1, tiles)
    # Flattened, the two loops are one: the loads of the next tile overlap the end of this one.
    for tile in tl.range(
        first, last, tl.num_programs(0) if PERSISTENT else 1, flatten=PERSISTENT > 0 and DESCRIPTORS,
        warp_specialize=WARP_SPECIALIZE and PERSISTENT > 0,
    ):  # fmt: skip
        expert = tl.sum((tile_ends <= tile).to(tl.int32), 0)
        row_tiles = chosen(tiles_m, slots, expert)
        in_expert = tile - chosen(tile_ends, slots, expert) + row_tiles * tiles_n
        group = in_expert // (GROUP_M * tiles_n)
        rows_in_group = tl.minimum(row_tiles - group * GROUP_M, GROUP_M)
        in_group = in_expert % (GROUP_M * tiles_n)
        row = chosen(starts, slots, expert) + (group * GROUP_M + in_group % rows_in_group) * BLOCK_M
        col = (in_group // rows_in_group) * BLOCK_N
        rows, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in tl.range(0, K, BLOCK_K, warp_specialize=WARP_SPECIALIZE and PERSISTENT == 0):
            # Rows beyond the expert's are computed with its weights too, and not stored.
            if DESCRIPTORS:
                x_tile = x_blocks.load([row, k])
                w_tile = tl.reshape(w_blocks.load([expert, k, col]), [BLOCK_K, BLOCK_N])
            else:
                ks = k + tl.arange(0, BLOCK_K)
                x_at = (rows % TOKENS)[:, None].to(tl.int64) * K + ks[None, :]
                w_at = (expert.to(tl.int64) * K + ks[:, None]) * N + (cols % N)[None, :]
                x_tile = tl.load(x + x_at, mask=ks[None, :] < K, other=0.0)
                w_tile = tl.load(weights + w_at, mask=ks[:, None] < K, other=0.0)
            acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)
        inside = (rows[:, None] < chosen(ends, slots, expert)) & (cols[None, :] < N)
        at = rows[:, None].to(tl.int64) * N + cols[None, :]
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)


def chosen(values, slots, slot):
    """The value in one slot of a vector."""
    return tl.sum(tl.where(slots == slot, values, 0), 0)


backends = {"cuda": Backend(cuda_space, build_cuda, default_shape="gpu")}
