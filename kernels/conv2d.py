"""Convolution forward of channels-last images: ``x``, (batch, height, width, channels), to as many filters.

An implicit matrix product (Chetlur et al. 2014, cuDNN, section 3; CUTLASS's "implicit GEMM"): rows are
pixels of the output, columns are filters, and the summed index runs over the taps of the filter and the
channels. The matrix of patches is never in memory: its tiles are gathered from x as they are needed.

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

name = "conv2d"


def layer(
    batch: int, size: int, channels: int, filters: int, taps: int, stride: int = 1, dtype: str = "float16"
) -> Problem:
    """A square image and filter, padded so that stride 1 keeps the size."""
    sizes = {"batch": batch, "height": size, "width": size, "channels": channels, "filters": filters}
    return {**sizes, "taps": taps, "stride": stride, "padding": taps // 2, "dtype": dtype}


shapes = {
    "small": layer(2, 8, 16, 24, 3, dtype="float32"),
    "odd": {**layer(1, 9, 5, 7, 3, stride=2, dtype="float32"), "width": 11},
    "default": layer(2, 16, 32, 64, 3, dtype="float32"),
    # Layers of ResNet-50 (He et al. 2016, table 1).
    "gpu": layer(32, 28, 128, 128, 3),
    "gpu_56": layer(32, 56, 64, 64, 3),
    "gpu_14": layer(32, 14, 256, 256, 3),
    "gpu_7": layer(32, 7, 512, 512, 3),
    "gpu_1x1": layer(32, 56, 64, 256, 1),
    "gpu_stride": layer(32, 56, 128, 128, 3, stride=2),
    "gpu_stem": layer(32, 224, 3, 64, 7, stride=2),
    "gpu_large": layer(256, 28, 128, 128, 3),
    "gpu_bf16": layer(32, 28, 128, 128, 3, dtype="bfloat16"),
    "gpu_float32": layer(32, 28, 128, 128, 3, dtype="float32"),
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-4),
    "float16": Tolerance(rtol=1e-2, atol=1e-2),
    "bfloat16": Tolerance(rtol=2e-2, atol=2e-2),  # 8 bits of mantissa: rounding alone is 4e-3 of a value
}


def output_size(problem: Problem) -> tuple[int, int]:
    """Height and width of the output."""
    taps, stride, padding = (int(problem[size]) for size in ("taps", "stride", "padding"))
    height, width = int(problem["height"]), int(problem["width"])
    return (height + 2 * padding - taps) // stride + 1, (width + 2 * padding - taps) // stride + 1


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """``x``, (batch, height, width, channels), and filters, (taps, taps, channels, filters)."""
    batch, height, width, channels, filters, taps = (
        int(problem[size]) for size in ("batch", "height", "width", "channels", "filters", "taps")
    )
    dtype = numpy_dtype(str(problem["dtype"]))
    x = rng.standard_normal((batch, height, width, channels), np.float32)
    weights = rng.standard_normal((taps, taps, channels, filters), np.float32)
    return x.astype(dtype), (weights / np.float32(taps * np.sqrt(channels))).astype(dtype)


def reference(problem: Problem, *inputs: Array) -> Array:
    """A matrix product for each tap, in double precision for single-precision inputs."""
    # Single precision is ample for half-precision inputs and takes half the time.
    exact = np.float64 if problem["dtype"] == "float32" else np.float32
    taps, stride, padding = (int(problem[size]) for size in ("taps", "stride", "padding"))
    x, weights = (a.astype(exact) for a in inputs)
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    high, wide = output_size(problem)
    out = np.zeros((x.shape[0], high, wide, weights.shape[3]), exact)
    for i in range(taps):
        for j in range(taps):
            seen = x[:, i : i + stride * (high - 1) + 1 : stride, j : j + stride * (wide - 1) + 1 : stride]
            out += seen @ weights[i, j]
    return out.astype(inputs[0].dtype)


def flops(problem: Problem) -> float:
    """A multiplication and an addition for each output, tap and channel; those with padding count too."""
    high, wide = output_size(problem)
    outputs = int(problem["batch"]) * high * wide * int(problem["filters"])
    return 2.0 * outputs * int(problem["taps"]) ** 2 * int(problem["channels"])


def bytes_moved(problem: Problem) -> float:
    """Image, filters and output, once each."""
    batch, height, width, channels, filters, taps = (
        int(problem[size]) for size in ("batch", "height", "width", "channels", "filters", "taps")
    )
    high, wide = output_size(problem)
    elements = batch * (height * width * channels + high * wide * filters) + taps * taps * channels * filters
    return float(elements * numpy_dtype(str(problem["dtype"])).itemsize)


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """Output tile, depth of a step, order of steps and tiles, and how loads are made."""
    high, wide = output_size(problem)
    channels, filters = int(problem["channels"]), int(problem["filters"])
    itemsize = numpy_dtype(str(problem["dtype"])).itemsize
    constants = {
        "pixels": int(problem["batch"]) * high * wide,
        "channels": channels,
        "filters": filters,
        "taps": problem["taps"],
        "itemsize": itemsize,
        "multiprocessors": problem.get("multiprocessors", 132),
    }
    values: dict[str, list[Value]] = {
        "BLOCK_M": [16, 32, 64, 128, 256],  # pixels of the output
        "BLOCK_N": [16, 32, 64, 128, 256],  # filters
        "BLOCK_K": [16, 32, 64, 128],  # channels of one tap
        "TAPS_FIRST": [False, True],  # all taps of some channels, which share pixels, or all channels of a tap
        "GROUP_M": [1, 4, 16],  # rows of tiles that are walked column by column
        "PERSISTENT": [0, 1, 2],  # programs on a multiprocessor that stay and walk; 0: one for each tile
        "DESCRIPTORS": [False, True],  # filters by TMA, or by pointers; pixels are gathered by pointers
        "num_warps": [2, 4, 8],
        "num_stages": [1, 2, 3, 4, 5],
        "maxnreg": [0, 96, 128, 160],  # registers of a thread; 0: as many as the compiler likes
    }
    constraints = [
        # Tiles of the stages in flight; 227 KB is what a block can have on sm_90 and sm_100.
        "(BLOCK_M + BLOCK_N) * BLOCK_K * itemsize * max(num_stages - 1, 1) <= 232448",
        # The output tile is in registers at the end, four bytes an element, 255 registers in each thread.
        "BLOCK_M * BLOCK_N <= 255 * 32 * num_warps",
        "BLOCK_M * BLOCK_N >= 256 * num_warps",  # else warps repeat each other's work
        "BLOCK_K < 2 * max(channels, 16)",  # the rest would be zeros
        "not TAPS_FIRST or taps > 1 and channels > BLOCK_K",  # else there is one order only
        "maxnreg * 32 * num_warps < 65536",  # else it is no limit: a block has 65536
        "maxnreg == 0 or BLOCK_M * BLOCK_N < maxnreg * 32 * num_warps",  # the output tile again
        # With one column of tiles there is nothing to group; with all rows in a group, a larger one is the same.
        "GROUP_M == 1 or BLOCK_N < filters and GROUP_M < 2 * -(-pixels // BLOCK_M)",
        # With no more tiles than programs, persistent ones have nothing to walk to.
        "PERSISTENT == 0 or PERSISTENT * multiprocessors < -(-pixels // BLOCK_M) * -(-filters // BLOCK_N)",
        "not DESCRIPTORS or filters * itemsize % 16 == 0",  # rows as TMA takes them
    ]
    if problem["dtype"] == "float32":
        values["PRECISION"] = ["ieee", "tf32x3"]  # on the ordinary units, or three times on the tensor cores
        # Steps on the ordinary units are unrolled: deeper ones spill kilobytes and take a minute to compile.
        constraints += ["PRECISION != 'ieee' or BLOCK_K <= 64"]
    return ConfigSpace.from_dict(values, constraints, constants=constants, default=cuda_default(problem))


def cuda_default(problem: Problem) -> Config:
    """A tile as for a matrix product of that size."""
    high, wide = output_size(problem)
    batch, channels, filters = (int(problem[size]) for size in ("batch", "channels", "filters"))
    itemsize = numpy_dtype(str(problem["dtype"])).itemsize
    config: dict[str, Value] = {
        "BLOCK_M": 128,
        "BLOCK_N": 128 if filters >= 128 else 64,
        # A row of 128 bytes is the widest that shared memory swizzles; channels that are not there are zeros.
        "BLOCK_K": min(128 // itemsize, max(16, 1 << (channels - 1).bit_length())),
        "TAPS_FIRST": False,
        "GROUP_M": 1,
        "PERSISTENT": 0,
        "DESCRIPTORS": False,
        "num_warps": 8 if filters >= 128 else 4,
        "num_stages": 3,
        "maxnreg": 0,
    }
    if batch * high * wide * filters < 128 * 128 * int(problem.get("multiprocessors", 132)):  # too few such tiles
        config |= {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4}
    if problem["dtype"] == "float32":
        config["PRECISION"] = "tf32x3"
    return config


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, weights, out) -> None``."""
    triton, torch, kernel = import_module("triton"), import_module("torch"), compiled()
    names = ("batch", "height", "width", "channels", "filters", "taps", "stride", "padding")
    sizes = {size.upper(): int(problem[size]) for size in names}
    high, wide = output_size(problem)
    tiles_m = -(-sizes["BATCH"] * high * wide // int(config["BLOCK_M"]))
    tiles = tiles_m * -(-sizes["FILTERS"] // int(config["BLOCK_N"]))
    programs = int(config["PERSISTENT"]) * int(problem.get("multiprocessors", 132))
    grid = (min(tiles, programs) if programs else tiles,)
    options = {"PRECISION": "ieee", **config, "OUT_HEIGHT": high, "OUT_WIDTH": wide}
    options["maxnreg"] = config["maxnreg"] or None

    def launch(x: Any, weights: Any, out: Any) -> None:
        triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=x.device))
        kernel[grid](x, weights, out, **sizes, **options)

    return launch


