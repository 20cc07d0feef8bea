"""The child process that compiles Triton kernels for a GPU that is not there.

Triton asks its *driver* which architecture to compile for, and hands it the binary to load and launch.
:class:`HeadlessDriver` names any architecture, keeps the binary, and launches nothing. So the function
that a kernel's ``build`` returns runs as it is, with tensors that have shapes but no memory (torch's
``meta`` device), and everything that it launches has been compiled by Triton itself.

What a ``cuda`` backend must do for this to work: launch Triton kernels from Python, compute grids and
scratch sizes from the problem or from shapes and strides, and allocate with ``device=x.device``. It
must not read a tensor's values, use ``@triton.autotune``, or ask ``torch.cuda`` about the device: the
problem says what it may know of it.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false
# (torch and triton are optional, and of what triton has of types nothing here depends on. Where it is
# missing, pyright takes evotune.triton for it.)
from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from evotune.errors import Rejected
from evotune.gpu.sass import instruction_mix, resources
from evotune.kernel import Array, LoadedKernel, Problem, load_kernel

REASON_CHARS = 400
CHEAP_FLOPS = 1e8  # a reference of this size takes milliseconds
CUOBJDUMP_TIMEOUT_S = 120

Shape = tuple[tuple[int, ...], str]
"""Of one array: its sizes, and the name of its dtype in numpy and torch."""


@dataclass(frozen=True)
class Launch:
    """One launch that did not happen. ``metadata`` is Triton's, ``cubin`` the binary."""

    metadata: Any
    cubin: bytes


class HeadlessDriver:
    """What Triton asks of a driver, for an architecture such as 90 without a device of it.

    Works with Triton 3.6 to 3.9; see ``triton.backends.driver``.
    """

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.launches: list[Launch] = []
        self.utils = self
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch  # Triton keeps what it has compiled by device  # pyright: ignore[reportReturnType]

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        raise TypeError("the kernel times itself (@triton.autotune); give its configurations to evotune instead")

    def get_device_properties(self, device: object) -> dict[str, int]:
        # No limit: a kernel that is too large is to be described first and refused afterwards.
        return {"max_shared_mem": sys.maxsize, "max_num_regs": sys.maxsize, "warpSize": 32}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: object) -> tuple[int, bytes, int, int, int]:
        """Module, function, registers, spills, and threads that the function could have."""
        return 0, cubin, 0, 0, sys.maxsize

    def unload_module(self, module: object) -> None:
        pass

    def launcher_cls(self, source: object, metadata: Any) -> Callable[..., None]:
        def launch(x: int, y: int, z: int, stream: object, cubin: bytes, *rest: object) -> None:
            self.launches.append(Launch(metadata, cubin))

        return launch


