"""Inputs with known answers in a device's memory, as torch tensors."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch is optional.)
from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evotune.inputs import GUARD, GUARD_BYTES, WROTE_OUTSIDE, Drawn
from evotune.kernel import Array, Tolerance

CHUNK = 1 << 24  # elements compared at once: 400 MB in double precision


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
    def of(cls, drawn: Drawn, device: str) -> InputSet:
        import torch

        pristine = tuple(to_tensor(a, device) for a in drawn.inputs)
        memory = torch.full((drawn.expected.nbytes + 2 * GUARD_BYTES,), GUARD, dtype=torch.uint8, device=device)
        return cls(pristine, tuple(t.clone() for t in pristine), memory, to_tensor(drawn.expected, device))

    def moved(self, rng: random.Random) -> InputSet:
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
