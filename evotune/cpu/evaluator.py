"""Measures C kernels on this machine's CPU."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from evotune.cpu.builder import Builder
from evotune.cpu.toolchain import code_bytes, find_compiler
from evotune.errors import DeviceError, Rejected, UsageError
from evotune.evaluator import Device, installed_version
from evotune.kernel import CSource, LoadedKernel, Problem
from evotune.process import Scratch, Worker
from evotune.space import Config
from evotune.supervisor import PROVENANCE, Subject, Supervisor, failed
from evotune.trial import Fidelity, Measurement, Provenance, Static

CLOSE_TIMEOUT_S = 10.0
# Libraries that the reference may use keep to one thread: the worker is pinned to one core, and CPU
# time of other threads means that a kernel cheats.
ONE_THREAD: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class _Built:
    """A compiled configuration; equal ones share it."""

    digest: str
    library: Path
    static: Static


class CpuEvaluator:
    """Compiles a kernel's C code and measures it in one worker process, pinned to one core.

    A sample is the thread's CPU time of one call, which other load on the machine hardly moves; the
    wall time is in ``Measurement.context``. Results are checked before and after timing.

    Args:
        kernel: A kernel file with a ``cpu`` backend.
        problem: Sizes and dtype.
        fidelities: The ladder, rising.
        seed: Of the inputs.
        compile_timeout_s: For one configuration.
        run_timeout_s: For checking and timing one configuration; half of it bounds the timing.

    Raises:
        UsageError: No ``cpu`` backend, no compiler, or ``inputs`` or ``reference`` fails.
    """

    provenance: Provenance = PROVENANCE

    def __init__(
        self,
        kernel: LoadedKernel,
        problem: Problem,
        *,
        fidelities: Sequence[Fidelity],
        seed: int = 0,
        compile_timeout_s: float = 60.0,
        run_timeout_s: float = 30.0,
    ) -> None:
        self.fidelities = tuple(fidelities)
        kernel.backend("cpu")
        self._builder = Builder(kernel, problem, compile_timeout_s)
        self._compile_timeout_s = compile_timeout_s
        self._built: dict[str, Future[_Built]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._folder = Scratch("cpu")
        self._supervisor = Supervisor((), run_timeout_s)
        try:
            folder = self._folder.path
            self._compiler = find_compiler(folder)
            harness = folder / "harness.so"
            self._compiler.compile(Path(__file__).with_name("harness.c"), harness, timeout_s=compile_timeout_s)
            setup = {
                "kernel": str(kernel.path.resolve()),
                "problem": dict(problem),
                "seed": seed,
                "harness": str(harness),
            }
            worker = Worker("evotune.cpu.worker:open_session", setup, environment=ONE_THREAD)
            self._supervisor = Supervisor([worker], run_timeout_s)
            if not (reply := worker.start()).ok:
                raise UsageError(f"{kernel.path} cannot be measured: {reply.message}")
        except BaseException:
            self.close()
            raise
        self.device = _device(self._compiler.version)

    def __enter__(self) -> CpuEvaluator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and running compilers, and delete all files; safe to call twice."""
        self._closing.set()
        self._builder.close()
        self._supervisor.close()
        # Compilers write into the folder until they have been killed.
        wait(list(self._built.values()), CLOSE_TIMEOUT_S)
        self._folder.cleanup()

    # -- compile --------------------------------------------------------------------------------

    def compile(self, config: Config) -> Static:
        """Seconds of compiling and ``code_bytes``; equal code with equal flags is compiled once.

        Raises:
            Rejected: At stage ``build`` or ``compile``.
        """
        return self._artifact(config).static

    def _artifact(self, config: Config) -> _Built:
        source = self._builder.source(config)
        digest = hashlib.sha256("\0".join([source.text, *source.flags]).encode()).hexdigest()[:32]
        with self._lock:
            if self._closing.is_set():
                raise DeviceError("the evaluator is closed")
            is_mine = digest not in self._built
            future = self._built.setdefault(digest, Future())
        if is_mine:
            try:
                future.set_result(self._compile(digest, source))
            except BaseException as error:  # whoever waits for this code must hear of it too
                future.set_exception(error)
        try:
            return future.result()
        except Rejected as rejected:  # anew: one exception raised in several threads grows its traceback
            raise Rejected(rejected.stage, rejected.reason) from None

    def _compile(self, digest: str, source: CSource) -> _Built:
        text = self._folder.path / f"{digest}.c"
        library = text.with_suffix(".so")
        text.write_text(source.text, encoding="utf-8")
        seconds = self._compiler.compile(
            text, library, source.flags, timeout_s=self._compile_timeout_s, stop=self._closing
        )
        text.unlink()
        size = code_bytes(library)
        return _Built(digest, library, Static(seconds, {} if size is None else {"code_bytes": float(size)}))

    # -- measure --------------------------------------------------------------------------------

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        """Samples, or the stage that failed: ``build``, ``compile``, ``incorrect``, ``timeout``, ``crash``.

        Raises:
            DeviceError: The worker does not start again, or a kernel with a known result fails in it.
            UsageError: ``inputs`` or ``reference`` failed on later inputs.
        """
        ready = self._ready(config, fidelity)
        return ready if isinstance(ready, Measurement) else self._supervisor.measure(ready, fidelity)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """Samples of several configurations in alternating rounds, the order reversed every other one.

        Those that fail are left out of the rounds; the others' ``samples_ms[i]`` stay aligned.
        """
        ready = [self._ready(config, fidelity) for config in configs]
        measured = iter(self._supervisor.interleave([s for s in ready if isinstance(s, Subject)], fidelity))
        return [next(measured) if isinstance(s, Subject) else s for s in ready]

    def _ready(self, config: Config, fidelity: Fidelity) -> Subject | Measurement:
        """A configuration that can be run, or why it cannot."""
        try:
            built = self._artifact(config)
        except Rejected as rejected:
            return failed(fidelity, rejected.stage, rejected.reason)
        return Subject(built.digest, str(built.library))


def _device(compiler: str) -> Device:
    versions = {
        "compiler": compiler,
        "python": platform.python_version(),
        **{package: installed_version(package) for package in ("numpy", "evotune")},
    }
    facts: dict[str, float | str] = {
        "cores": float(len(os.sched_getaffinity(0))),
        "load_1min": os.getloadavg()[0],
    }
    return Device("cpu", _cpu_model(), versions, facts)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # Not given on Arm, where the architecture is all that is left.
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())
