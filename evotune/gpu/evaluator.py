"""Measures Triton kernels on NVIDIA GPUs of one model. It has not yet run on a GPU; see ``evotune.gpu.worker``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from evotune.errors import DeviceError, Rejected, UsageError
from evotune.evaluator import Artifact, Device
from evotune.gpu.cuda_compiler import CudaCompiler
from evotune.gpu.detect import Gpu
from evotune.gpu.target import Target
from evotune.kernel import LoadedKernel, Problem
from evotune.process import Scratch, Worker
from evotune.space import Config, text_of
from evotune.supervisor import PROVENANCE, SETUP_TIMEOUT_S, Subject, Supervisor, failed
from evotune.trial import Fidelity, Measurement, Provenance, Static


class CudaEvaluator:
    """Compiles a kernel's Triton code on the CPU, and measures it in one process for each GPU.

    A sample is the time between two CUDA events around one launch, the last-level cache flushed
    before. Results are checked before and after timing. Clocks, power, what throttled, and which GPU
    it was, are in ``Measurement.context``. As many threads as there are GPUs may measure at once;
    configurations are interleaved on the first.

    Args:
        kernel: A kernel file with a ``cuda`` backend.
        problem: Sizes and dtype.
        gpus: The devices, of one model; each is the only one that its worker sees.
        target: What it is compiled for and must fit into.
        fidelities: The ladder, rising.
        seed: Of the inputs.
        settle_s: For how long a GPU is kept busy before finalists are timed.
        jobs: Compilations at once; one for each core if None.
        compile_timeout_s: For one configuration.
        run_timeout_s: For checking and timing one configuration; half of it bounds the timing.

    Raises:
        UsageError: No ``cuda`` backend, no Triton, or ``inputs`` or ``reference`` fails.
        DeviceError: A GPU cannot be used, or is not one that the target can run on.
    """

    provenance: Provenance = PROVENANCE
    worker_entry: ClassVar[str] = "evotune.gpu.worker:open_session"

    def __init__(
        self,
        kernel: LoadedKernel,
        problem: Problem,
        *,
        gpus: Sequence[Gpu],
        target: Target,
        fidelities: Sequence[Fidelity],
        seed: int = 0,
        settle_s: float = 0.0,
        jobs: int | None = None,
        compile_timeout_s: float = 60.0,
        run_timeout_s: float = 60.0,
    ) -> None:
        for gpu in gpus:
            if gpu.capability not in (None, target.capability):
                raise DeviceError(
                    f"{gpu.name} is sm_{gpu.capability}; target {target.name} is sm_{target.capability}"
                )
        self.fidelities = tuple(fidelities)
        self._settle_s = settle_s
        self._compiler = CudaCompiler(
            kernel, problem, gpu=gpus[0].name, target=target, jobs=jobs, timeout_s=compile_timeout_s
        )
        self.device = _device(gpus, self._compiler.device.versions)
        self._results = Scratch("results")
        setup = {
            "kernel": str(kernel.path.resolve()),
            "problem": dict(problem),
            "device": dict(target.facts),
            "seed": seed,
            "results": str(self._results.path),
        }
        workers = [self._worker(gpu, setup) for gpu in gpus]
        self._supervisor = Supervisor(workers, run_timeout_s)
        try:
            with ThreadPoolExecutor(len(workers)) as pool:
                for gpu, reply in zip(gpus, pool.map(Worker.start, workers), strict=True):
                    if not reply.ok:
                        kind = UsageError if reply.error == "UsageError" else DeviceError
                        raise kind(f"{kernel.path} cannot be measured on {gpu.name}: {reply.message}")
        except BaseException:
            self.close()
            raise

    def _worker(self, gpu: Gpu, setup: Mapping[str, Any]) -> Worker:
        environment = {
            "CUDA_VISIBLE_DEVICES": gpu.uuid or str(gpu.index),
            "TRITON_CACHE_DIR": str(self._compiler.triton_cache),
            "TMPDIR": str(self._compiler.triton_cache),
        }
        setup = {**setup, "uuid": gpu.uuid}
        return Worker(self.worker_entry, setup, setup_timeout_s=SETUP_TIMEOUT_S, environment=environment)

    def __enter__(self) -> CudaEvaluator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes and delete all files; safe to call twice."""
        self._supervisor.close()
        self._compiler.close()
        self._results.cleanup()

    def compile(self, config: Config) -> Static:
        """As :meth:`CudaCompiler.compile`."""
        return self._compiler.compile(config)

    def pack(self, config: Config) -> Artifact:
        """As :meth:`CudaCompiler.pack`."""
        return self._compiler.pack(config)

    def accept(self, config: Config, artifact: Artifact) -> None:
        """As :meth:`CudaCompiler.accept`."""
        self._compiler.accept(config, artifact)

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        """Samples, or the stage that failed: those of :meth:`compile`, ``launch``, or ``incorrect``.

        Raises:
            DeviceError: The worker does not start again, or a known result is wrong in it.
            UsageError: ``inputs`` or ``reference`` failed on later inputs.
        """
        if refusal := self._refusal(config, fidelity):
            return refusal
        return self._supervisor.measure(_subject(config), fidelity)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """Samples of several configurations in alternating rounds, after the clocks have settled.

        Those that fail are left out of the rounds; the others' ``samples_ms[i]`` stay aligned.
        """
        results = {i: m for i, c in enumerate(configs) if (m := self._refusal(c, fidelity))}
        rest = [i for i in range(len(configs)) if i not in results]
        subjects = [_subject(configs[i]) for i in rest]
        measured = self._supervisor.interleave(subjects, fidelity, {"settle_s": self._settle_s})
        results |= dict(zip(rest, measured, strict=True))
        return [results[i] for i in range(len(configs))]

    def _refusal(self, config: Config, fidelity: Fidelity) -> Measurement | None:
        """Why a configuration cannot be run, if it cannot."""
        try:
            self.compile(config)
        except Rejected as rejected:
            return failed(fidelity, rejected.stage, rejected.reason)
        return None


def _subject(config: Config) -> Subject:
    return Subject(text_of(config), dict(config))


def _device(gpus: Sequence[Gpu], versions: Mapping[str, str]) -> Device:
    first = gpus[0]
    driver = {"driver": first.driver, "cuda": first.cuda}
    versions = {**versions, **{name: version for name, version in driver.items() if version}}
    facts: dict[str, float | str] = {"gpus": ", ".join(gpu.uuid or str(gpu.index) for gpu in gpus)}
    if first.memory_bytes:
        facts["memory_bytes"] = float(first.memory_bytes)
    return Device("cuda", first.name, versions, facts)
