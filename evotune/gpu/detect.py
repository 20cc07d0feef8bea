"""NVIDIA GPUs of this machine, found without torch and without a CUDA context."""

from __future__ import annotations

import csv
import importlib
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evotune.gpu.occupancy import MULTIPROCESSORS
from evotune.process import run_killable

_log = logging.getLogger(__name__)

SMI_TIMEOUT_S = 20.0  # a driver that is not loaded yet takes seconds per GPU
PROC = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Gpu:
    """One device, or a slice of one (MIG). ``capability`` is the compute capability times ten, 90 for an
    H100; ``driver`` and ``cuda`` are versions, the latter the newest that the driver speaks."""

    index: int
    uuid: str
    name: str
    capability: int | None = None
    memory_bytes: int | None = None
    multiprocessors: int | None = None
    driver: str | None = None
    cuda: str | None = None

    @property
    def is_slice(self) -> bool:
        """Whether it is a part of a GPU, with a share of its multiprocessors and of its memory."""
        return self.uuid.startswith("MIG-")


def detect() -> list[Gpu]:
    """All NVIDIA GPUs, by NVML, else ``nvidia-smi``, else what the driver lists; empty without any.

    They are the machine's, numbered as ``nvidia-smi`` does; see :func:`visible`.
    """
    ways: tuple[Callable[[], list[Gpu] | None], ...] = (_by_nvml, _by_smi, _by_proc)
    for way in ways:
        if (found := way()) is not None:
            return found
    return []


def visible(gpus: Sequence[Gpu], wanted: str | None) -> list[Gpu]:
    """Those that ``CUDA_VISIBLE_DEVICES`` leaves, in its order; all if it is None.

    As CUDA reads it: indices, or the beginnings of UUIDs, with commas between; the first that is no
    GPU ends the list. Indices are ``nvidia-smi``'s, as CUDA's are too where all GPUs are of one model
    or ``CUDA_DEVICE_ORDER`` is ``PCI_BUS_ID``; that of a GPU in slices stands for the first of them.
    """
    if wanted is None:
        return list(gpus)
    out: list[Gpu] = []
    for entry in map(str.strip, wanted.split(",")):
        found = next((g for g in gpus if entry and (str(g.index) == entry or g.uuid.startswith(entry))), None)
        if found is None or found in out:
            break
        out.append(found)
    return out


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
        return [gpu for i in range(nvml.nvmlDeviceGetCount()) for gpu in _read(nvml, i)]
    except nvml.NVMLError as error:
        _log.warning("NVML cannot describe the GPUs: %s", error)
        return None
    finally:
        nvml.nvmlShutdown()


def _read(nvml: Any, index: int) -> list[Gpu]:
    """A GPU, or its slices if it is in slices; those were not yet seen on a machine that has any."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    capability = 10 * major + minor
    mode = _answer(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode == nvml.NVML_DEVICE_MIG_ENABLE:
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
        handles = [
            _answer(nvml, lambda i=i: nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i)) for i in range(count)
        ]
        return [_described(nvml, h, index, capability) for h in handles if h is not None]
    return [_described(nvml, handle, index, capability)]


def _described(nvml: Any, handle: Any, index: int, capability: int) -> Gpu:
    uuid, name = (_text(f(handle)) for f in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
    sm = MULTIPROCESSORS.get(capability)
    cores = _answer(nvml, lambda: nvml.nvmlDeviceGetNumGpuCores(handle)) if sm else None
    # Only slices have attributes, and they have no count of cores.
    multiprocessors = _answer(nvml, lambda: nvml.nvmlDeviceGetAttributes_v2(handle).multiprocessorCount)
    driver = _answer(nvml, nvml.nvmlSystemGetDriverVersion)
    cuda = _answer(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    return Gpu(
        index,
        uuid,
        name,
        capability,
        int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        cores // sm.cores if sm and cores else multiprocessors,
        _text(driver) if driver else None,
        f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
    )


def _answer(nvml: Any, ask: Callable[[], Any]) -> Any:
    """What NVML says; None where this driver or this device does not tell."""
    try:
        return ask()
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)  # bytes before version 12


def _by_smi() -> list[Gpu] | None:
    path = shutil.which("nvidia-smi")
    if path is None:
        return None
    query = "--query-gpu=index,uuid,name,compute_cap,memory.total,driver_version"
    done = run_killable([path, query, "--format=csv,noheader,nounits"], SMI_TIMEOUT_S)
    if done.returncode != 0:
        _log.warning("nvidia-smi fails: %s", done.output.strip()[:200] or "it was killed at its deadline")
        return None
    return parse_smi(done.output)


def parse_smi(output: str) -> list[Gpu]:
    """GPUs from ``nvidia-smi --query-gpu=index,uuid,name,compute_cap,memory.total,driver_version`` as CSV
    without units."""
    found: list[Gpu] = []
    for row in csv.reader(output.splitlines(), skipinitialspace=True):
        if len(row) == 6 and row[0].isdigit():
            index, uuid, name, capability, mebibytes, driver = (cell.strip() for cell in row)
            version = re.fullmatch(r"(\d+)\.(\d+)", capability)
            found.append(
                Gpu(
                    int(index),
                    uuid,
                    name,
                    int(version[1]) * 10 + int(version[2]) if version else None,
                    int(mebibytes) << 20 if mebibytes.isdigit() else None,
                    driver=driver if driver[:1].isdigit() else None,
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
