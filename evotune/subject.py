"""What is tuned, on what: from a name to a space and to whoever can measure in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evotune import content, recipe
from evotune.errors import DeviceError, UsageError
from evotune.evaluator import Evaluator
from evotune.kernel import LoadedKernel, Problem, load_kernel
from evotune.llm import Roofline
from evotune.proposers.model import Story
from evotune.recipe import Recipe
from evotune.replay import ReplayEvaluator, is_recording, load_recording
from evotune.settings import Settings
from evotune.space import ConfigSpace
from evotune.trial import Fidelity


@dataclass(frozen=True)
class Subject:
    """What is tuned, on what; nothing is built or started before ``open_evaluator``."""

    name: str
    target: str
    why: str
    space: ConfigSpace
    finals: Fidelity
    source_hash: str
    story: Story
    roofline: Roofline | None
    """None for a recording, whose work is not known."""
    open_evaluator: Callable[[], Evaluator]


def find_subject(name: str, settings: Settings) -> Subject:
    """A kernel or a recording, checked, with nothing built yet.

    Raises:
        UsageError: Nothing there, or it cannot be used as it is.
        DeviceError: A target was named whose device is not here.
    """
    path = content.find(name, content.KERNELS, content.RECORDINGS)
    return _recorded(path, settings) if path.is_dir() else _kernel(path, settings)


def _kernel(path: Path, settings: Settings) -> Subject:
    kernel = load_kernel(path)
    target, why = choose_target(settings.run.target, kernel)
    plan = recipe.load(target)
    problem = kernel.problem(settings.run.shape, plan.backend)
    space = kernel.backend(plan.backend).space(problem)
    _ = space.default  # a space without a legal configuration is refused before anything is built

    def open_evaluator() -> Evaluator:
        from evotune.cpu import CpuEvaluator

        return CpuEvaluator(
            kernel,
            problem,
            fidelities=plan.climbed(settings.measure),
            seed=settings.run.seed,
            compile_timeout_s=settings.measure.compile_timeout_s,
            run_timeout_s=settings.measure.run_timeout_s,
        )

    roofline = _roofline(kernel, problem, plan)
    story = Story(kernel.name, kernel.source, problem, roofline=roofline)
    finals = plan.final(settings.measure)
    return Subject(kernel.name, target, why, space, finals, kernel.source_hash, story, roofline, open_evaluator)


def choose_target(wanted: str, kernel: LoadedKernel) -> tuple[str, str]:
    """The target to tune for, and why.

    Raises:
        DeviceError: A target was named whose device is not here.
    """
    if wanted == "auto":
        return "cpu", "no GPU found: the CPU implementation is tuned, and really timed"
    if wanted == "cpu":
        return "cpu", "as given"
    plan = recipe.load(wanted)
    if plan.backend == "cpu":
        return wanted, "as given"
    if plan.backend == "replay":
        raise UsageError("target 'replay' is for recorded spaces; kernels take auto, cpu, or a GPU's name")
    kernel.backend(plan.backend)
    raise DeviceError(
        f"target {wanted} needs a CUDA device and none was found; to compile for it without one: "
        f"evotune check {kernel.path} --target {wanted}"
    )


def _recorded(folder: Path, settings: Settings) -> Subject:
    if settings.run.target not in ("auto", "replay"):
        raise UsageError(f"{folder} is a recording; it cannot be run with --target {settings.run.target}")
    if not is_recording(folder):
        raise UsageError(f"{folder} is a folder without a recorded space; give a kernel file or a recording")
    recording = load_recording(folder)
    evaluator = ReplayEvaluator(recording)
    story = Story(str(recording.meta.get("kernel", recording.name)), device={"name": evaluator.device.name})
    return Subject(
        recording.name,
        "replay",
        "a recording: times are looked up, not measured",
        recording.space,
        evaluator.fidelities[-1],
        recording.hash,
        story,
        None,
        lambda: evaluator,
    )


def _roofline(kernel: LoadedKernel, problem: Problem, plan: Recipe) -> Roofline:
    work = kernel.definition.flops(problem), kernel.definition.bytes_moved(problem)
    if plan.peaks is None:
        return Roofline(*work)
    return Roofline(*work, plan.peaks.flops_per_s.get(str(problem.get("dtype"))), plan.peaks.bytes_per_s)
