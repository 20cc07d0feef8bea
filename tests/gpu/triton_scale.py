"""A tiny Triton kernel file, out = 2 x, and what can go wrong when one is compiled."""

# ruff: noqa: N803
from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from evotune.kernel import Backend, Problem, Tolerance
from evotune.space import Config, ConfigSpace

name = "scale"
shapes: Mapping[str, Problem] = {
    "default": {"n": 1000, "dtype": "float32"},
    "gpu": {"n": 1 << 20, "dtype": "float16"},
}
tolerance = {"float32": Tolerance(0, 0), "float16": Tolerance(0, 0)}
VARIANTS = [
    *["right", "twice", "build_raises", "launch_raises", "no_launch", "not_triton", "autotuned", "hangs", "dies"],
    *["full_disk", "jitted_once", "jitted_once_again", "told"],
]


def space(problem: Problem) -> ConfigSpace:
    return ConfigSpace.from_dict({"BLOCK": [128, 256], "num_warps": [1, 4], "variant": VARIANTS})


def build(config: Config, problem: Problem) -> Any:
    globals()["tl"] = import_module("triton.language")
    triton = import_module("triton")
    variant, n, block = config["variant"], int(problem["n"]), int(config["BLOCK"])
    if variant == "build_raises":
        raise ValueError("no such tile")
    if variant == "told":
        raise ValueError(f"capability {problem['capability']}, {problem['multiprocessors']} multiprocessors, n {n}")
    kernel = triton.jit(not_triton if variant == "not_triton" else scale)
    if str(variant).startswith("jitted_once"):
        kernel = globals().setdefault("jitted", kernel)
    if variant == "autotuned":
        kernel = triton.autotune([triton.Config({}), triton.Config({}, num_warps=8)], key=[])(kernel)

    def launch(x: Any, out: Any) -> None:
        if variant == "launch_raises":
            raise RuntimeError(f"shape {tuple(x.shape)} of {x.dtype} is not liked")
        if variant == "full_disk":
            raise OSError(28, "No space left on device")
        if variant == "hangs":
            tempfile.mkstemp(suffix=".ptx")  # as Triton does for the assembler
            time.sleep(60)
        if variant == "dies":
            os.abort()
        if variant != "no_launch":
            kernel[(triton.cdiv(x.numel(), block),)](x, out, N=n, BLOCK=block, num_warps=config["num_warps"])
        if variant == "twice":
            kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](out, out, N=n, BLOCK=2 * block, num_warps=8)

    return launch


def scale(x, out, N: tl.constexpr, BLOCK: tl.constexpr):  # noqa: F821
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # noqa: F821
    tl.store(out + at, tl.load(x + at, mask=at < N) * 2, mask=at < N)  # noqa: F821


def not_triton(x, out, N: tl.constexpr, BLOCK: tl.constexpr):  # noqa: F821
    tl.store(out + tl.no_such_thing(0), 1)  # noqa: F821


backends = {"cuda": Backend(space, build, default_shape="gpu")}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (rng.standard_normal(int(problem["n"])).astype(str(problem["dtype"])),)


def reference(problem: Problem, x: np.ndarray) -> np.ndarray:
    return 2 * x


def flops(problem: Problem) -> float:
    return float(problem["n"])


def bytes_moved(problem: Problem) -> float:
    return 8.0 * int(problem["n"])
