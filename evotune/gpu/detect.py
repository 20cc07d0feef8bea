"""NVIDIA GPUs of this machine, found without torch and without a CUDA context."""

from __future__ import annotations

import csv
import importlib
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evotune.process import run_killable

_log = logging.getLogger(__name__)

SMI_TIMEOUT_S = 20.0  # a driver that is not loaded yet takes seconds per GPU
PROC = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Gpu:
    """One device. ``capability`` is the compute capability times ten, 90 for an H100."""

    index: int
    uuid: str
    name: str
    capability: int | None = None
    memory_bytes: int | None = None


def detect() -> list[Gpu]:
    """All NVIDIA GPUs, by NVML, else ``nvidia-smi``, else what the driver lists; empty without any.

    ``CUDA_VISIBLE_DEVICES`` is not obeyed: these are the machine's, numbered as ``nvidia-smi`` does.
    """
    ways: tuple[Callable[[], list[Gpu] | None], ...] = (_by_nvml, _by_smi, _by_proc)
    for way in ways:
        if (found := way()) is not None:
            return found
    return []


def _by_nvml() -> list[Gpu] | None:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        _log.debug("NVML does not start: %s", error)
        return None
    try:
        return [_read(nvml, i) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        _log.warning("NVML cannot describe the GPUs: %s", error)
        return None
    finally:
        nvml.nvmlShutdown()


def _read(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    uuid, name = (_text(f(handle)) for f in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
    return Gpu(index, uuid, name, 10 * major + minor, memory)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)  # bytes before version 12


def _by_smi() -> list[Gpu] | None:
    path = shutil.which("nvidia-smi")
    if path is None:
        return None
    query = "--query-gpu=index,uuid,name,compute_cap,memory.total"
    done = run_killable([path, query, "--format=csv,noheader,nounits"], SMI_TIMEOUT_S)
    if done.returncode != 0:
        _log.warning("nvidia-smi fails: %s", done.output.strip()[:200] or "it was killed at its deadline")
        return None
    return parse_smi(done.output)


def parse_smi(output: str) -> list[Gpu]:
    """GPUs from ``nvidia-smi --query-gpu=index,uuid,name,compute_cap,memory.total`` as CSV without units."""
    found: list[Gpu] = []
    for row in csv.reader(output.splitlines(), skipinitialspace=True):
        if len(row) == 5 and row[0].isdigit():
            index, uuid, name, capability, mebibytes = (cell.strip() for cell in row)
            version = re.fullmatch(r"(\d+)\.(\d+)", capability)
            found.append(
                Gpu(
                    int(index),
                    uuid,
                    name,
                    int(version[1]) * 10 + int(version[2]) if version else None,
                    int(mebibytes) << 20 if mebibytes.isdigit() else None,
                )
            )
    return found


def _by_proc() -> list[Gpu] | None:
    """Where containers lack both: one folder for each GPU, named by its PCI address."""
    if not PROC.is_dir():
        return None
    found: list[Gpu] = []
    for i, folder in enumerate(sorted(PROC.iterdir())):
        try:
            lines = (folder / "information").read_text().splitlines()
        except OSError:
            continue
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        found.append(Gpu(i, fields.get("GPU UUID", ""), fields.get("Model", "unknown")))
    return found
