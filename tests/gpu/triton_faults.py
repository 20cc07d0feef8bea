"""out = 2 x, and what a kernel can do wrong on a real GPU."""

# ruff: noqa: N803, F821
from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from evotune.kernel import Backend, Problem, Tolerance
from evotune.space import Config, ConfigSpace

name = "faults"
shapes: Mapping[str, Problem] = {
    "default": {"n": 1 << 20, "dtype": "float32"},
    "large": {"n": 1 << 27, "dtype": "float32"},
}
tolerance = {"float32": Tolerance(0, 0)}
VARIANTS = [
    *["right", "slow", "garbage", "half", "nothing", "changes_input", "remembers", "overruns", "faults", "hangs"],
]


def space(problem: Problem) -> ConfigSpace:
    return ConfigSpace.from_dict({"variant": VARIANTS})


def build(config: Config, problem: Problem) -> Any:
    globals()["tl"] = import_module("triton.language")
    kernel, hang = (import_module("triton").jit(f) for f in (scale, forever))
    variant, n = config["variant"], int(problem["n"])
    options = {"N": n, "BLOCK": 1024}
    grid = (-(-n // 1024),)
    seen: dict[int, Any] = {}

    def launch(x: Any, out: Any) -> None:
        if variant == "nothing":
            out = import_module("torch").empty_like(out)
        if variant == "hangs":
            hang[(1,)](out)
        elif variant == "faults":
            kernel[grid](x, out, FACTOR=2, OFFSET=1 << 40, **options)
        elif variant == "overruns":
            kernel[(grid[0],)](x, out, FACTOR=2, OFFSET=16, **options)
        elif variant == "half":
            kernel[(grid[0] // 2,)](x, out, FACTOR=2, OFFSET=0, **options)
        elif variant == "remembers" and x.data_ptr() in seen:
            out.copy_(seen[x.data_ptr()])
        else:
            factor = 3 if variant == "garbage" else 2
            for _ in range(20 if variant == "slow" else 1):
                kernel[grid](x, out, FACTOR=factor, OFFSET=0, **options)
        if variant == "changes_input":
            x[0] = 0
        if variant == "remembers":
            seen[x.data_ptr()] = out.clone()

    return launch


def scale(x, out, N: tl.constexpr, FACTOR: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at + OFFSET, tl.load(x + at, mask=at < N) * FACTOR, mask=at < N)


def forever(out):
    while tl.load(out, volatile=True) != 1.5:  # NaN to begin with
        pass


backends = {"cuda": Backend(space, build)}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (rng.standard_normal(int(problem["n"]), dtype=np.float32),)


def reference(problem: Problem, x: np.ndarray) -> np.ndarray:
    return 2 * x


def flops(problem: Problem) -> float:
    return float(problem["n"])


def bytes_moved(problem: Problem) -> float:
    return 8.0 * int(problem["n"])
