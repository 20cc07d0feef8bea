"""Inputs with known answers in a device's memory, as torch tensors."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch is optional.)
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evotune.inputs import GUARD, GUARD_BYTES, WROTE_OUTSIDE, Drawn, first_wrong
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
    memory: tuple[Any, ...]
    """Each output between two bands of known bytes, as bytes."""
    expected: tuple[Any, ...]

    @classmethod
    def of(cls, drawn: Drawn, device: str) -> InputSet:
        import torch

        pristine = tuple(to_tensor(a, device) for a in drawn.inputs)
        sizes = [a.nbytes + 2 * GUARD_BYTES for a in drawn.expected]
        memory = tuple(torch.full((size,), GUARD, dtype=torch.uint8, device=device) for size in sizes)
        expected = tuple(to_tensor(a, device) for a in drawn.expected)
        return cls(pristine, _copies(pristine), memory, expected)

    def moved(self, rng: random.Random) -> InputSet:
        """The same values in other memory."""
        return replace(self, arguments=_copies(self.pristine), memory=_copies(self.memory))

    @property
    def outputs(self) -> tuple[Any, ...]:
        pairs = zip(self.memory, self.expected, strict=True)
        return tuple(m[GUARD_BYTES:-GUARD_BYTES].view(e.dtype).reshape(e.shape) for m, e in pairs)

    def refilled(self, other: InputSet) -> InputSet:
        """The same memory with the values of another set."""
        for argument, values in zip(self.arguments, other.pristine, strict=True):
            argument.copy_(values)
        return InputSet(other.pristine, self.arguments, self.memory, other.expected)

    def poison(self) -> None:
        """Fill the outputs with what cannot be right anywhere."""
        for output, expected in zip(self.outputs, self.expected, strict=True):
            if expected.dtype.is_floating_point:
                output.fill_(float("nan"))
            else:
                output.copy_(~expected)

    def wrongness(self, tolerances: Sequence[Tolerance]) -> str | None:
        """What a launch did wrong, if anything. Inputs and bands are put right for the next one."""
        bands = [band for m in self.memory for band in (m[:GUARD_BYTES], m[-GUARD_BYTES:])]
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
        return first_wrong(map(compare, self.outputs, self.expected, tolerances), self.expected)


def _copies(tensors: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(t.clone() for t in tensors)


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
