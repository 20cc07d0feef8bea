"""GPUs found by each way there is, one at a time; this machine's own are not looked at."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from evotune.gpu import detect as module
from evotune.gpu.detect import Gpu, detect, parse_smi, visible

H100 = Gpu(0, "GPU-11111111-2222", "NVIDIA H100 80GB HBM3", 90, 81559 << 20, 132, "580.65.06", "13.0")
A100, B200 = Gpu(1, "GPU-11aa", "NVIDIA A100"), Gpu(2, "GPU-22bb", "NVIDIA B200")


class NVMLError(Exception):
    pass


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")


def with_smi(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def with_nvml(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_DEVICE_MIG_ENABLE=1,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: H100.driver,
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetCudaComputeCapability=lambda h: (9, 0),
        nvmlDeviceGetMemoryInfo=lambda h: SimpleNamespace(total=H100.memory_bytes),
        nvmlDeviceGetUUID=lambda h: H100.uuid,
        nvmlDeviceGetName=lambda h: H100.name.encode(),
        nvmlDeviceGetNumGpuCores=lambda h: 132 * 128,
        nvmlDeviceGetMigMode=fail,
        nvmlDeviceGetAttributes_v2=fail,
    )
    fake.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, "pynvml", fake)


def fail(*_: object) -> None:
    raise NVMLError("not supported")


def test_without_a_driver_there_is_no_gpu() -> None:
    assert detect() == []


def test_nvml_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch)
    assert detect() == [H100]


def test_what_an_old_driver_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = ("nvmlDeviceGetNumGpuCores", "nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2")
    with_nvml(monkeypatch, **dict.fromkeys(silent, fail))
    assert detect() == [replace(H100, multiprocessors=None, driver=None, cuda=None)]


def test_a_gpu_in_slices_is_its_slices_with_their_own_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    def slice_of(handle: int, i: int) -> str:
        return f"MIG-{i}" if i in (0, 2) else fail()

    with_nvml(
        monkeypatch,
        nvmlDeviceGetMigMode=lambda h: [1, 1],
        nvmlDeviceGetMaxMigDeviceCount=lambda h: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=slice_of,
        nvmlDeviceGetUUID=lambda h: h,
        nvmlDeviceGetNumGpuCores=fail,
        nvmlDeviceGetAttributes_v2=lambda h: SimpleNamespace(multiprocessorCount=16),
    )
    found = detect()
    assert [(g.index, g.uuid, g.multiprocessors, g.is_slice) for g in found] == [
        (0, "MIG-0", 16, True),
        (0, "MIG-2", 16, True),
    ]
    assert not H100.is_slice


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (None, [H100, A100, B200]),
        ("", []),
        ("-1", []),
        ("2,0", [B200, H100]),
        ("GPU-22", [B200]),
        ("GPU-11aa, 0", [A100, H100]),
        ("0,7,1", [H100]),  # the first that is no GPU ends the list
        ("1,GPU-11aa,0", [A100]),  # so does one that is there already
    ],
)
def test_cuda_visible_devices_is_obeyed_as_cuda_does(wanted: str | None, left: list[Gpu]) -> None:
    assert visible([H100, A100, B200], wanted) == left


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetName"])
def test_nvidia_smi_is_asked_where_nvml_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, function: str
) -> None:
    with_nvml(monkeypatch, **{function: fail})
    with_smi(tmp_path, f'echo "0, {H100.uuid}, {H100.name}, 9.0, 81559, {H100.driver}"')
    assert detect() == [replace(H100, multiprocessors=None, cuda=None)]


def test_what_nvidia_smi_does_not_know_is_none() -> None:
    assert parse_smi("3, GPU-x, NVIDIA Y, [N/A], [N/A], [N/A]\n") == [Gpu(3, "GPU-x", "NVIDIA Y")]
    assert parse_smi("NVIDIA-SMI has failed because it could not communicate\n") == []
    assert [g.capability for g in parse_smi("0, a, b, 10.0, 1, 5\n1, a, b, 12.1, 1, 5")] == [100, 121]


def test_a_broken_nvidia_smi_leaves_what_the_driver_lists(tmp_path: Path) -> None:
    with_smi(tmp_path, "exit 9")
    folder = tmp_path / "proc" / "0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA B200\nGPU UUID: \t GPU-7\n")
    assert detect() == [Gpu(0, "GPU-7", "NVIDIA B200")]


def test_a_hanging_nvidia_smi_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SMI_TIMEOUT_S", 0.3)
    with_smi(tmp_path, "exec /bin/sleep 60")
    assert detect() == []
