"""Inputs with known answers, drawn from a kernel file: the same for every target but for the memory they lie in."""

from __future__ import annotations

import fcntl
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from evotune.errors import UsageError
from evotune.kernel import Array, LoadedKernel, Problem, Tolerance, blame, numpy_dtype

TIMING_SETS = 3
LARGE_BYTES = 64 << 20  # two sets of this size are already more than a cache
UNSEEN_SETS = 4
REDRAW_BELOW_S = 0.03  # every measurement takes two sets
FREE_SHARE = 0.1  # of the free disk: a larger result is not kept
# What surrounds an output, and what a kernel that writes there is told.
GUARD_BYTES = 4096
GUARD = 0xA5
WROTE_OUTSIDE = "it wrote outside of its output"


@dataclass(frozen=True)
class Drawn:
    """Read-only arrays: inputs, and what a kernel must make of them."""

    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self.inputs, *self.expected))


class Results:
    """What a slow reference gave, in a folder of a run: one of its workers computes it while those that need it
    too wait, and one that replaces a killed worker finds it there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, number: int) -> bool:
        """Whether the result of a draw is kept."""
        return self._path(number).exists()

    def get(self, number: int, compute: Callable[[], tuple[Array, ...]]) -> tuple[Array, ...]:
        """The results of a draw."""
        path = self._path(number)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return _load(path)
            started = time.perf_counter()
            results = compute()
            if time.perf_counter() - started >= REDRAW_BELOW_S:
                _save(path, results)
            return results

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.npz"


def _save(path: Path, arrays: Sequence[Array]) -> None:
    if sum(a.nbytes for a in arrays) > FREE_SHARE * shutil.disk_usage(path.parent).free:
        return
    # As bytes, with the dtype in the name: NumPy's files cannot say bfloat16.
    named: dict[str, Any] = {f"{i} {a.dtype.name}": a.view(f"V{a.itemsize}") for i, a in enumerate(arrays)}
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, **named)
        part.replace(path)
    except OSError:  # it is computed again, then
        part.unlink(missing_ok=True)


def _load(path: Path) -> tuple[Array, ...]:
    with np.load(path) as file:
        return tuple(_frozen(raw.view(numpy_dtype(name.split()[1]))) for name, raw in file.items())


class InputSet(Protocol):
    """A draw in a target's memory."""

    def refilled(self, other: Any) -> Any:
        """The same memory with the values of another set."""
        ...

    def moved(self, rng: random.Random) -> Any:
        """The same values in other memory."""
        ...


Placed = TypeVar("Placed", bound=InputSet)


