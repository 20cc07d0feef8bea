"""The child process that loads compiled kernels, checks them, and times them on one core."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from evotune.cpu.inputs import InputSet
from evotune.errors import DeviceError, Rejected
from evotune.inputs import WROTE_OUTSIDE, Inputs, Results
from evotune.interval import MAX_BLOCKS, MIN_BLOCKS
from evotune.kernel import load_kernel
from evotune.trial import BLOCKS

MIN_SAMPLE_NS = 50_000  # shorter ones would measure the clock: a reading takes 0.3 us or more
MIN_SAMPLES = 3
MAX_GROWTH = 100
SURELY_LONG = 20  # times MIN_SAMPLE_NS: no interruption makes a short call look like that
# Reading the clocks costs the process about 1 us a sample that the thread is not charged for.
MAX_CPU_RATIO = 1.2
CPU_SLACK_NS = 100_000

_libc = ctypes.CDLL(None)
_libc.dlopen.restype = ctypes.c_void_p
_libc.dlsym.restype = ctypes.c_void_p
_libc.dlsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_libc.dlclose.argtypes = [ctypes.c_void_p]
_libc.dlerror.restype = ctypes.c_char_p


def open_session(setup: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Entry of the worker process: get ready to measure one kernel on one problem.

    Args:
        setup: ``kernel`` (path), ``problem``, ``seed``, ``harness`` (path of the compiled one), and
            ``results`` (folder for those of a slow reference).
    """
    core = max(os.sched_getaffinity(0))  # interrupts and other people's defaults favour the first
    os.sched_setaffinity(0, {core})
    harness = Harness(Path(setup["harness"]))
    harness.check_canary()
    kernel, results = load_kernel(Path(setup["kernel"])), Results(Path(setup["results"]))
    inputs = Inputs(kernel, setup["problem"], setup["seed"], InputSet.of, results)
    return Session(harness, inputs, core).measure


