"""Measures C kernels on this machine's CPU."""

from __future__ import annotations

from collections.abc import Sequence

from evotune.cpu.compiler import CpuCompiler
from evotune.errors import Rejected, UsageError
from evotune.evaluator import Artifact
from evotune.kernel import LoadedKernel, Problem
from evotune.process import Scratch, Worker
from evotune.space import Config
from evotune.supervisor import PROVENANCE, SETUP_TIMEOUT_S, Subject, Supervisor, failed
from evotune.trial import Fidelity, Measurement, Provenance, Static

# Libraries that the reference may use keep to one thread: the worker is pinned to one core, and CPU
# time of other threads means that a kernel cheats.
ONE_THREAD: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


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
        self._compiler = CpuCompiler(kernel, problem, compile_timeout_s)
        self._supervisor = Supervisor((), run_timeout_s)
        self._results = Scratch("results")
        try:
            setup = {
                "kernel": str(kernel.path.resolve()),
                "problem": dict(problem),
                "seed": seed,
                "harness": str(self._compiler.compile_harness()),
                "results": str(self._results.path),
            }
            entry = "evotune.cpu.worker:open_session"
            worker = Worker(entry, setup, setup_timeout_s=SETUP_TIMEOUT_S, environment=ONE_THREAD)
            self._supervisor = Supervisor([worker], run_timeout_s)
            if not (reply := worker.start()).ok:
                raise UsageError(f"{kernel.path} cannot be measured: {reply.message}")
        except BaseException:
            self.close()
            raise
        self.device = self._compiler.device

    def __enter__(self) -> CpuEvaluator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and running compilers, and delete all files; safe to call twice."""
        self._supervisor.close()
        self._compiler.close()
        self._results.cleanup()

    def compile(self, config: Config) -> Static:
        """As :meth:`CpuCompiler.compile`."""
        return self._compiler.compile(config)

    def pack(self, config: Config) -> Artifact:
        """As :meth:`CpuCompiler.pack`."""
        return self._compiler.pack(config)

    def accept(self, config: Config, artifact: Artifact) -> None:
        """As :meth:`CpuCompiler.accept`."""
        self._compiler.accept(config, artifact)

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
            library = self._compiler.library(config)
        except Rejected as rejected:
            return failed(fidelity, rejected.stage, rejected.reason)
        return Subject(library.digest, str(library.path))
