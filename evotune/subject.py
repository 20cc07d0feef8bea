"""What is tuned, on what: from a name to a space and to whoever can measure in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evotune import content, recipe
from evotune.errors import DeviceError, UsageError
from evotune.evaluator import Evaluator
from evotune.gpu.detect import Gpu, detect
from evotune.kernel import LoadedKernel, Problem, load_kernel
from evotune.llm import Roofline
from evotune.proposers.model import Story
from evotune.proposers.schedule import Schedule
from evotune.recipe import Recipe
from evotune.replay import ReplayEvaluator, is_recording, load_recording
from evotune.settings import Measure, Settings
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
    chosen = choose_target(settings.run.target, kernel)
    plan = recipe.load(chosen.name)
    problem = kernel.problem(settings.run.shape, plan.backend)
    try:
        space: Any = kernel.backend(plan.backend).space(problem)
        roofline = _roofline(kernel, problem, plan)
    except UsageError:
        raise
    except Exception as error:  # the user's functions may raise anything
        raise UsageError(
            f"{path}: its space, flops or bytes_moved raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(space, ConfigSpace):
        raise UsageError(f"{path}: space() gave {space!r}; it must return a ConfigSpace")
    _ = space.default  # a space without a legal configuration is refused before anything is built
    story = Story(kernel.name, kernel.source, problem, plan.card(str(problem.get("dtype"))), roofline)
    return Subject(
        kernel.name,
        chosen.name,
        chosen.why,
        space,
        plan.final(_care(settings)),
        kernel.source_hash,
        story,
        roofline,
        lambda: _evaluator(kernel, problem, plan, chosen, settings),
    )


def _evaluator(
    kernel: LoadedKernel, problem: Problem, plan: Recipe, chosen: Chosen, settings: Settings
) -> Evaluator:
    measure = _care(settings)
    ladder, final = plan.climbed(measure), plan.final(measure)
    if settings.run.search == "mfbo" and final.rank > ladder[-1].rank:
        ladder = (*ladder, final)  # what others leave to the finals is this search's last phase
    if chosen.gpu is None:
        from evotune.cpu import CpuEvaluator

        return CpuEvaluator(
            kernel,
            problem,
            fidelities=ladder,
            seed=settings.run.seed,
            compile_timeout_s=measure.compile_timeout_s,
            run_timeout_s=measure.run_timeout_s,
        )
    from evotune.gpu.evaluator import CudaEvaluator
    from evotune.gpu.target import load_target

    return CudaEvaluator(
        kernel,
        problem,
        gpu=chosen.gpu,
        target=load_target(chosen.name, chosen.gpu),
        fidelities=ladder,
        seed=settings.run.seed,
        settle_s=plan.settle_s,
        compile_timeout_s=measure.compile_timeout_s,
        run_timeout_s=measure.run_timeout_s,
    )


def _care(settings: Settings) -> Measure:
    """How carefully to measure: the multi-fidelity search brings repetitions of its own."""
    if settings.run.search != "mfbo":
        return settings.measure
    schedule = Schedule.of(**settings.mfbo.model_dump())
    reps = {
        "low_reps": schedule.fidelity_low,
        "medium_reps": schedule.fidelity_medium,
        "high_reps": schedule.fidelity_high,
        "ultra_reps": schedule.fidelity_ultra,
    }
    return settings.measure.model_copy(update=reps)


@dataclass(frozen=True)
class Chosen:
    """A target, why it was chosen, and the GPU that it runs on, if it is one."""

    name: str
    why: str
    gpu: Gpu | None = None


def choose_target(wanted: str, kernel: LoadedKernel) -> Chosen:
    """The target to tune for: what was asked for, or the GPU that is here, or the CPU.

    Raises:
        DeviceError: A target was named whose device is not here.
    """
    if wanted == "auto":
        return _whatever_is_here(kernel)
    plan = recipe.load(wanted)
    if plan.backend == "cpu":
        return Chosen(wanted, "as given")
    if plan.backend == "replay":
        raise UsageError("target 'replay' is for recorded spaces; kernels take auto, cpu, or a GPU's name")
    kernel.backend(plan.backend)
    found = detect()
    fitting = next((g for g in found if _is_called(g, plan.device_name)), None)
    if fitting is None:
        here = ", ".join(g.name for g in found) or "no NVIDIA GPU"
        raise DeviceError(
            f"target {wanted} was asked for and {here} is here; to compile for it all the same: "
            f"evotune check {kernel.path} --target {wanted}"
        )
    return Chosen(wanted, f"as given; {fitting.name} is here", fitting)


def _whatever_is_here(kernel: LoadedKernel) -> Chosen:
    found = detect()
    if not found:
        return Chosen("cpu", "no GPU found: the CPU implementation is tuned, and really timed")
    gpu = found[0]
    if "cuda" not in kernel.definition.backends:
        return Chosen("cpu", f"{gpu.name} is here, but {kernel.path.name} has no cuda backend")
    if missing := [p for p in ("torch", "triton") if find_spec(p) is None]:
        wanted = f"{' and '.join(missing)} missing; to tune on it: pip install 'evotune[gpu]'"
        return Chosen("cpu", f"{gpu.name} is here, but {wanted}")
    named = [Path(entry).stem for entry in content.shipped(content.EVALUATORS)]
    fitting = [n for n in named if (plan := recipe.load(n)).device_name and _is_called(gpu, plan.device_name)]
    return Chosen(fitting[0] if fitting else "cuda", f"{gpu.name} is here", gpu)


def _is_called(gpu: Gpu, name: str | None) -> bool:
    """Whether a word of the device's name is this one: GH200 is not an H200. None fits every GPU."""
    return name is None or name.lower() in re.split(r"[^a-z0-9]+", gpu.name.lower())


def _recorded(folder: Path, settings: Settings) -> Subject:
    if settings.run.target not in ("auto", "replay"):
        raise UsageError(f"{folder} is a recording; it cannot be run with --target {settings.run.target}")
    if settings.run.shape is not None:
        raise UsageError(f"{folder} is a recording of one shape; leave --shape {settings.run.shape} out")
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
