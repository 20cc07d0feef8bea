"""The child process that alone uses a GPU: launches compiled kernels, checks them, and times them.

It has not yet run on a GPU; all but ``CudaDevice`` is tested on a CPU device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evotune.errors import DeviceError, Rejected
from evotune.gpu.device import CudaDevice, Device
from evotune.gpu.inputs import InputSet, to_tensor
from evotune.inputs import WROTE_OUTSIDE, Inputs, Results
from evotune.interval import MAX_BLOCKS, MIN_BLOCKS
from evotune.kernel import LoadedKernel, Problem, load_kernel
from evotune.trial import BLOCKS

REASON_CHARS = 400
MIN_SAMPLES = 3
BATCH_S = 0.02  # launches are enqueued for about so long before they are waited for
MAX_BATCH = 50
WARM_UPS = 2


def open_session(setup: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Entry of the worker process: get ready to measure one kernel on one problem.

    Args:
        setup: ``kernel`` (path), ``problem``, ``device`` (facts that the kernel is told), ``seed``, ``uuid``
            of the GPU, and ``results`` (folder for those of a slow reference).
    """
    import torch  # pyright: ignore[reportMissingImports]

    if not torch.cuda.is_available():
        raise DeviceError("torch finds no CUDA device; is this torch built for CUDA, and the driver recent enough?")
    device = CudaDevice(setup["uuid"])
    check_facts(setup["device"], device.facts)
    return open_on(device, setup)


