"""A ``cuda`` backend in plain torch, out = 2 x, that takes as long as its configuration says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from evotune.kernel import Backend, Problem, Tolerance
from evotune.space import Config, ConfigSpace

name = "naps"
shapes: Mapping[str, Problem] = {"default": {"n": 64, "dtype": "float32"}}
tolerance = {"float32": Tolerance(0, 0)}


def space(problem: Problem) -> ConfigSpace:
    """The device's facts are there when the space is made."""
    naps_us = [int(problem["multiprocessors"]) + 100 * i for i in range(5)]
    return ConfigSpace.from_dict(
        {"NAP_US": naps_us, "EVEN": [False, True]}, default={"NAP_US": naps_us[-1], "EVEN": True}
    )


def build(config: Config, problem: Problem) -> Any:
    if int(problem["capability"]) != 90:
        raise ValueError("this is for sm_90")
    nap_s = (float(config["NAP_US"]) + 50 * bool(config["EVEN"])) / 1e6

    def launch(x: Any, out: Any) -> None:
        time.sleep(nap_s)
        out.copy_(2 * x)

    return launch


backends = {"cuda": Backend(space, build)}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    assert "capability" not in problem, "inputs and references are the same on every device"
    return (rng.standard_normal(int(problem["n"])).astype("float32"),)


def reference(problem: Problem, x: np.ndarray) -> np.ndarray:
    return 2 * x


def flops(problem: Problem) -> float:
    return float(problem["n"])


def bytes_moved(problem: Problem) -> float:
    return 8.0 * int(problem["n"])
