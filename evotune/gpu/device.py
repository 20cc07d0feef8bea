"""The GPU as the worker sees it: a clock, a cache to empty, and sensors. Not yet run on a GPU."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch is optional.)
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from evotune.errors import DeviceError
from evotune.kernel import Problem

MIN_FLUSH_BYTES = 256 << 20  # as triton.testing.do_bench
# NVML's ClocksEventReasons that slow a kernel down; idle and the user's own settings are none.
THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


class Device(Protocol):
    """What checking and timing need of a device."""

    torch_device: str

    def time_ms(self, launches: Sequence[Callable[[], None]]) -> list[float]:
        """Time of each launch, in their order, each with nothing of its data in the cache."""
        ...

    def synchronize(self) -> None:
        """Wait for everything launched; raises what went wrong in it, at every later call too if the
        device cannot be used by this process again."""
        ...

    def readings(self) -> dict[str, float | str]:
        """Clocks, power and the like, now."""
        ...


class CudaDevice:
    """The only GPU that this process sees; ``uuid`` finds its sensors, ``facts`` are what CUDA says of it."""

    torch_device = "cuda:0"

    def __init__(self, uuid: str) -> None:
        import torch

        self._cuda = torch.cuda
        found = torch.cuda.get_device_properties(0)
        self.facts: Problem = {
            "capability": 10 * found.major + found.minor,
            "multiprocessors": found.multi_processor_count,
        }
        size = max(MIN_FLUSH_BYTES, 2 * found.L2_cache_size)
        self._flush = torch.empty(size, dtype=torch.uint8, device=self.torch_device)
        self._sensors = Sensors(uuid)

    def time_ms(self, launches: Sequence[Callable[[], None]]) -> list[float]:
        pairs = [[self._cuda.Event(enable_timing=True) for _ in range(2)] for _ in launches]
        for launch, (start, end) in zip(launches, pairs, strict=True):
            # Also keeps the device busy for longer than a launch takes, so that none is waited for.
            self._flush.zero_()
            start.record()
            launch()
            end.record()
        self._cuda.synchronize()
        times = [float(start.elapsed_time(end)) for start, end in pairs]
        if any(ms <= 0 for ms in times):
            raise DeviceError(f"CUDA events give times of {min(times)} ms; this device's clock cannot be trusted")
        return times

    def synchronize(self) -> None:
        self._cuda.synchronize()

    def readings(self) -> dict[str, float | str]:
        return self._sensors.read()


class Sensors:
    """NVML's readings of one GPU; none where the module or the permission is missing."""

    def __init__(self, uuid: str) -> None:
        self._nvml: Any = None
        if importlib.util.find_spec("pynvml"):
            nvml: Any = importlib.import_module("pynvml")
            try:
                nvml.nvmlInit()
                self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
                self._nvml = nvml
            except nvml.NVMLError:
                pass

    def read(self) -> dict[str, float | str]:
        """``clock_mhz``, ``memory_clock_mhz``, ``power_w``, ``temperature_c``, ``throttled``; those there are."""
        nvml = self._nvml
        if nvml is None:
            return {}
        # Renamed in version 12; both names exist in some.
        reasons = (
            getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
            or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        )
        questions: dict[str, Callable[[Any], float | str]] = {
            "clock_mhz": lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_MEM),
            "power_w": lambda h: nvml.nvmlDeviceGetPowerUsage(h) / 1000,
            "temperature_c": lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU),
            "throttled": lambda h: throttled(reasons(h)),
        }
        out: dict[str, float | str] = {}
        for name, ask in questions.items():
            try:
                out[name] = ask(self._handle)
            except nvml.NVMLError:  # not supported by this device, or not allowed here
                continue
        return out


def throttled(reasons: int) -> str:
    """What slows the clocks down, of NVML's bit mask, or ``no``."""
    return ", ".join(name for bit, name in THROTTLE_REASONS.items() if reasons & bit) or "no"
