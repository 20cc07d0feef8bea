"""What a kernel lets a run choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evotune.errors import UsageError
from evotune.facts import space_to_json
from evotune.gpu.target import load_target
from evotune.kernel import LoadedKernel, Problem, blame
from evotune.space import ConfigSpace


@dataclass(frozen=True)
class Choices:
    """What one backend lets a run choose from for one problem; ``reason`` says why there is no space."""

    backend: str
    target: str
    shape: str
    problem: Problem
    space: ConfigSpace | None
    reason: str | None = None

    @property
    def configurations(self) -> float:
        """How many are legal, or all combinations where they cannot be counted."""
        if self.space is None:
            return 0
        return self.space.cardinality if self.space.is_enumerable else self.space.cartesian

    def to_json(self) -> dict[str, Any]:
        """An entry of ``choices`` of ``evotune list KERNEL --json``."""
        space: Mapping[str, Any] = space_to_json(self.space) if self.space else {}
        return {
            "backend": self.backend,
            "target": self.target,
            "shape": self.shape,
            "problem": dict(self.problem),
            "configurations": self.configurations,
            "is_exact": self.space is None or self.space.is_enumerable,
            **{name: space.get(name) for name in ("parameters", "constraints", "default")},
            "reason": self.reason,
        }


def choices(kernel: LoadedKernel, shape: str | None, gpu: str) -> list[Choices]:
    """Those of each backend, at a named shape or its own default one.

    Args:
        kernel: Whose.
        shape: Of the kernel; each backend's default one if None.
        gpu: For which target a space is where it may depend on the device.

    Raises:
        UsageError: There is no such shape or target.
    """
    load_target(gpu)
    return [_of(kernel, backend, shape, gpu) for backend in kernel.definition.backends]


def _of(kernel: LoadedKernel, backend: str, shape: str | None, gpu: str) -> Choices:
    problem = kernel.problem(shape, backend)
    target = gpu if backend == "cuda" else backend
    known = {**problem, **load_target(gpu).facts} if backend == "cuda" else problem
    where = backend, target, shape or kernel.backend(backend).default_shape, problem
    try:
        space = kernel.backend(backend).space(known)
        _ = space.default  # one without a legal configuration is told of
    except UsageError as error:
        return Choices(*where, None, str(error))
    except Exception as error:  # the user's function may raise anything
        return Choices(*where, None, blame(error, kernel.path, "space"))
    return Choices(*where, space)
