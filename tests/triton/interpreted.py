"""Launches a decorated kernel in Triton's interpreter (TRITON_INTERPRET=1), really timed on the CPU.

``interpreted.py SCENARIO`` prints as JSON what the scenario found; ``EVOTUNE`` and ``XDG_CACHE_HOME`` are the
caller's.
"""

# ruff: noqa: N803
from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from statistics import median
from unittest.mock import patch

import torch
import triton
import triton.language as tl

from evotune.triton import Tolerance, autotune, environment
from evotune.triton.cache import Cache

BENCHED: list[str] = []
SAID: list[str] = []
N = 120


def do_bench(call, quantiles):
    """A wall time for each quantile of three launches; what was timed is counted."""
    BENCHED.append("")
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return [median(times)] * len(quantiles)


class Listen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        SAID.append(record.getMessage())


@triton.jit
def slow_add(x, y, out, n, BLOCK: tl.constexpr, WORK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x + at, mask=at < n) + tl.load(y + at, mask=at < n)
    for _ in tl.static_range(WORK):
        total += 0.0
    tl.store(out + at, total, mask=at < n)


@triton.jit
def faulty(x, y, out, n, BLOCK: tl.constexpr, FAULT: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x + at, mask=at < n) + tl.load(y + at, mask=at < n)
    if FAULT == "raises":
        total = total + tl.no_such_thing(0)
    if FAULT == "wrong":
        total = total + 1.0
    if FAULT != "writes nothing":
        tl.store(out + at, total, mask=at < n)


@triton.jit
def accumulate(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(out + at, mask=at < n) + tl.load(x + at, mask=at < n), mask=at < n)


def grid(meta):
    return (triton.cdiv(meta["n"], meta["BLOCK"]),)


def arguments(n: int = N, dtype=torch.float32):
    x = torch.arange(n, dtype=dtype)
    return x, x + 1, torch.full((n,), -7.0, dtype=dtype)


def configs(*blocks: int, **others):
    return [triton.Config({"BLOCK": block, **others}) for block in blocks]


def launched(kernel, n: int = N, dtype=torch.float32) -> dict:
    """One launch of a kernel that adds: what it cost, and what came of it."""
    before, heard = len(BENCHED), len(SAID)
    x, y, out = arguments(n, dtype)
    kernel[grid](x, y, out, n)
    return {
        "timed": len(BENCHED) - before,
        "right": bool((out == x + y).all()),
        "config": kernel.best_config.all_kwargs(),
        "said": SAID[heard:],
    }


def error_of(function) -> str:
    try:
        function()
    except Exception as error:  # whatever it is, it is reported
        return f"{type(error).__name__}: {error}"
    return "none"


def listed() -> dict:
    kernel = autotune(configs(8, 64, 128, WORK=1), key=["n"], do_bench=do_bench)(slow_add)
    first, again = launched(kernel), launched(kernel)
    other_size, other_dtype = launched(kernel, 100), launched(kernel, N, torch.float64)
    attributes = {
        "is_triton's": isinstance(kernel, triton.runtime.Autotuner),
        "fn": kernel.fn is slow_add,
        "cached": {str(key): config.kwargs["BLOCK"] for key, config in kernel.cache.items()},
        "timings": len(getattr(kernel, "configs_timings", ())),
    }
    return {"first": first, "again": again, "others": [other_size, other_dtype], **attributes}


def added_to() -> dict:
    """The same kernel with one more configuration."""
    return launched(autotune(configs(8, 64, 128, 256, WORK=1), key=["n"], do_bench=do_bench)(slow_add))


def failing() -> dict:
    given = [*configs(8, FAULT="none"), *configs(128, FAULT="raises"), *configs(64, FAULT="none")]
    return launched(autotune(given, key=[], do_bench=do_bench)(faulty))


def hopeless() -> str:
    kernel = autotune(configs(8, 16, FAULT="raises"), key=[], do_bench=do_bench)(faulty)
    return error_of(lambda: launched(kernel))


def wrong() -> dict:
    faults = ["none", "wrong", "writes nothing"]
    given = [c for fault, block in zip(faults, (8, 128, 128), strict=True) for c in configs(block, FAULT=fault)]
    exact = Tolerance(rtol=0.0, atol=0.0)
    return {
        "checked": launched(autotune(given, key=[], do_bench=do_bench, check={"out": exact})(faulty)),
        "unchecked": launched(autotune(given, key=["n"], do_bench=do_bench)(faulty)),
        "default_fails": error_of(
            lambda: launched(
                autotune(configs(8, 16, FAULT="raises"), key=[], do_bench=do_bench, check={"out": exact})(faulty)
            )
        ),
    }