class Harness:
    """The C code that calls kernels."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.default_fp: Callable[[], None] = library.evotune_default_fp
        self._canary = ctypes.cast(library.evotune_canary, ctypes.c_void_p).value or 0
        self._time = library.evotune_time
        self._time.restype = None
        self._time.argtypes = [
            *[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
            *[ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p],
        ]

    def time(self, kernel: int, sets: Sequence[Sequence[int]], calls: int, first: int = 0) -> tuple[int, int, int]:
        """Thread CPU time, process CPU time and wall time of so many calls together, ns.

        Args:
            kernel: Address of the function.
            sets: Addresses of its arguments, taken in turn.
            calls: How often it is called.
            first: The set to begin with, modulo their number.
        """
        flat = (ctypes.c_void_p * (len(sets) * len(sets[0])))(*(a for s in sets for a in s))
        ns = (ctypes.c_int64 * 3)()
        self._time(kernel, flat, len(sets), len(sets[0]), first, calls, ns)
        return ns[0], ns[1], ns[2]

    def check_canary(self) -> None:
        """Run a kernel whose result is known.

        Raises:
            DeviceError: It gives another result or takes no time.
        """
        given, found = np.arange(256, dtype=np.uint32), np.zeros(256, dtype=np.uint32)
        thread_ns, _, _ = self.time(self._canary, [[given.ctypes.data, found.ctypes.data]], 10)
        expected = [sum((i + k) ** 2 for k in range(1000)) % 2**32 for i in range(256)]
        if found.tolist() != expected or thread_ns <= 0:
            raise DeviceError("a kernel with a known result gives another; this machine cannot be trusted")


Sample = tuple[int, int, int]
"""Of so many calls together: thread CPU time, process CPU time and wall time, ns."""


@dataclass
class Run:
    """One loaded kernel on its way through a measurement."""

    path: str
    kernel: int = 0
    calls: int = 1
    blocks: list[list[Sample]] = field(default_factory=list["list[Sample]"])
    """Samples of each block, all of the same length."""
    failure: Rejected | None = None

    @property
    def samples(self) -> list[Sample]:
        return [sample for block in self.blocks for sample in block]


class Session:
    """Everything that stays the same from one measurement to the next."""

    def __init__(self, harness: Harness, inputs: Inputs[InputSet], core: int) -> None:
        self._harness = harness
        self._inputs = inputs
        self._core = core
        self._threads = _threads()
        self._tainted = False
        self._copies = 0

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check, time and check again some libraries, one alone or several in alternating rounds.

        Args:
            request: ``runs`` (paths of libraries), ``reps``, and ``limit_s``, which bounds the timing.

        Returns:
            ``tainted``: whether a kernel left something behind, so that this process cannot be
            used again, and several kernels have not been timed. ``runs``, one for each library:
            ``samples_ms`` and ``context``, or ``stage`` and ``reason``.
        """
        runs = [Run(path) for path in request["runs"]]
        with ExitStack() as loaded:
            self._each(runs, lambda run: loaded.enter_context(self._loaded(run)))
            self._each(runs, self._check)
            self._each(runs, self._calibrate)
            if len(runs) == 1:  # a buffer shared by several kernels cannot tell whose result it holds
                self._each(runs, lambda run: self._time_checked(run, request["reps"], request["limit_s"]))
                self._each(runs, self._check_swapped)
                self._each(runs, self._check)
        if len(runs) > 1 and not self._tainted:
            self._time_in_blocks(runs, request["reps"], request["limit_s"])
        self._each(runs, self._check_cpu_time)
        return {"runs": [self._report(run) for run in runs], "tainted": self._tainted}

    @contextmanager
    def _loaded(self, run: Run) -> Generator[None, None, None]:
        """A copy of a library that nobody has loaded before, so that it comes to lie somewhere else."""
        self._copies += 1
        copy = Path(shutil.copyfile(run.path, f"{run.path}.{self._copies}"))
        handle = _libc.dlopen(os.fsencode(copy), os.RTLD_NOW | os.RTLD_LOCAL)
        copy.unlink()
        self._harness.default_fp()
        if not handle:
            raise Rejected("compile", f"cannot be loaded: {(_libc.dlerror() or b'').decode()}")
        try:
            run.kernel = _libc.dlsym(handle, b"evotune_kernel") or 0
            if not run.kernel:
                raise Rejected("compile", "the source does not define evotune_kernel")
            yield
        finally:
            if not self._tainted:  # a thread may still run the code, and would crash without it
                _libc.dlclose(handle)

    @staticmethod
    def _each(runs: Sequence[Run], step: Callable[[Run], None]) -> None:
        """Take a step with every run that has not failed; a failure is the run's, not the session's."""
        for run in runs:
            if not run.failure:
                try:
                    step(run)
                except Rejected as rejected:
                    run.failure = rejected

    def _check(self, run: Run) -> None:
        """One call on inputs that this code has not seen."""
        self._run_checked(run, [self._inputs.unseen()])

    def _check_swapped(self, run: Run) -> None:
        """Known addresses with other values, and outputs that are full: a result kept by address is now
        wrong, and so is one that was left there because it looked finished."""
        self._inputs.swap_timing()
        self._run_verified(run, self._inputs.timing)

    def _run_checked(self, run: Run, sets: Sequence[InputSet]) -> None:
        for inputs in sets:
            inputs.poison()
        self._run_verified(run, sets)

    def _run_verified(self, run: Run, sets: Sequence[InputSet]) -> None:
        self._harness.time(run.kernel, [s.addresses for s in sets], len(sets))
        self._verify(sets)

    def _calibrate(self, run: Run) -> None:
        """Warm up, and find how many calls make a sample that is long enough."""
        self._run_checked(run, self._inputs.timing)
        while (ns := self._shortest_ns(run)) < MIN_SAMPLE_NS:
            wanted = math.ceil(1.1 * run.calls * MIN_SAMPLE_NS / max(ns, 1))
            run.calls = min(max(wanted, run.calls + 1), run.calls * MAX_GROWTH)

    def _shortest_ns(self, run: Run) -> int:
        """The shortest of three samples, as an interruption makes one look longer than it is."""
        addresses = self._addresses()
        ns = self._harness.time(run.kernel, addresses, run.calls)[0]
        if ns > SURELY_LONG * MIN_SAMPLE_NS:
            return ns
        return min(ns, *(self._harness.time(run.kernel, addresses, run.calls)[0] for _ in range(2)))

    def _time_checked(self, run: Run, reps: int, limit_s: float) -> None:
        """Time one kernel, then check what the timed calls themselves computed."""
        sets = self._inputs.timing
        for inputs in sets:
            inputs.poison()
        self._time([run], reps, limit_s)
        self._verify(sets[: len(run.samples) * run.calls])

    def _time_in_blocks(self, runs: Sequence[Run], reps: int, limit_s: float) -> None:
        """Sample several kernels in blocks of rounds. Each block loads them anew, gives them other
        buffers, and turns their order around: where things lie would otherwise be the same for all
        rounds, and a difference that comes from it would look certain.
        """
        end = time.perf_counter() + limit_s
        good = [run for run in runs if not run.failure]
        for run in good:  # readings of the clock are part of a sample: as many calls to each for all
            run.calls = max(r.calls for r in good)
        rounds = 2 * math.ceil(reps / (2 * MAX_BLOCKS))
        for block in range(math.ceil(reps / rounds)):
            if self._tainted or (block >= MIN_BLOCKS and time.perf_counter() > end):
                break
            order = runs if block % 2 == 0 else runs[::-1]
            self._inputs.move_timing()
            with ExitStack() as loaded:
                self._each(order, lambda run, loaded=loaded: loaded.enter_context(self._loaded(run)))
                self._each(order, lambda run: self._run_checked(run, self._inputs.timing))
                if not self._tainted:
                    self._time([r for r in order if not r.failure], rounds, limit_s / MAX_BLOCKS)
                self._inputs.swap_timing()
                self._each(order, lambda run: self._run_verified(run, self._inputs.timing[:1]))
        shortest = min((len(block) for run in runs for block in run.blocks), default=0)
        for run in runs:
            run.blocks = [block[:shortest] for block in run.blocks]

    def _time(self, runs: Sequence[Run], reps: int, limit_s: float) -> None:
        """Sample all runs round by round, the order reversed every other round."""
        addresses, end = self._addresses(), time.perf_counter() + limit_s
        least = MIN_SAMPLES if len(runs) == 1 else 2
        for run in runs:
            run.blocks.append([])
        for i in range(reps):
            uneven = len(runs) > 1 and i % 2  # a full turn there and back cancels a linear drift
            if i >= least and not uneven and time.perf_counter() > end:
                break
            for run in runs if i % 2 == 0 else reversed(runs):
                run.blocks[-1].append(self._harness.time(run.kernel, addresses, run.calls, first=i * run.calls))

    def _addresses(self) -> list[list[int]]:
        return [inputs.addresses for inputs in self._inputs.timing]

    def _check_cpu_time(self, run: Run) -> None:
        """The thread's CPU time, which is reported, leaves other threads out: there must be none."""
        thread_ns, process_ns = (sum(s[k] for s in run.samples) for k in (0, 1))
        if process_ns > MAX_CPU_RATIO * thread_ns + CPU_SLACK_NS:
            raise _threaded()

    def _verify(self, sets: Sequence[InputSet]) -> None:
        if (threads := _threads()) > self._threads:
            self._threads, self._tainted = threads, True
            raise _threaded()
        if _has_child():
            self._tainted = True
            raise Rejected("incorrect", "it started a process; a kernel for the CPU target starts none")
        # All of them are looked at, and so repaired: the next kernel is not to blame for what is left.
        wrong = [what for inputs in sets if (what := inputs.wrongness(self._inputs.tolerances))]
        if wrong:
            self._tainted |= WROTE_OUTSIDE in wrong
            raise Rejected("incorrect", wrong[0])

    def _report(self, run: Run) -> dict[str, Any]:
        if run.failure:
            return {"stage": run.failure.stage, "reason": run.failure.reason}
        if not run.samples:
            return {}
        context: dict[str, float | str] = {
            "wall_ms": median(s[2] for s in run.samples) / run.calls / 1e6,
            "calls_per_sample": run.calls,
            "core": self._core,
            "load_1min": os.getloadavg()[0],
            BLOCKS: len(run.blocks),
        }
        if mhz := _clock_mhz(self._core):
            context["clock_mhz"] = mhz
        return {"samples_ms": [max(s[0], 1) / run.calls / 1e6 for s in run.samples], "context": context}


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _has_child() -> bool:
    """Whether this process has started another, also one that has ended since."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _threaded() -> Rejected:
    return Rejected(
        "incorrect", "it used more than one thread; a kernel for the CPU target runs on the caller's only"
    )


def _clock_mhz(core: int) -> float | None:
    """The core's clock now, where the system tells."""
    try:
        khz = Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq").read_text()
        return int(khz) / 1000
    except (OSError, ValueError):
        return None