@lru_cache
def compiled() -> Any:
    """The Triton kernel. It looks names up in this module, which imports no Triton before."""
    triton = import_module("triton")
    globals().update(tl=triton.language, tile_at=triton.jit(tile_at))
    return triton.jit(conv2d)


def conv2d(
    x, weights, out, BATCH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    FILTERS: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, TAPS_FIRST: tl.constexpr, GROUP_M: tl.constexpr, PERSISTENT: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program is one tile of the output, or walks over tiles."""
    total: tl.constexpr = BATCH * OUT_HEIGHT * OUT_WIDTH
    steps: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K  # for the channels of one tap
    if DESCRIPTORS:
        blocks = tl.make_tensor_descriptor(
            weights, [TAPS * TAPS, CHANNELS, FILTERS], [CHANNELS * FILTERS, FILTERS, 1], [1, BLOCK_K, BLOCK_N]
        )
    first = tl.program_id(0)
    last = tl.cdiv(total, BLOCK_M) * tl.cdiv(FILTERS, BLOCK_N) if PERSISTENT else first + 1
    for tile in tl.range(first, last, tl.num_programs(0) if PERSISTENT else 1):
        row, col = tile_at(tile, total, FILTERS, BLOCK_M, BLOCK_N, GROUP_M)
        pixels, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
        image = pixels // (OUT_HEIGHT * OUT_WIDTH)
        top = pixels // OUT_WIDTH % OUT_HEIGHT * STRIDE - PADDING
        left = pixels % OUT_WIDTH * STRIDE - PADDING
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in tl.range(0, TAPS * TAPS * steps):
            tap = step % (TAPS * TAPS) if TAPS_FIRST else step // steps
            channel = (step // (TAPS * TAPS) if TAPS_FIRST else step % steps) * BLOCK_K
            ks = channel + tl.arange(0, BLOCK_K)
            y_in, x_in = top + tap // TAPS, left + tap % TAPS
            inside = (pixels < total) & (y_in >= 0) & (y_in < HEIGHT) & (x_in >= 0) & (x_in < WIDTH)
            x_at = ((image.to(tl.int64) * HEIGHT + y_in) * WIDTH + x_in)[:, None] * CHANNELS + ks[None, :]
            x_tile = tl.load(x + x_at, mask=inside[:, None] & (ks[None, :] < CHANNELS), other=0.0)
            if DESCRIPTORS:
                w_tile = tl.reshape(blocks.load([tap, channel, col]), [BLOCK_K, BLOCK_N])
            else:
                w_at = (tap * CHANNELS + ks)[:, None] * FILTERS + (cols % FILTERS)[None, :]
                w_tile = tl.load(weights + w_at, mask=ks[:, None] < CHANNELS, other=0.0)
            acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)
        at = pixels[:, None].to(tl.int64) * FILTERS + cols[None, :]
        inside = (pixels[:, None] < total) & (cols[None, :] < FILTERS)
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)


def tile_at(
    tile, M: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr
):
    """First row and column of a tile: groups of GROUP_M rows of tiles, column by column."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * tiles_n)
    rows_in_group = tl.minimum(tl.cdiv(M, BLOCK_M) - group * GROUP_M, GROUP_M)
    in_group = tile % (GROUP_M * tiles_n)
    return (group * GROUP_M + in_group % rows_in_group) * BLOCK_M, (in_group // rows_in_group) * BLOCK_N


backends = {"cuda": Backend(cuda_space, build_cuda, default_shape="gpu")}
