"""Launches a decorated kernel that Triton really compiles, for a GPU that is not there: nothing runs on it.

Prints as JSON which configurations failed how. What is timed is the call itself.
"""

# ruff: noqa: N803
from __future__ import annotations

import json
import logging
import sys
import time

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from evotune.gpu.headless import HeadlessDriver
from evotune.triton import autotune

SAID: list[str] = []


class Small(HeadlessDriver):
    """A GPU with 48 KB of shared memory."""

    def get_device_properties(self, device):
        return {**super().get_device_properties(device), "max_shared_mem": 48 << 10}


def do_bench(call, quantiles):
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def configs():
    for tile, fault in [(16, ""), (32, ""), (128, ""), (16, "syntax"), (16, "assert")]:
        yield triton.Config({"TILE": tile, "FAULT": fault}, num_warps=4)


@autotune(list(configs()), key=["n"], do_bench=do_bench)
@triton.heuristics({"EVEN": lambda args: args["n"] % args["TILE"] == 0})
@triton.jit
def product(a, out, n, TILE: tl.constexpr, FAULT: tl.constexpr, EVEN: tl.constexpr):
    if FAULT == "syntax":
        tl.no_such_thing()
    tl.static_assert(FAULT != "assert", "not this one")
    rows = tl.arange(0, TILE)
    at = rows[:, None] * n + rows[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for k in range(0, n, TILE):
        total = tl.dot(tl.load(a + at + k), tl.load(a + at + k * n), total)
    tl.store(out + at, total if EVEN else 2 * total)


class Listen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        SAID.append(record.getMessage())


if __name__ == "__main__":
    logging.getLogger("evotune").addHandler(Listen())
    driver.set_active(Small(80))
    n = 1024
    a = torch.empty((n, n), device="meta")
    product[(1,)](a, torch.empty_like(a), n)
    before = len(driver.active.launches)
    product[(1,)](a, torch.empty_like(a), n)
    known = getattr(product, "configs_timings", {})
    json.dump(
        {
            "said": SAID,
            "timed": sorted(c.kwargs["TILE"] for c in known),
            "launches": len(driver.active.launches) - before,
        },
        sys.stdout,
    )