class Inputs(Generic[Placed]):
    """The input sets of one problem: some to time with, and others that no kernel has seen.

    Args:
        kernel: Whose ``inputs`` and ``reference`` are called.
        problem: Sizes and dtype.
        seed: Of the values.
        place: Brings a draw into the target's memory.
        results: Where those of a slow reference are kept.

    Raises:
        UsageError: The kernel file's ``inputs`` or ``reference`` fails or gives what cannot be used.
    """

    def __init__(
        self, kernel: LoadedKernel, problem: Problem, seed: int, place: Callable[[Drawn], Placed], results: Results
    ) -> None:
        self._kernel = kernel
        self._problem = problem
        self._seed = seed
        self._place = place
        self._results = results
        self._drawn = 0
        self._is_slow = True  # until the first draw shows that it is not
        self._offsets = random.Random(seed)
        started = time.perf_counter()
        first = self._draw()
        self.tolerances = [self._tolerance(a.dtype) for a in first.expected]
        is_large = first.nbytes > LARGE_BYTES
        self.timing = [self._placed(first)]
        self._is_slow = results.has(0) or time.perf_counter() - started >= REDRAW_BELOW_S
        self.timing += self._several(1 if is_large else TIMING_SETS - 1)
        # Drawn now, as a measurement has a deadline that a slow reference would pass.
        self._unseen = deque(self._several(2 if is_large else UNSEEN_SETS) if self._is_slow else ())

    def move_timing(self) -> None:
        """Give the timing sets other memory, because where it lies has a part in how long a kernel takes."""
        self.timing = [s.moved(self._offsets) for s in self.timing]  # the old is free once there is the new

    def swap_timing(self) -> None:
        """Move the values of the timing sets around: what was at an address is now at another."""
        following = [*self.timing[1:], self.timing[0]]
        self.timing = [memory.refilled(values) for memory, values in zip(self.timing, following, strict=True)]

    def unseen(self) -> Placed:
        """A set that differs from those for timing and from the last ones given out.

        New values each time, or a rotation where the reference is too slow for that.
        """
        if not self._is_slow:
            return self._placed(self._draw())
        self._unseen.rotate(-1)
        return self._unseen[-1]

    def _several(self, count: int) -> list[Placed]:
        return [self._placed(self._draw()) for _ in range(count)]

    def _placed(self, drawn: Drawn) -> Placed:
        try:
            return self._place(drawn)
        except UsageError:
            raise
        except Exception as error:  # torch raises many kinds: a dtype that it does not have, memory that is full
            name = self._kernel.path.name
            raise UsageError(
                f"arrays of {name} cannot be put on the device: {type(error).__name__}: {error}"
            ) from error

    def _draw(self) -> Drawn:
        definition, path = self._kernel.definition, self._kernel.path
        number, self._drawn = self._drawn, self._drawn + 1
        rng = np.random.default_rng([self._seed, number])
        calling = "inputs"
        try:
            inputs = tuple(map(_frozen, definition.inputs(self._problem, rng)))
            calling = "reference"
            compute = partial(self._compute, inputs)
            drawn = Drawn(inputs, self._results.get(number, compute) if self._is_slow else compute())
        except Exception as error:  # the user's file may raise anything
            raise UsageError(f"{blame(error, path, calling)} for {dict(self._problem)}") from error
        self._check(drawn)
        return drawn

    def _compute(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(map(_frozen, self._kernel.results(self._problem, *inputs)))

    def _check(self, drawn: Drawn) -> None:
        name, declared = self._kernel.path.name, self._problem.get("dtype", "float64")
        for function, arrays in {"inputs": drawn.inputs, "reference": drawn.expected}.items():
            if not arrays:
                raise UsageError(f"{function}() of {name} gives no array; it must be one at least")
        given = {f"input {i}": a for i, a in enumerate(drawn.inputs)}
        results = {_named("the reference's result", i, drawn.expected): a for i, a in enumerate(drawn.expected)}
        for what, array in {**given, **results}.items():
            if not np.can_cast(array.dtype, np.complex128) or not array.size:
                raise UsageError(
                    f"{what} of {name} has dtype {array.dtype} and shape {array.shape}; "
                    "it must be a non-empty array of numbers"
                )
            if array.dtype == np.float64 and declared != "float64":  # what NumPy gives where nothing is said
                raise UsageError(
                    f"{what} of {name} has dtype float64, and the problem's is {declared}: the kernel would read "
                    "other numbers, or beyond the end; use .astype"
                )
        if not all(np.isfinite(a).all() for a in drawn.expected):
            raise UsageError(
                f"reference() of {name} gives values that are not finite; nothing can be checked with them"
            )

    def _tolerance(self, dtype: np.dtype[Any]) -> Tolerance:
        known = self._kernel.definition.tolerance
        if dtype.kind in "biu":
            return known.get(str(dtype), Tolerance(0.0, 0.0))
        name = str(self._problem.get("dtype", dtype))
        if name not in known:
            raise UsageError(f"{self._kernel.path.name} has no tolerance for {name}, only for {sorted(known)}")
        return known[name]


def first_wrong(wrongs: Iterable[str | None], outputs: Sequence[object]) -> str | None:
    """What is wrong with the first of the outputs that is wrong, and which one that is."""
    for i, what in enumerate(wrongs):
        if what:
            return f"output {i}: {what}" if len(outputs) > 1 else what
    return None


def _named(what: str, i: int, of: Sequence[object]) -> str:
    return f"{what} {i}" if len(of) > 1 else what


def _frozen(given: Array) -> Array:
    array = np.ascontiguousarray(given)
    array.flags.writeable = False
    return array