def open_on(device: Device, setup: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A session on any device, after a check that the device computes and times."""
    check_canary(device)
    return Session(load_kernel(Path(setup["kernel"])), setup, device).measure


def check_facts(told: Problem, found: Problem) -> None:
    """Whether the device is what kernels are told that it is.

    Raises:
        DeviceError: It is not.
    """
    wrong = [f"{name} is {found[name]}, not {value}" for name, value in told.items() if found[name] != value]
    if wrong:
        raise DeviceError(
            f"CUDA says of this device that its {' and its '.join(wrong)}; give a recipe of your own "
            "with arch and multiprocessors, and without device_name"
        )


def check_canary(device: Device) -> None:
    """Run a computation whose result is known.

    Raises:
        DeviceError: It gives another result, or fails.
    """
    given = np.arange(1 << 20, dtype=np.float32)
    try:
        tensor = to_tensor(given, device.torch_device)
        device.time_ms([partial(tensor.mul_, 2), partial(tensor.add_, 1)])
        found = tensor.cpu().numpy()
    except RuntimeError as error:
        raise DeviceError(f"the device does not compute: {error}") from error
    if not np.array_equal(found, given * 2 + 1):
        raise DeviceError("a computation with a known result gives another; this device cannot be trusted")


@dataclass
class Run:
    """One configuration on its way through a measurement."""

    launch: Callable[..., None]
    blocks_ms: list[list[float]] = field(default_factory=list["list[float]"])
    """Samples of each block, all of the same length."""
    failure: Rejected | None = None

    @property
    def samples_ms(self) -> list[float]:
        return [ms for block in self.blocks_ms for ms in block]

    def on(self, inputs: InputSet) -> Callable[[], None]:
        """A launch with these arguments."""
        return partial(self.launch, *inputs.arguments, *inputs.outputs)


class Session:
    """Everything that stays the same from one measurement to the next."""

    def __init__(self, kernel: LoadedKernel, setup: Mapping[str, Any], device: Device) -> None:
        self._build = kernel.backend("cuda").build
        self._problem: Problem = {**setup["problem"], **setup["device"]}
        self._device = device
        self._gpu: str = setup["uuid"]
        place = partial(InputSet.of, device=device.torch_device)
        self._inputs = Inputs(kernel, setup["problem"], setup["seed"], place, Results(Path(setup["results"])))
        self._tainted = False

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check, time and check again some configurations, one alone or several in alternating rounds.

        Args:
            request: ``runs`` (configurations), ``reps``, ``limit_s``, which bounds the timing, and
                ``settle_s``, for which the device is kept busy before it.

        Returns:
            ``tainted``: whether this process cannot be used again; then several have not been timed.
            ``runs``, one for each: ``samples_ms`` and ``context``, or ``stage`` and ``reason``.
        """
        runs = [self._built(config) for config in request["runs"]]
        self._each(runs, self._check)
        self._each(runs, self._warm_up)
        good = [run for run in runs if not run.failure]
        context: dict[str, float | str] = {}
        if good and not self._tainted:
            if settle_s := request.get("settle_s", 0.0):
                self._guarded(good, lambda: self._settle(good, settle_s))
            before = self._device.readings()
            if len(runs) == 1:  # a buffer shared by several kernels cannot tell whose result it holds
                self._each(runs, lambda run: self._time_checked(run, request["reps"], request["limit_s"]))
            elif not self._tainted:
                self._guarded(good, lambda: self._time_in_blocks(good, request["reps"], request["limit_s"]))
            before = {f"{name}_before": value for name, value in before.items()}
            context = {"gpu": self._gpu, **self._device.readings(), **before}
        self._each(runs, self._check_swapped)
        self._each(runs, self._check)
        return {"runs": [_report(run, context) for run in runs], "tainted": self._tainted}

    def _built(self, config: Mapping[str, Any]) -> Run:
        try:
            return Run(self._build(config, self._problem))
        except Exception as error:  # the user's file may raise anything
            return Run(_nothing, failure=Rejected("build", _said(error)))

    def _each(self, runs: Sequence[Run], step: Callable[[Run], None]) -> None:
        """Take a step with every run that has not failed; a failure is the run's, not the session's.

        Once a kernel has broken the device's context, nothing more can be said of any.
        """
        for run in runs:
            if run.failure or self._tainted:
                continue
            try:
                step(run)
            except Rejected as rejected:
                run.failure = rejected
            except DeviceError:
                raise
            except Exception as error:  # Triton, CUDA and the user's code raise many kinds
                run.failure = self._blame(error)

    def _blame(self, error: Exception) -> Rejected:
        """A launch that was refused leaves the device as it was; a fault inside a kernel does not."""
        try:
            self._device.synchronize()
        except RuntimeError:
            self._tainted = True
            return Rejected("crash", _said(error))
        return Rejected("limits" if type(error).__name__ == "OutOfResources" else "launch", _said(error))

    def _check(self, run: Run) -> None:
        """One launch on inputs that this configuration has not seen."""
        self._run_checked(run, [self._inputs.unseen()])

    def _check_swapped(self, run: Run) -> None:
        """Known addresses with other values, and outputs that are full: a result kept by address is now
        wrong, and so is one that was left there because it looked finished."""
        self._inputs.swap_timing()
        self._run_verified(run, self._inputs.timing)

    def _warm_up(self, run: Run) -> None:
        for _ in range(WARM_UPS):
            self._run_checked(run, self._inputs.timing)

    def _run_checked(self, run: Run, sets: Sequence[InputSet]) -> None:
        for inputs in sets:
            inputs.poison()
        self._run_verified(run, sets)

    def _run_verified(self, run: Run, sets: Sequence[InputSet]) -> None:
        for inputs in sets:
            run.on(inputs)()
        self._device.synchronize()
        self._verify(sets)

    def _settle(self, runs: Sequence[Run], settle_s: float) -> None:
        """Keep the device busy with what is about to be timed, until its clocks are what they will be."""
        end = time.perf_counter() + settle_s
        while time.perf_counter() < end:
            self._device.time_ms([run.on(s) for run in runs for s in self._inputs.timing])

    def _time_checked(self, run: Run, reps: int, limit_s: float) -> None:
        """Time one configuration, then check what the timed launches themselves computed."""
        sets = self._inputs.timing
        for inputs in sets:
            inputs.poison()
        self._time([run], reps, limit_s)
        self._verify(sets[: len(run.samples_ms)])

    def _guarded(self, runs: Sequence[Run], step: Callable[[], None]) -> None:
        """Several take a step together. What fails here worked alone, so whose fault it is must be
        found out one by one, in a new process."""
        try:
            step()
        except DeviceError:
            raise
        except Exception as error:  # Triton, CUDA and the user's code raise many kinds
            runs[0].failure, self._tainted = Rejected("crash", _said(error)), True

    def _time_in_blocks(self, runs: Sequence[Run], reps: int, limit_s: float) -> None:
        """Sample several configurations in blocks of rounds, each with other buffers, and the order turned
        around: where data lie would otherwise be the same for all rounds, and what comes of it look certain."""
        end = time.perf_counter() + limit_s
        rounds = 2 * math.ceil(reps / (2 * MAX_BLOCKS))
        for block in range(math.ceil(reps / rounds)):
            if block >= MIN_BLOCKS and time.perf_counter() > end:
                break
            order = runs if block % 2 == 0 else runs[::-1]
            self._inputs.move_timing()
            for run in order:
                for inputs in self._inputs.timing:
                    run.on(inputs)()
            self._time(order, rounds, limit_s / MAX_BLOCKS)
        shortest = min(len(block) for block in runs[0].blocks_ms)
        for run in runs:
            run.blocks_ms = [block[:shortest] for block in run.blocks_ms]

    def _time(self, runs: Sequence[Run], reps: int, limit_s: float) -> None:
        """Sample all runs round by round, the order reversed every other round."""
        sets, done, batch = self._inputs.timing, 0, 2
        started = time.perf_counter()
        least = MIN_SAMPLES if len(runs) == 1 else 2
        for run in runs:
            run.blocks_ms.append([])
        while done < reps:
            rounds = range(done, min(done + batch, reps))
            turns = [(run, i) for i in rounds for run in (runs if i % 2 == 0 else reversed(runs))]
            times = self._device.time_ms([run.on(sets[i % len(sets)]) for run, i in turns])
            for (run, _), ms in zip(turns, times, strict=True):
                run.blocks_ms[-1].append(ms)
            done = rounds.stop
            seconds = time.perf_counter() - started
            if done >= least and seconds > limit_s:
                break
            # Even, so that a full turn there and back cancels a linear drift.
            batch = max(2, min(MAX_BATCH, int(BATCH_S * done / seconds)) // 2 * 2)

    def _verify(self, sets: Sequence[InputSet]) -> None:
        # All of them are looked at, and so repaired: the next kernel is not to blame for what is left.
        wrong = [what for inputs in sets if (what := inputs.wrongness(self._inputs.tolerances))]
        if wrong:
            self._tainted |= WROTE_OUTSIDE in wrong  # who knows what else it wrote to
            raise Rejected("incorrect", wrong[0])


def _report(run: Run, context: Mapping[str, float | str]) -> dict[str, Any]:
    if run.failure:
        return {"stage": run.failure.stage, "reason": run.failure.reason}
    if not run.blocks_ms:
        return {}
    return {"samples_ms": run.samples_ms, "context": {**context, BLOCKS: len(run.blocks_ms)}}


def _nothing(*arguments: object) -> None:
    raise AssertionError("a configuration that was not built is not launched")


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:REASON_CHARS]}"
