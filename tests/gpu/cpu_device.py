"""The worker's entry with this machine's CPU in the place of a GPU: real tensors and times, no CUDA."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from evotune.gpu.worker import open_on

STATE: dict[str, Any] = {}
"""What kernels do to the device: ``fault`` breaks it for good."""


class CpuDevice:
    torch_device = "cpu"

    def __init__(self) -> None:
        self.is_broken = False

    def time_ms(self, launches: Sequence[Callable[[], None]]) -> list[float]:
        out: list[float] = []
        for launch in launches:
            started = time.perf_counter()
            launch()
            out.append((time.perf_counter() - started) * 1e3)
        self.synchronize()
        return out

    def synchronize(self) -> None:
        self.is_broken |= STATE.pop("fault", False)
        if self.is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def readings(self) -> dict[str, float | str]:
        return {"clock_mhz": 1980.0, "throttled": "no"}


def open_session(setup: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if os.environ.get("NVIDIA_FAULT") == "no_gpu":
        raise RuntimeError("no device")
    return open_on(CpuDevice(), setup)
