"""Helion kernels bound for a GPU that is not there.

Helion asks torch and Triton's driver about the device, when a kernel is bound to arguments: what may be
chosen, and what its compiler recommends, depend on it. Here both are given the answers of a GPU that is
described; nothing can be run. Arguments are torch's fake tensors, which have no memory.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyright: reportPrivateUsage=false, reportArgumentType=false
# (torch, triton and helion are optional, and of what they have of types nothing here depends on.)
from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Gpu:
    """What Helion and Triton ask of a GPU."""

    name: str
    capability: tuple[int, int]
    processors: int
    memory_bytes: int
    l2_bytes: int
    shared_bytes_per_processor: int = 233_472
    shared_bytes_per_block: int = 232_448
    registers_per_processor: int = 65_536


# NVIDIA's data sheets, and CUDA C++ Programming Guide 13, table "Technical specifications per compute capability".
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 80 << 30, 50 << 20)
B200 = Gpu("NVIDIA B200", (10, 0), 148, 180 << 30, 126 << 20)


@contextmanager
def pretended(gpu: Gpu) -> Generator[None, None, None]:
    """While this lasts, torch, Triton and Helion take ``gpu`` for the only one of this machine."""
    import helion._compat as compat
    from triton.runtime import driver

    properties = SimpleNamespace(
        name=gpu.name,
        major=gpu.capability[0],
        minor=gpu.capability[1],
        multi_processor_count=gpu.processors,
        regs_per_multiprocessor=gpu.registers_per_processor,
        shared_memory_per_multiprocessor=gpu.shared_bytes_per_processor,
        shared_memory_per_block_optin=gpu.shared_bytes_per_block,
        shared_memory_per_block=48 << 10,
        total_memory=gpu.memory_bytes,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        L2_cache_size=gpu.l2_bytes,
        uuid="pretended",
    )
    answers: dict[str, Any] = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.get_device_capability": lambda device=None: gpu.capability,
        "torch.cuda.get_device_properties": lambda device=None: properties,
        "torch.cuda.get_device_name": lambda device=None: gpu.name,
        # torch._inductor keeps the function that get_device_properties calls.
        "torch.cuda._get_device_properties": lambda device: properties,
        "torch.version.cuda": "13.0",
    }
    before = driver._active
    with ExitStack() as stack:
        stack.callback(_forget, compat)
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, answer, create=True))
        stack.callback(setattr, driver, "_active", before)
        driver.set_active(_Driver(gpu))
        _forget(compat)
        yield


def fake_arguments(*shapes: tuple[Sequence[int], str]) -> tuple[tuple[Any, ...], Any]:
    """Tensors on a GPU by shape and dtype, and the mode in which kernels are bound to them."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        made = [torch.empty(tuple(shape), dtype=getattr(torch, dtype), device="cuda:0") for shape, dtype in shapes]
    return tuple(made), mode


class _Driver:
    """What Helion asks of Triton's driver."""

    def __init__(self, gpu: Gpu) -> None:
        from triton.backends.compiler import GPUTarget

        major, minor = gpu.capability
        self._target = GPUTarget("cuda", 10 * major + minor, 32)
        facts = {
            "max_shared_mem": gpu.shared_bytes_per_block,
            "max_num_regs": gpu.registers_per_processor,
            "multiprocessor_count": gpu.processors,
            "warpSize": 32,
        }
        self.utils = SimpleNamespace(get_device_properties=lambda device: facts)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0)


def _forget(compat: Any) -> None:
    """Helion remembers what it was told about a device."""
    for function in vars(compat).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
