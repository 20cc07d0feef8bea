"""A ``cuda`` backend in plain torch, out = 2 x + z, that runs on any device, and what a kernel can do wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from cpu_device import STATE

from evotune.kernel import Backend, Problem, Tolerance
from evotune.space import Config, ConfigSpace

name = "saxpy"
shapes: Mapping[str, Problem] = {
    "default": {"n": 1024, "dtype": "float32"},
    "half": {"n": 1024, "dtype": "float16"},
    "int": {"n": 1024, "dtype": "int32"},
    "nan": {"n": 1024, "dtype": "float32", "fault": "nan"},
    "double": {"n": 1024, "dtype": "float16", "fault": "double"},
    "raises": {"n": 1024, "dtype": "float32", "fault": "raises"},
    "slow": {"n": 1024, "dtype": "float32", "fault": "slow"},
    "unknown": {"n": 1024, "dtype": "float64"},
}
tolerance = {"float32": Tolerance(1e-6, 1e-6), "float16": Tolerance(1e-3, 1e-3), "int32": Tolerance(0, 0)}
VARIANTS = [
    *["right", "slower", "nothing", "half", "one_off", "nan", "mutates", "beyond", "by_address", "last_cached"],
    *["build_raises", "refused", "out_of_resources", "fault", "fault_if_used", "hang", "exit", "abort_if_used"],
]


class OutOfResources(Exception):
    pass


def space(problem: Problem) -> ConfigSpace:
    return ConfigSpace.from_dict({"variant": VARIANTS})


def build(config: Config, problem: Problem) -> Any:
    variant = str(config["variant"])
    if variant == "build_raises":
        raise ValueError("no such tile")
    seen: dict[int, Any] = {}

    def right(x: Any, z: Any, out: Any) -> None:
        out.copy_(2 * x + z)

    def launch(x: Any, z: Any, out: Any) -> None:  # noqa: PLR0912
        match variant:
            case "slower":
                time.sleep(2e-3)
                right(x, z, out)
            case "nothing":
                pass
            case "half":
                right(x[::2], z[::2], out[::2])
            case "one_off":
                right(x, z, out)
                out[17] += 1
            case "nan":
                right(x, z, out)
                out[3] = float("nan")
            case "mutates":
                right(x, z, out)
                x[5] += 1
            case "beyond":
                right(x, z, out)
                out.as_strided((len(out) + 1,), (1,), out.storage_offset())[-1] = 1
            case "by_address":
                if x.data_ptr() not in seen:
                    seen[x.data_ptr()] = 2 * x + z
                out.copy_(seen[x.data_ptr()])
            case "last_cached":
                if not seen:
                    seen[0] = 2 * x + z
                out.copy_(seen[0])
            case "refused":
                raise RuntimeError("invalid argument")
            case "out_of_resources":
                raise OutOfResources("shared memory, Required: 262144, Hardware limit: 232448")
            case "fault":
                STATE["fault"] = True
            case "fault_if_used":
                STATE["fault"] = bool(STATE.get("used"))
                right(x, z, out)
            case "hang":
                time.sleep(60)
            case "exit":
                os._exit(3)
            case "abort_if_used":
                if STATE.get("used"):
                    os.abort()
                right(x, z, out)
            case _:
                STATE["used"] = True
                right(x, z, out)

    return launch


backends = {"cuda": Backend(space, build)}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    n, dtype = int(problem["n"]), str(problem["dtype"])
    if problem.get("fault") == "slow":
        time.sleep(0.15)
    if dtype == "int32":
        return tuple(rng.integers(-1000, 1000, n, dtype=np.int32) for _ in range(2))
    if problem.get("fault") == "double":
        return tuple(rng.standard_normal(n) for _ in range(2))
    return tuple(rng.standard_normal(n).astype(dtype) for _ in range(2))


def reference(problem: Problem, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    if problem.get("fault") == "raises":
        return x * (1 // 0)
    return x / np.float32(0) if problem.get("fault") == "nan" else 2 * x + z


def flops(problem: Problem) -> float:
    return 2.0 * int(problem["n"])


def bytes_moved(problem: Problem) -> float:
    return 12.0 * int(problem["n"])
