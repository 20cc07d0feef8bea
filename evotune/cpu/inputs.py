"""Inputs with known answers, in memory that tells when a kernel writes where it must not."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evotune.errors import UsageError
from evotune.kernel import Array, LoadedKernel, Problem, Tolerance, blame

ALIGN_BYTES = 64  # a cache line: offsets that differ between buffers would show up as noise
LINES_IN_A_PAGE = 64
GUARD_BYTES = 4096
GUARD = 0xA5
TIMING_SETS = 3
LARGE_BYTES = 64 << 20  # two sets of this size are already more than a cache
UNSEEN_SETS = 4
REDRAW_BELOW_S = 0.03  # every measurement draws two sets
WROTE_OUTSIDE = "it wrote outside of its output"
RESULT = "the reference's result"
MAX_ARRAYS = 8  # that the harness can pass, with the output


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
    output: GuardedArray
    expected: Array

    @classmethod
    def of(cls, inputs: Sequence[Array], expected: Array, rng: random.Random | None = None) -> InputSet:
        """A set in new memory; with a generator, each array at a random offset within a page."""
        arrays = (*inputs, expected)
        lines = [rng.randrange(LINES_IN_A_PAGE) if rng else 0 for _ in arrays]
        *arguments, output = (GuardedArray(a.shape, a.dtype, n) for a, n in zip(arrays, lines, strict=True))
        for argument, values in zip(arguments, inputs, strict=True):
            argument.array[...] = values
        return cls(tuple(inputs), tuple(arguments), output, expected)

    def refilled(self, other: InputSet) -> InputSet:
        """The same memory with the values of another set."""
        for argument, values in zip(self.arguments, other.pristine, strict=True):
            argument.array[...] = values
        return InputSet(other.pristine, self.arguments, self.output, other.expected)

    @property
    def addresses(self) -> list[int]:
        """Where the inputs are, then the output."""
        return [int(a.array.ctypes.data) for a in (*self.arguments, self.output)]

    def poison(self) -> None:
        """Fill the output with what cannot be right anywhere."""
        if self.expected.dtype.kind in "fc":
            self.output.array.fill(np.nan)
        else:
            np.invert(self.expected, out=self.output.array)

    def wrongness(self, tolerance: Tolerance) -> str | None:
        """What a call did wrong, if anything. Inputs and guards are put right for the next one."""
        if not all(a.is_intact for a in (*self.arguments, self.output)):
            for a in (*self.arguments, self.output):
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
        return compare(self.output.array, self.expected, tolerance)


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


class Inputs:
    """The input sets of one problem: some to time with, and others that no kernel has seen.

    Raises:
        UsageError: The kernel file's ``inputs`` or ``reference`` fails or gives what cannot be used.
    """

    def __init__(self, kernel: LoadedKernel, problem: Problem, seed: int) -> None:
        self._kernel = kernel
        self._problem = problem
        self._seed = seed
        self._drawn = 0
        started = time.perf_counter()
        first = self._draw()
        self._redraw = time.perf_counter() - started < REDRAW_BELOW_S
        is_large = sum(a.nbytes for a in (*first.pristine, first.expected)) > LARGE_BYTES
        self.timing = [first, *(self._draw() for _ in range(1 if is_large else TIMING_SETS - 1))]
        self.tolerance = self._tolerance(first.expected.dtype)
        # Drawn now, as a measurement has a deadline that a slow reference would pass.
        self._unseen = deque(() if self._redraw else (self._draw() for _ in range(UNSEEN_SETS)), UNSEEN_SETS)
        self._offsets = random.Random(seed)

    def move_timing(self) -> None:
        """Give the timing sets other memory, because where it lies has a part in how long a kernel takes."""
        self.timing = [InputSet.of(s.pristine, s.expected, self._offsets) for s in self.timing]

    def swap_timing(self) -> None:
        """Move the values of the timing sets around: what was at an address is now at another."""
        following = [*self.timing[1:], self.timing[0]]
        self.timing = [memory.refilled(values) for memory, values in zip(self.timing, following, strict=True)]

    def unseen(self) -> InputSet:
        """A poisoned set that differs from those for timing and from the last ones given out.

        New values each time, or a rotation where the reference is too slow for that.
        """
        if self._redraw:
            self._unseen.append(self._draw())
        else:
            self._unseen.rotate(-1)
        self._unseen[-1].poison()
        return self._unseen[-1]

    def _draw(self) -> InputSet:
        definition = self._kernel.definition
        rng = np.random.default_rng([self._seed, self._drawn])
        self._drawn += 1
        calling = "inputs"
        try:
            inputs = tuple(np.ascontiguousarray(a) for a in definition.inputs(self._problem, rng))
            for a in inputs:
                a.flags.writeable = False
            calling = "reference"
            expected = np.ascontiguousarray(definition.reference(self._problem, *inputs))
        except Exception as error:  # the user's file may raise anything
            raise UsageError(f"{blame(error, self._kernel.path, calling)} for {dict(self._problem)}") from error
        self._check(inputs, expected)
        return InputSet.of(inputs, expected)

    def _check(self, inputs: tuple[Array, ...], expected: Array) -> None:
        name = self._kernel.path.name
        if not 0 < len(inputs) < MAX_ARRAYS:
            raise UsageError(f"inputs() of {name} gives {len(inputs)} arrays; it must be 1 to {MAX_ARRAYS - 1}")
        declared = self._problem.get("dtype", "float64")
        for what, array in [*((f"input {i}", a) for i, a in enumerate(inputs)), (RESULT, expected)]:
            if array.dtype.kind not in "biufc" or not array.size:
                raise UsageError(
                    f"{what} of {name} has dtype {array.dtype} and shape {array.shape}; "
                    "it must be a non-empty array of numbers"
                )
            if array.dtype == np.float64 and declared != "float64":  # what NumPy gives where nothing is said
                raise UsageError(
                    f"{what} of {name} has dtype float64, and the problem's is {declared}: the kernel would read "
                    "other numbers, or beyond the end; use .astype"
                )
        if not np.isfinite(expected).all():
            raise UsageError(
                f"reference() of {name} gives values that are not finite; nothing can be checked with them"
            )

    def _tolerance(self, dtype: np.dtype[Any]) -> Tolerance:
        known = self._kernel.definition.tolerance
        name = str(self._problem["dtype"]) if "dtype" in self._problem else str(dtype)
        if name not in known:
            raise UsageError(f"{self._kernel.path.name} has no tolerance for {name}, only for {sorted(known)}")
        return known[name]
