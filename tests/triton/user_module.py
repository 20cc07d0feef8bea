"""A user's module: kernels as they are in production code, and beside them what ``evotune run`` needs."""

# ruff: noqa: N803
from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

CONFIGS = [
    triton.Config({"BLOCK": 128}, num_warps=4),
    triton.Config({"BLOCK": 1024}, num_warps=4),
    triton.Config({"BLOCK": 512}, num_warps=8),
]


@triton.autotune(CONFIGS, key=["n"])
@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) + tl.load(y + at, mask=at < n), mask=at < n)


add_shapes = {"default": {"n": 1 << 20, "dtype": "float32"}, "small": {"n": 1000, "dtype": "float16"}}
add_output = "out"


def add_grid(meta):
    return (triton.cdiv(meta["n"], meta["BLOCK"]),)


def add_inputs(problem, rng):
    x, y = rng.standard_normal((2, problem["n"])).astype(problem["dtype"])
    return {"x": x, "y": y, "out": np.empty_like(x), "n": problem["n"]}


# Beyond what the decorator says: a dtype and None among the values, a heuristic, and results that are added up.


@triton.autotune(
    [
        triton.Config({"BLOCK": 256, "ACC": tl.float32}, num_warps=2),
        triton.Config({"BLOCK": 256, "ACC": tl.float16}, num_warps=2, maxnreg=64),
    ],
    key=[],
    reset_to_zero=["out"],
)
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def total(x, out, n, BLOCK: tl.constexpr, ACC: tl.constexpr, EVEN: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at) if EVEN else tl.load(x + at, mask=at < n, other=0.0)
    tl.atomic_add(out, tl.sum(values.to(ACC), axis=0).to(tl.float32))


total_output = "out"
total_grid = add_grid
total_tolerance = (0.1, 1.0)


def total_inputs(problem, rng):
    x = rng.standard_normal(2048).astype("float32")
    return {"x": x, "out": np.empty(1, "float32"), "n": x.size}


def total_reference(x, n):
    return x[:n].sum(keepdims=True)


@triton.jit
def double(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)


double_space = {"BLOCK": [64, 128], "num_warps": [1, 2]}
double_output, double_grid = "out", add_grid


def double_inputs(problem, rng):
    x = rng.integers(0, 100, 300)
    return {"x": x, "out": np.empty_like(x), "n": x.size}


# Wrong with all but its default: only what that computes can tell.


@triton.jit
def double_wrong(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, (2 + BLOCK // 128) * tl.load(x + at, mask=at < n), mask=at < n)


double_wrong_space = {"BLOCK": [64, 128], "num_warps": [1]}
double_wrong_output, double_wrong_grid, double_wrong_inputs = double_output, double_grid, double_inputs


# Two outputs of different dtypes, the second of them wrong in one place with all but the default.


@triton.jit
def split(x, fraction, whole, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    e = tl.load(x + at, mask=at < n)
    tl.store(fraction + at, e - tl.floor(e), mask=at < n)
    tl.store(whole + at, tl.floor(e).to(tl.int32) + (BLOCK // 128) * (at == 7), mask=at < n)


split_space = {"BLOCK": [64, 128], "num_warps": [1]}
split_output, split_grid = ("fraction", "whole"), add_grid


def split_inputs(problem, rng):
    x = rng.uniform(1e6, 2e6, 300).astype("float32")
    return {"x": x, "fraction": np.empty_like(x), "whole": np.empty(300, "int32"), "n": x.size}


def split_reference(x, n):
    return x - np.floor(x), np.floor(x).astype("int32")


@triton.jit
def bare(x, out, n, BLOCK: tl.constexpr):
    pass


bare_output, bare_grid, bare_inputs = double_output, double_grid, double_inputs

silent = triton.autotune(CONFIGS, key=["n"])(bare)

in_place = triton.autotune(CONFIGS, key=["n"], restore_value=["x"])(bare)
in_place_output, in_place_grid, in_place_inputs = double_output, double_grid, double_inputs


def not_a_kernel() -> None:
    pass