def partly() -> list[float]:
    """What is left of a result's first values beyond those that the kernel writes."""
    check = {"out": Tolerance(rtol=0.0, atol=0.0)}
    kernel = autotune(configs(64, 128, FAULT="none"), key=["n"], do_bench=do_bench, check=check)(faulty)
    x, y, out = arguments()
    kernel[grid](x, y, out, N // 2)
    return sorted(set(out[N // 2 :].tolist()))


def adding() -> dict:
    """A kernel that reads what it writes."""
    check = {"out": Tolerance(rtol=0.0, atol=0.0)}

    def run(**options) -> list[float]:
        kernel = autotune(configs(64, 128), key=[], do_bench=do_bench, cache_results=False, **options)(accumulate)
        x, _, out = arguments()
        kernel[grid](x, out, N)
        return sorted(set((out - x).tolist()))

    return {
        "restored": run(restore_value=["out"], check=check),
        "zeroed": run(reset_to_zero=["out"], check=check),
        "neither": error_of(lambda: run(check=check)),
    }


def heuristics() -> dict:
    tune = autotune(configs(8, 128), key=["n"], do_bench=do_bench)
    work = triton.heuristics({"WORK": lambda args: 1 if args["n"] else 0})
    below, above = tune(work(slow_add)), work(tune(slow_add))
    x, y, out = arguments()
    above[grid](x, y, out, N)
    return {"below": launched(below), "above": bool((out == x + y).all())}


def spaces() -> dict:
    values = {"BLOCK": [8, 16, 32, 64, 128, 256], "WORK": [0, 1, 2, 3], "num_warps": [1, 2, 4, 8]}
    options = {"key": ["n"], "do_bench": do_bench, "max_evaluations": 9, "cache_results": False}
    space = autotune(values, **options)(slow_add)
    many = [
        triton.Config({"BLOCK": b, "WORK": w}, num_warps=n) for b in (8, 32, 128) for w in (0, 1) for n in (1, 4)
    ]
    long_list = autotune(many, **options)(slow_add)
    pruned = {"early_config_prune": lambda configs, named, **_: [c for c in configs if c.kwargs["BLOCK"] <= 16]}
    few = autotune({"BLOCK": [8, 16, 32], "WORK": [0]}, prune_configs_by=pruned, **options)(slow_add)
    return {
        "space": launched(space),
        "configs": len(space.configs),
        "long_list": launched(long_list),
        "pruned": launched(few),
        "few": len(few.configs),
        "no_time": launched(autotune(values, **{**options, "max_seconds": 0.0})(slow_add))["timed"],
    }


def threads() -> dict:
    kernel = autotune(configs(8, 64, 128, WORK=0), key=["n"], do_bench=do_bench, cache_results=False)(slow_add)
    x, y, _ = arguments()
    outs = [torch.zeros_like(x) for _ in range(4)]
    before = len(SAID)
    running = [threading.Thread(target=lambda out=out: kernel[grid](x, y, out, N)) for out in outs]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    # Not what they computed: the interpreter itself is for one thread.
    return {"searches": len(SAID) - before, "known": len(kernel.cache)}


def modes() -> dict:
    def tuned():
        return autotune(configs(8, 128, WORK=2), key=["n"], do_bench=do_bench)(slow_add)

    kernel = tuned()
    found = {}
    for mode in ("off", "cached", "search", "off", "cached"):
        os.environ["EVOTUNE"] = mode
        found.setdefault(mode, []).append(launched(kernel))
    found["cached elsewhere"] = launched(tuned())
    kernel = tuned()
    with patch.object(Cache, "get", autospec=True, side_effect=Cache.get) as reads:
        found["unknown"] = [launched(kernel, 77), launched(kernel, 77), launched(kernel, 78)]
    found["reads"] = reads.call_count
    os.environ["EVOTUNE"] = "serach"
    found["misspelt"] = error_of(lambda: launched(kernel))
    del os.environ["EVOTUNE"]
    untimed = autotune(configs(8, 128, WORK=3), key=["n"])(slow_add)
    found["no do_bench"] = [launched(untimed), launched(untimed)]
    with patch.object(environment, "is_capturing", lambda: True):
        found["capturing"] = launched(tuned(), 99)
    return found


def broken() -> dict:
    """The second configuration breaks the device, as far as this process can tell."""
    given = [*configs(32, FAULT="none"), *configs(128, FAULT="raises"), *configs(64, FAULT="none")]

    def tuned():
        return autotune(given, key=["n"], do_bench=do_bench)(faulty)

    with patch.object(environment, "is_broken", lambda: True):
        error = error_of(lambda: launched(tuned()))
    return {"error": error, "next": launched(tuned())}


if __name__ == "__main__":
    logger = logging.getLogger("evotune")
    logger.addHandler(Listen())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    json.dump({name: globals()[name]() for name in sys.argv[1:]}, sys.stdout)