def open_session(setup: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Entry of the compiling process.

    Args:
        setup: ``kernel`` (path) and ``problem``.
    """
    import_module("triton")  # takes seconds, which belong to no configuration
    import_module("torch")
    kernel, problem = load_kernel(Path(setup["kernel"])), setup["problem"]
    build = kernel.backend("cuda").build

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        """Answers ``{"arguments"}`` or, given ``arguments``, ``config`` and the ``device``'s facts, what
        became of it or a failure."""
        if "config" not in request:
            return {"arguments": argument_shapes(kernel, problem)}
        started = time.perf_counter()
        try:
            known, arch = {**problem, **request["device"]}, request["device"]["capability"]
            launches = run_headless(build, request["config"], known, request["arguments"], arch)
            facts = describe(launches)
        except Rejected as rejected:
            facts = {"stage": rejected.stage, "reason": rejected.reason}
        return {**facts, "compile_s": time.perf_counter() - started}

    return handle


def run_headless(
    build: Callable[..., Any], config: Any, problem: Problem, arguments: Sequence[Shape], arch: int
) -> list[Launch]:
    """What a configuration launches, compiled.

    Raises:
        Rejected: At stage ``build``, ``compile``, or ``limits`` (Triton itself refuses too much tensor memory).
    """
    import torch
    from triton.runtime import driver

    try:
        launch = build(config, problem)
    except Exception as error:  # the user's file may raise anything
        raise Rejected("build", _said(error)) from error
    tensors = [torch.empty(tuple(shape), dtype=getattr(torch, dtype), device="meta") for shape, dtype in arguments]
    headless = _driver(arch)
    headless.launches.clear()
    driver.set_active(headless)  # pyright: ignore[reportArgumentType]
    try:
        launch(*tensors)
    except (OSError, MemoryError):  # the machine's fault, perhaps not there next time
        raise
    except Exception as error:  # so may the launch, and Triton raises many kinds
        stage = "limits" if type(error).__name__ == "OutOfResources" else "compile"
        raise Rejected(stage, _said(error)) from error
    if not headless.launches:
        raise Rejected("build", "the function that build() returned launched no Triton kernel")
    return list(headless.launches)


@lru_cache
def _driver(arch: int) -> HeadlessDriver:
    """The same one each time: what Triton keeps in memory of a kernel includes its launcher."""
    return HeadlessDriver(arch)


def describe(launches: Sequence[Launch]) -> dict[str, Any]:
    """Facts of all launches together: resources are those of the largest kernel, code is summed.

    ``blocks`` has one entry for each different kernel, with what occupancy depends on, and ``kernels`` its
    folder in Triton's cache.
    """
    from triton.runtime.cache import get_cache_manager

    distinct = {launch.metadata.hash: launch for launch in launches}
    blocks: list[dict[str, int]] = []
    code: dict[str, int] = {"cubin_bytes": 0, "launches": len(launches)}
    stack_bytes = 0
    for launch in distinct.values():
        text = disassemble(launch.cubin)
        used = resources(text)
        stack_bytes = max(stack_bytes, used["stack_bytes"])
        blocks.append({
            "threads": launch.metadata.num_warps * 32,
            "registers": used["registers"],
            "shared_bytes": launch.metadata.shared,
            "tmem_columns": getattr(launch.metadata, "tmem_size", None) or 0,
        })  # fmt: skip
        code["cubin_bytes"] += len(launch.cubin)
        for name, count in instruction_mix(text).items():
            code[name] = code.get(name, 0) + count
    largest = {name: max(block[name] for block in blocks) for name in blocks[0]}
    # Who replaces Triton's cache (TRITON_CACHE_MANAGER) need not keep files.
    folders = [getattr(get_cache_manager(name), "cache_dir", None) for name in distinct]
    kernels = [Path(folder).name for folder in folders if folder]
    return {"facts": {**largest, "stack_bytes": stack_bytes, **code}, "blocks": blocks, "kernels": kernels}


def disassemble(cubin: bytes) -> str:
    """Resource usage and SASS of a binary, by the tool that comes with Triton."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=CUOBJDUMP_TIMEOUT_S, check=True)
    return done.stdout + done.stderr


def argument_shapes(kernel: LoadedKernel, problem: Problem) -> list[Shape]:
    """Shapes of the inputs, then of the outputs.

    The reference may need minutes at the size of a GPU's problem, so it is run on the kernel's small
    shapes: an axis of an output that is there as long as an axis of an input is so here too. Only
    where that tells nothing is the reference run at full size.
    """
    inputs = _draw(kernel, problem)
    shapes = _output_shapes(kernel, problem, inputs)
    if shapes is None:
        shapes = [_of(a) for a in kernel.results(problem, *inputs)]
    return [*(_of(a) for a in inputs), *shapes]


def _output_shapes(kernel: LoadedKernel, problem: Problem, inputs: Sequence[Array]) -> list[Shape] | None:
    definition = kernel.definition
    small = [_as_in(problem, p) for p in definition.shapes.values() if definition.flops(p) <= CHEAP_FLOPS]
    samples: list[tuple[Sequence[Array], Sequence[Array]]] = []
    for sizes in small:
        drawn = _draw(kernel, sizes)
        samples.append((drawn, kernel.results(sizes, *drawn)))
    if len({(len(drawn), *(out.ndim for out in outs)) for drawn, outs in samples}) != 1:
        return None
    shapes: list[Shape] = []
    for n, first in enumerate(samples[0][1]):
        lengths: list[int] = []
        for axis in range(first.ndim):
            same = {
                array.shape[j]
                for i, array in enumerate(inputs)
                for j in range(array.ndim)
                if all(drawn[i].shape[j] == outs[n].shape[axis] for drawn, outs in samples)
            }
            if len(same) != 1:
                return None
            lengths.append(same.pop())
        shapes.append((tuple(lengths), first.dtype.name))
    return shapes


def _as_in(problem: Problem, small: Problem) -> Problem:
    """A small shape's sizes with the problem's dtype and switches, which may decide what outputs there are."""
    sizes = {name: value for name, value in small.items() if not isinstance(value, (bool, str))}
    return {**sizes, **{name: value for name, value in problem.items() if isinstance(value, (bool, str))}}


def _draw(kernel: LoadedKernel, problem: Problem) -> tuple[Array, ...]:
    return tuple(kernel.definition.inputs(problem, np.random.default_rng(0)))


def _of(array: Array) -> Shape:
    return tuple(int(n) for n in array.shape), array.dtype.name


def _said(error: BaseException) -> str:
    """The end of a message: Triton quotes the source first. A cause says more than what it caused."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).partition("Repro command:")[0].rpartition("`ptxas` stderr:")[2]
    text = " ".join(re.sub(r"/\S*/", "", text).split())
    short = text if len(text) <= REASON_CHARS else f"…{text[-REASON_CHARS:]}"
    return f"{type(error).__name__}: {short}"
