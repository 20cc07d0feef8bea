"""Inputs with known answers, in memory that tells when a kernel writes where it must not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evotune.errors import UsageError
from evotune.inputs import GUARD, GUARD_BYTES, WROTE_OUTSIDE, Drawn, first_wrong
from evotune.kernel import Array, Tolerance

ALIGN_BYTES = 64  # a cache line: offsets that differ between buffers would show up as noise
LINES_IN_A_PAGE = 64
MAX_ARRAYS = 12  # that the harness can pass: attention backward has 7 inputs and 3 outputs


class GuardedArray:
    """A C-contiguous array between two bands of known bytes, so many cache lines further than it had to be."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], lines: int = 0) -> None:
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        before = GUARD_BYTES + lines * ALIGN_BYTES
        raw = np.full(before + nbytes + GUARD_BYTES + ALIGN_BYTES, GUARD, np.uint8)
        start = before + -(raw.ctypes.data + before) % ALIGN_BYTES
        self.array: Array = raw[start : start + nbytes].view(dtype).reshape(shape)
        self._bands = (raw[start - GUARD_BYTES : start], raw[start + nbytes : start + nbytes + GUARD_BYTES])

    @property
    def is_intact(self) -> bool:
        return all((band == GUARD).all() for band in self._bands)

    def repair(self) -> None:
        for band in self._bands:
            band.fill(GUARD)


@dataclass(frozen=True)
class InputSet:
    """Arguments for one call of a kernel, and what it must make of them."""

    pristine: tuple[Array, ...]
    arguments: tuple[GuardedArray, ...]
    outputs: tuple[GuardedArray, ...]
    expected: tuple[Array, ...]

    @classmethod
    def of(cls, drawn: Drawn, rng: random.Random | None = None) -> InputSet:
        """A set in new memory; with a generator, each array at a random offset within a page.

        Raises:
            UsageError: There are more arrays than the harness can pass.
        """
        arrays = (*drawn.inputs, *drawn.expected)
        if len(arrays) > MAX_ARRAYS:
            raise UsageError(
                f"there are {len(arrays)} arrays, inputs and outputs; the CPU target takes {MAX_ARRAYS}"
            )
        lines = [rng.randrange(LINES_IN_A_PAGE) if rng else 0 for _ in arrays]
        made = [GuardedArray(a.shape, a.dtype, n) for a, n in zip(arrays, lines, strict=True)]
        arguments, outputs = tuple(made[: len(drawn.inputs)]), tuple(made[len(drawn.inputs) :])
        for argument, values in zip(arguments, drawn.inputs, strict=True):
            argument.array[...] = values
        return cls(drawn.inputs, arguments, outputs, drawn.expected)

    def moved(self, rng: random.Random) -> InputSet:
        """The same values in other memory."""
        return self.of(Drawn(self.pristine, self.expected), rng)

    def refilled(self, other: InputSet) -> InputSet:
        """The same memory with the values of another set."""
        for argument, values in zip(self.arguments, other.pristine, strict=True):
            argument.array[...] = values
        return InputSet(other.pristine, self.arguments, self.outputs, other.expected)

    @property
    def addresses(self) -> list[int]:
        """Where the inputs are, then the outputs."""
        return [int(a.array.ctypes.data) for a in (*self.arguments, *self.outputs)]

    def poison(self) -> None:
        """Fill the outputs with what cannot be right anywhere."""
        for output, expected in zip(self.outputs, self.expected, strict=True):
            if expected.dtype.kind in "biu":
                np.invert(expected, out=output.array)
            else:
                output.array.fill(np.nan)

    def wrongness(self, tolerances: Sequence[Tolerance]) -> str | None:
        """What a call did wrong, if anything. Inputs and guards are put right for the next one."""
        guarded = (*self.arguments, *self.outputs)
        if not all(a.is_intact for a in guarded):
            for a in guarded:
                a.repair()
            return WROTE_OUTSIDE
        changed = [
            i
            for i, (now, was) in enumerate(zip(self.arguments, self.pristine, strict=True))
            if not np.array_equal(_bytes(now.array), _bytes(was))
        ]
        for i in changed:
            self.arguments[i].array[...] = self.pristine[i]
        if changed:
            return f"it changed its inputs {changed}"
        found = [output.array for output in self.outputs]
        return first_wrong(map(compare, found, self.expected, tolerances), self.expected)


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def compare(found: Array, expected: Array, tolerance: Tolerance) -> str | None:
    """Where and how far an array is off, or None if it is right everywhere."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = _distance(found, expected)
        limit = tolerance.atol + tolerance.rtol * np.abs(
            expected.astype(_WIDE.get(expected.dtype.kind, np.float64))
        )
        wrong = ~(error <= limit)  # also where the error is NaN
    if not wrong.any():
        return None
    unusable = int(np.count_nonzero(~np.isfinite(error)))
    worst = int(np.argmax(np.where(wrong & np.isfinite(error), error, -1.0)))
    parts = [f"{np.count_nonzero(wrong)} of {wrong.size} values are wrong"]
    if unusable:
        parts.append(f"{unusable} of them not finite or never written")
    if unusable < np.count_nonzero(wrong):
        at = [int(i) for i in np.unravel_index(worst, wrong.shape)]
        parts.append(
            f"the largest error is {error.flat[worst]:.3g} at {at} "
            f"(found {found.flat[worst]:.6g}, expected {expected.flat[worst]:.6g})"
        )
    return ", ".join(parts)


_WIDE = {"c": np.complex128}


def _distance(a: Array, b: Array) -> Array:
    """|a - b| without overflow; exact for integers before it is rounded to float64."""
    if a.dtype.kind in "biu":
        high, low = np.maximum(a, b), np.minimum(a, b)
        return (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
    wide = _WIDE.get(a.dtype.kind, np.float64)
    return np.abs(a.astype(wide) - b.astype(wide))
