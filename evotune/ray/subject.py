"""What is tuned on a cluster: a kernel, whose file travels to the nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from evotune import content, subject
from evotune.errors import UsageError
from evotune.evaluator import Compiler, Evaluator, Portable
from evotune.gpu.detect import Gpu
from evotune.kernel import LoadedKernel, load_checked, split_name
from evotune.ray import cluster
from evotune.ray.engine import RayEngine
from evotune.ray.evaluator import RayEvaluator
from evotune.ray.fleet import Fleet, Plan
from evotune.settings import Llm, Prompt, Settings
from evotune.subject import Subject, gpus_here


@dataclass(frozen=True)
class Parcel:
    """A kernel and how it is measured, by content: nodes share no disk with the driver, and get no secrets.

    ``gpus`` are those of the cluster, for who compiles where there is none.
    """

    kernel: str
    files: Mapping[str, bytes]
    settings: Settings
    gpus: Sequence[Gpu]

    def open_evaluator(self, folder: Path) -> Portable:
        """The evaluator of the device that this process sees, with the files in a folder."""
        evaluator = self._unpack(folder, gpus_here).open_evaluator()
        assert isinstance(evaluator, Portable)
        return evaluator

    def open_compiler(self, folder: Path) -> Compiler:
        """A compiler for such devices."""
        found = self._unpack(folder, lambda: self.gpus)
        assert found.open_compiler is not None
        return found.open_compiler()

    def _unpack(self, folder: Path, gpus: Callable[[], Sequence[Gpu]]) -> Subject:
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text)
        run = self.settings.run
        here = run.model_copy(update={"target": str(folder / run.target)})
        settings = self.settings.model_copy(update={"run": here})
        return subject.find_subject(str(folder / self.kernel), settings, gpus=gpus)


def find_subject(name: str, settings: Settings, stack: ExitStack, on_note: Callable[[str], None]) -> Subject:
    """As :func:`evotune.subject.find_subject`, of a kernel on the devices of a Ray cluster.

    Args:
        name: Of the kernel.
        settings: Of the run.
        stack: Keeps the connection to Ray.
        on_note: Hears of nodes that come and go.

    Raises:
        UsageError: It cannot be used, or there is no cluster.
        DeviceError: A target was named whose device the cluster does not have.
    """
    path = content.find(name, content.KERNELS, content.RECORDINGS)
    if path.is_dir():
        raise UsageError(f"{path} is a recording, whose times are looked up here; leave --engine ray out")
    address = settings.run.ray_address
    on_note("starting Ray on this machine" if address is None else f"joining the Ray cluster at {address}")
    stack.enter_context(cluster.connected(address))
    detect, load = cache(_all_gpus), cache(load_checked)
    found = subject.find_subject(name, settings, load=load, gpus=detect)
    gpus, uses_gpus = settings.run.gpus, found.gpu_model is not None
    same = [gpu for gpu in detect() if gpu.name == found.gpu_model] if uses_gpus else []
    parcel = _pack(load(path), found.target, settings, same)
    plan = Plan(
        parcel.open_evaluator,
        parcel.open_compiler,
        found.space.default,
        settings.measure.compile_timeout_s + len(found.fidelities) * settings.measure.run_timeout_s,
        uses_gpus=uses_gpus,
        gpu_model=found.gpu_model,
        limit=gpus if uses_gpus and gpus != "all" else None,
    )
    if plan.limit is not None and plan.limit < len(same):
        on_note(f"{plan.limit} of the {len(same)} {found.gpu_model} of the cluster measure; --gpus all takes all")
    return replace(
        found,
        open_evaluator=lambda: _open_evaluator(plan, on_note),
        open_engine=partial(_open_engine, evaluations=settings.run.max_evaluations),
    )


def find_gpus(address: str | None) -> list[Gpu]:
    """The GPUs of the cluster at an address.

    Raises:
        UsageError: There is no cluster.
        DeviceError: A node does not answer.
    """
    with cluster.connected(address):
        return _all_gpus()


def _all_gpus() -> list[Gpu]:
    return [gpu for found in cluster.detect_gpus(cluster.nodes()).values() for gpu in found]


def _pack(kernel: LoadedKernel, target: str, settings: Settings, gpus: Sequence[Gpu]) -> Parcel:
    file, _ = split_name(kernel.path)
    plan = content.find(target, content.EVALUATORS)
    files = {**kernel.neighbours, file.name: file.read_bytes(), plan.name: plan.read_bytes()}
    # A station sees one.
    run = settings.run.model_copy(
        update={"target": plan.name, "gpus": 1, "gpu_model": gpus[0].name if gpus else None}
    )
    settings = settings.model_copy(update={"run": run, "llm": Llm(), "prompt": Prompt()})
    return Parcel(kernel.path.name, files, settings, gpus)


def _open_evaluator(plan: Plan, on_note: Callable[[str], None]) -> RayEvaluator:
    fleet = Fleet(plan, on_note)
    fleet.start()
    return RayEvaluator(fleet)


def _open_engine(evaluator: Evaluator, evaluations: int) -> RayEngine:
    assert isinstance(evaluator, RayEvaluator)
    return RayEngine(evaluator.fleet, evaluations)
