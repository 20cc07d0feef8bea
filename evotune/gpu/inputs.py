"""Inputs with known answers in a device's memory, as torch tensors."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch is optional.)
from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evotune.errors import UsageError
from evotune.kernel import Array, LoadedKernel, Problem, Tolerance

GUARD_BYTES = 4096
GUARD = 0xA5
TIMING_SETS = 2
UNSEEN_SETS = 2
REDRAW_BELOW_S = 0.1  # every measurement draws two sets
CHUNK = 1 << 24  # elements compared at once: 400 MB in double precision
WROTE_OUTSIDE = "it wrote outside of its output"


def to_tensor(array: Array, device: str) -> Any:
    """A copy in a device's memory. The dtype's name decides, so that ml_dtypes' bfloat16 works too."""
    import torch

    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
    return flat.to(device).view(getattr(torch, array.dtype.name)).reshape(array.shape)


@dataclass(frozen=True)
class InputSet:
    """Arguments for one launch, and what it must make of them; all are tensors."""

    pristine: tuple[Any, ...]
    arguments: tuple[Any, ...]
    memory: Any
    """The output between two bands of known bytes, as bytes."""
    expected: Any

    @classmethod
    def of(cls, inputs: Sequence[Array], expected: Array, device: str) -> InputSet:
        import torch

        pristine = tuple(to_tensor(a, device) for a in inputs)
        memory = torch.full((expected.nbytes + 2 * GUARD_BYTES,), GUARD, dtype=torch.uint8, device=device)
        return cls(pristine, tuple(t.clone() for t in pristine), memory, to_tensor(expected, device))

    def moved(self) -> InputSet:
        """The same values in other memory."""
        return replace(self, arguments=tuple(t.clone() for t in self.pristine), memory=self.memory.clone())

    @property
    def output(self) -> Any:
        return self.memory[GUARD_BYTES:-GUARD_BYTES].view(self.expected.dtype).reshape(self.expected.shape)

    def refilled(self, other: InputSet) -> InputSet:
        """The same memory with the values of another set."""
        for argument, values in zip(self.arguments, other.pristine, strict=True):
            argument.copy_(values)
        return InputSet(other.pristine, self.arguments, self.memory, other.expected)

    def poison(self) -> None:
        """Fill the output with what cannot be right anywhere."""
        if self.expected.dtype.is_floating_point:
            self.output.fill_(float("nan"))
        else:
            self.output.copy_(~self.expected)

    def wrongness(self, tolerance: Tolerance) -> str | None:
        """What a launch did wrong, if anything. Inputs and bands are put right for the next one."""
        bands = (self.memory[:GUARD_BYTES], self.memory[-GUARD_BYTES:])
        if any(bool((band != GUARD).any()) for band in bands):
            for band in bands:
                band.fill_(GUARD)
            return WROTE_OUTSIDE
        changed = [
            i
            for i, (now, was) in enumerate(zip(self.arguments, self.pristine, strict=True))
            if not _same_bytes(now, was)
        ]
        for i in changed:
            self.arguments[i].copy_(self.pristine[i])
        if changed:
            return f"it changed its inputs {changed}"
        return compare(self.output, self.expected, tolerance)


def _same_bytes(a: Any, b: Any) -> bool:
    import torch

    return bool(torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)))


def compare(found: Any, expected: Any, tolerance: Tolerance) -> str | None:
    """Where and how far a tensor is off, or None if it is right everywhere."""
    wrong = unusable = 0
    worst: tuple[float, int] | None = None
    flat, right = found.reshape(-1), expected.reshape(-1)
    for start in range(0, right.numel(), CHUNK):
        a, b = flat[start : start + CHUNK].double(), right[start : start + CHUNK].double()
        error = (a - b).abs()
        is_wrong = ~(error <= tolerance.atol + tolerance.rtol * b.abs())  # also where it is NaN
        if not (count := int(is_wrong.sum())):
            continue
        wrong += count
        finite = error.isfinite() & is_wrong
        unusable += count - int(finite.sum())
        at = int(error.where(finite, -1.0).argmax())
        if bool(finite[at]) and (worst is None or float(error[at]) > worst[0]):
            worst = float(error[at]), start + at
    if not wrong:
        return None
    parts = [f"{wrong} of {right.numel()} values are wrong"]
    if unusable:
        parts.append(f"{unusable} of them not finite or never written")
    if worst:
        at = [int(i) for i in np.unravel_index(worst[1], tuple(expected.shape))]
        pair = f"found {float(flat[worst[1]]):.6g}, expected {float(right[worst[1]]):.6g}"
        parts.append(f"the largest error is {worst[0]:.3g} at {at} ({pair})")
    return ", ".join(parts)


class Inputs:
    """The input sets of one problem: some to time with, and others that no kernel has seen.

    Raises:
        UsageError: The kernel file's ``inputs`` or ``reference`` fails or gives what cannot be used.
    """

    def __init__(self, kernel: LoadedKernel, problem: Problem, seed: int, device: str) -> None:
        self._kernel = kernel
        self._problem = problem
        self._seed = seed
        self._device = device
        self._drawn = 0
        started = time.perf_counter()
        first, dtype = self._draw()
        self._redraw = time.perf_counter() - started < REDRAW_BELOW_S
        self.tolerance = self._tolerance(str(problem.get("dtype", dtype)))
        self.timing = [first, *(self._draw()[0] for _ in range(TIMING_SETS - 1))]
        # Drawn now, as a measurement has a deadline that a slow reference would pass.
        self._unseen = deque(() if self._redraw else (self._draw()[0] for _ in range(UNSEEN_SETS)), UNSEEN_SETS)

    def swap_timing(self) -> None:
        """Move the values of the timing sets around: what was at an address is now at another."""
        following = [*self.timing[1:], self.timing[0]]
        self.timing = [memory.refilled(values) for memory, values in zip(self.timing, following, strict=True)]

    def move_timing(self) -> None:
        """Give the timing sets other memory, because where it lies has a part in how long a kernel takes."""
        self.timing = [s.moved() for s in self.timing]  # the old is free once there is the new

    def unseen(self) -> InputSet:
        """A set that differs from those for timing and from the last ones given out.

        New values each time, or a rotation where the reference is too slow for that.
        """
        if self._redraw:
            self._unseen.append(self._draw()[0])
        else:
            self._unseen.rotate(-1)
        return self._unseen[-1]

    def _draw(self) -> tuple[InputSet, str]:
        definition, name = self._kernel.definition, self._kernel.path.name
        rng = np.random.default_rng([self._seed, self._drawn])
        self._drawn += 1
        try:
            inputs = tuple(definition.inputs(self._problem, rng))
            expected = np.asarray(definition.reference(self._problem, *inputs))
            drawn = InputSet.of(inputs, expected, self._device)
        except Exception as error:  # the user's file may raise anything
            said = f"{type(error).__name__}: {error}"
            raise UsageError(
                f"inputs() or reference() of {name} fails for {dict(self._problem)}: {said}"
            ) from error
        if not bool(drawn.expected.isfinite().all()):
            raise UsageError(
                f"reference() of {name} gives values that are not finite; nothing can be checked with them"
            )
        return drawn, expected.dtype.name

    def _tolerance(self, dtype: str) -> Tolerance:
        known = self._kernel.definition.tolerance
        if dtype not in known:
            raise UsageError(f"{self._kernel.path.name} has no tolerance for {dtype}, only for {sorted(known)}")
        return known[dtype]
