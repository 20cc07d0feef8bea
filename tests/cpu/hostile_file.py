"""A kernel file, vector addition, whose functions fail in the way that its shape names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evotune.kernel import Backend, CSource, Problem, Tolerance
from evotune.space import Config, ConfigSpace

name = "hostile"
FAULTS = [
    "hang in build",
    "exit in build",
    "raise in build",
    "hang in inputs",
    "raise in inputs",
    "raise in reference",
    "raise in flops",
    "double in inputs",
    "double in reference",
]
shapes: Mapping[str, Problem] = {
    fault.replace(" ", "_"): {"n": 64, "dtype": "float32", "fault": fault} for fault in ["default", *FAULTS]
}
tolerance = {"float32": Tolerance(0, 0)}
TEXT = "void evotune_kernel(const float *x, float *out) { for (int i = 0; i < 64; i++) out[i] = 2 * x[i]; }"


def fail(where: str, problem: Problem) -> None:
    """Do what the shape says, if it is for this function."""
    if problem["fault"] == f"hang in {where}":
        Path(__file__).with_suffix(".waits").unlink(missing_ok=True)  # says that it hangs from here on
        while True:
            time.sleep(1)
    if problem["fault"] == f"exit in {where}":
        os._exit(4)
    if problem["fault"] == f"raise in {where}":
        raise ValueError("no such tile")


def space(problem: Problem) -> ConfigSpace:
    return ConfigSpace.from_dict({"opt": ["-O1", "-O2", "-O3"]})


def build(config: Config, problem: Problem) -> CSource:
    if config["opt"] != "-O1":
        fail("build", problem)
    return CSource(TEXT, (str(config["opt"]),))


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Any, ...]:
    fail("inputs", problem)
    if problem["fault"] == "double in inputs":
        return (rng.standard_normal(64),)
    return (rng.standard_normal(64, dtype=np.float32),)


def reference(problem: Problem, x: Any) -> Any:
    fail("reference", problem)
    return 2 * x if problem["fault"] != "double in reference" else 2.0 * x.astype(float)


def flops(problem: Problem) -> float:
    fail("flops", problem)
    return 64.0


def bytes_moved(problem: Problem) -> float:
    return 512.0


backends = {"cpu": Backend(space, build, "default")}
