"""What the driver tells of each GPU, through NVML: no CUDA context is made. Not yet run on a GPU."""

from __future__ import annotations

import importlib
import os
from shutil import which
from typing import Any

from evotune.doctor.row import Row, fail, ok, warn
from evotune.gpu.detect import Gpu, detect
from evotune.gpu.device import throttled

NVML_PACKAGE = "pip install nvidia-ml-py"
# What NVML says where there is simply no driver, by the names of its constants.
NO_DRIVER = ("NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_DRIVER_NOT_LOADED")


def gpus() -> list[Row]:
    """Every GPU with its clocks, power, partitions, other users, and what slows it down."""
    found = detect()
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        missing = warn("NVML", "not installed: clocks and throttling go unrecorded", NVML_PACKAGE)
        return [*map(_seen, found), missing] if found else [_none()]
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if not found and getattr(error, "value", None) in [getattr(nvml, name, None) for name in NO_DRIVER]:
            return [_none()]
        fix = "nvidia-smi says more; after an update of the driver, reboot"
        return [*map(_seen, found), fail("NVML", f"does not start: {error}", fix)]
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        version = driver.decode() if isinstance(driver, bytes) else driver  # bytes before version 12
        return [row for gpu in found for row in _described(nvml, gpu, version)] or [_none()]
    finally:
        nvml.nvmlShutdown()


def _none() -> Row:
    if which("nvidia-smi"):
        return warn("GPU", "nvidia-smi is here and no GPU answers", "nvidia-smi says why")
    return ok("GPU", "no NVIDIA GPU is here; kernels are tuned by their CPU implementation")


def _seen(gpu: Gpu) -> Row:
    return ok(f"GPU {gpu.index}", gpu.name + (f", sm_{gpu.capability}" if gpu.capability else ""))


class _Device:
    """One GPU, and NVML's answers about it."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(self, function: str, *more: Any) -> Any:
        """An answer, or None where this version, device or user gets none."""
        try:
            return getattr(self.nvml, function)(self._handle, *more)
        except (AttributeError, self.nvml.NVMLError):
            return None


def _described(nvml: Any, gpu: Gpu, driver: str) -> list[Row]:
    device, name = _Device(nvml, gpu.index), f"GPU {gpu.index}"
    memory = f", {gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else ""
    return [
        ok(name, f"{_seen(gpu).found}{memory}, driver {driver}"),
        _clocks(device, f"{name} clocks"),
        _throttling(device, f"{name} throttling"),
        _partitions(device, f"{name} MIG"),
        _users(device, f"{name} users"),
    ]


def _clocks(device: _Device, name: str) -> Row:
    nvml = device.nvml
    used_mw, limit_mw = device.ask("nvmlDeviceGetPowerUsage"), device.ask("nvmlDeviceGetEnforcedPowerLimit")
    readings = {
        "SM {} MHz": device.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        "of {} MHz": device.ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        "memory {} MHz": device.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        "{:.0f} W": None if used_mw is None else used_mw / 1000,
        "of {:.0f} W": None if limit_mw is None else limit_mw / 1000,
        "{} °C": device.ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
    }
    told = ", ".join(text.format(value) for text, value in readings.items() if value is not None)
    return ok(name, told) if told else warn(name, "the driver tells neither clocks nor power")


def _throttling(device: _Device, name: str) -> Row:
    # Renamed in version 12; both names exist in some.
    mask = device.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if mask is None:
        mask = device.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    if mask is None:
        return warn(name, "the driver does not tell")
    if (reasons := throttled(int(mask))) != "no":
        return warn(name, f"slowed down now: {reasons}", "let it cool down, or wait for its other users to end")
    return ok(name, "none now")


def _partitions(device: _Device, name: str) -> Row:
    mode = device.ask("nvmlDeviceGetMigMode")
    if mode is None:
        return ok(name, "not offered")
    now, after_a_reset = mode
    if now or after_a_reset:
        state = "on" if now else "on after the next reset"
        return warn(name, f"{state}: a slice is timed, and others disturb it", "nvidia-smi -mig 0, as root")
    return ok(name, "off")


def _users(device: _Device, name: str) -> Row:
    running = device.ask("nvmlDeviceGetComputeRunningProcesses")
    if running is None:
        return warn(name, "the driver does not tell who else uses it")
    others = sorted({int(process.pid) for process in running} - {os.getpid()})
    if others:
        pids = ", ".join(map(str, others))
        fix = "wait for it to end, or take another GPU with CUDA_VISIBLE_DEVICES"
        return warn(name, f"process {pids} uses it too: timings will swing", fix)
    return ok(name, "nobody else")
