"""What is tuned, on what: from a name to a space and to whoever can measure in it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from evotune import content, recipe
from evotune.engine import Engine, InlineEngine, LocalEngine, ahead
from evotune.errors import DeviceError, UsageError
from evotune.evaluator import Compiler, Evaluator
from evotune.gpu.detect import Gpu, detect, visible
from evotune.gpu.target import Target, load_target
from evotune.kernel import LoadedKernel, Problem, blame, load_checked
from evotune.llm import Roofline
from evotune.process import usable_cores
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
    """None where no work is known, as of a recording."""
    open_evaluator: Callable[[], Evaluator]
    open_compiler: Callable[[], Compiler] | None = None
    """What compiles for ``open_evaluator`` elsewhere, where no device is needed; None where nothing is compiled."""
    open_engine: Callable[[Evaluator], Engine] = InlineEngine
    """Where trials run, given what ``open_evaluator`` opened."""
    devices: int = 1
    """How many measure at once."""
    fidelities: tuple[Fidelity, ...] = ()
    """Those a trial climbs, rising."""
    gpu_model: str | None = None
    """The name of the GPUs that measure, if such do."""


def gpus_here() -> list[Gpu]:
    """Those of this machine that ``CUDA_VISIBLE_DEVICES`` leaves."""
    return visible(detect(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def find_subject(
    name: str,
    settings: Settings,
    *,
    load: Callable[[Path], LoadedKernel] = load_checked,
    gpus: Callable[[], Sequence[Gpu]] = gpus_here,
) -> Subject:
    """A kernel or a recording, checked, with nothing built yet.

    Args:
        name: Its path, or its shipped name.
        settings: Of the run.
        load: Loads a kernel file; whoever looks at many subjects need not do it each time.
        gpus: Looks for those that may be taken; not called where none is wanted.

    Raises:
        UsageError: Nothing there, or it cannot be used as it is.
        DeviceError: A target was named whose device is not here.
    """
    path = content.find(name, content.KERNELS, content.RECORDINGS)
    return _recorded(path, settings) if path.is_dir() else _kernel(load(path), settings, gpus)


def _kernel(kernel: LoadedKernel, settings: Settings, gpus: Callable[[], Sequence[Gpu]]) -> Subject:
    path = kernel.path
    chosen = choose_target(settings.run.target, kernel, settings.run.gpus, gpus, settings.run.gpu_model)
    plan = recipe.load(chosen.name)
    problem = kernel.problem(settings.run.shape, plan.backend)
    target = load_target(chosen.name, chosen.gpus[0]) if chosen.gpus else None
    known = {**problem, **target.facts} if target else problem
    try:
        space: Any = kernel.backend(plan.backend).space(known)
        roofline = _roofline(kernel, problem, plan)
    except UsageError:
        raise
    except Exception as error:  # the user's functions may raise anything
        raise UsageError(f"{path}: {blame(error, path, 'space, flops or bytes_moved')}") from error
    if not isinstance(space, ConfigSpace):
        raise UsageError(f"{path}: space() gave {space!r}; it must return a ConfigSpace")
    _ = space.default  # a space without a legal configuration is refused before anything is built
    card = {**plan.card(str(problem.get("dtype"))), **(target.card if target else {})}
    story = Story(kernel.name, kernel.source, known, card, roofline)
    devices = max(1, len(chosen.gpus))
    compile_jobs = devices * ahead(usable_cores(), devices, settings.run.max_evaluations)
    return Subject(
        kernel.name,
        chosen.name,
        chosen.why,
        space,
        plan.final(_care(settings)),
        kernel.source_hash,
        story,
        roofline,
        lambda: _evaluator(kernel, problem, plan, chosen.gpus, target, settings),
        lambda: _compiler(kernel, problem, chosen.gpus, target, settings.measure.compile_timeout_s),
        lambda evaluator: LocalEngine(evaluator, compile_jobs, devices),
        devices,
        _ladder(plan, settings),
        chosen.gpus[0].name if chosen.gpus else None,
    )


def _evaluator(
    kernel: LoadedKernel,
    problem: Problem,
    plan: Recipe,
    gpus: Sequence[Gpu],
    target: Target | None,
    settings: Settings,
) -> Evaluator:
    measure, ladder = _care(settings), _ladder(plan, settings)
    if target is None:
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

    return CudaEvaluator(
        kernel,
        problem,
        gpus=gpus,
        target=target,
        fidelities=ladder,
        seed=settings.run.seed,
        settle_s=plan.settle_s,
        compile_timeout_s=measure.compile_timeout_s,
        run_timeout_s=measure.run_timeout_s,
    )


def _compiler(
    kernel: LoadedKernel, problem: Problem, gpus: Sequence[Gpu], target: Target | None, timeout_s: float
) -> Compiler:
    if target is None:
        from evotune.cpu import CpuCompiler

        return CpuCompiler(kernel, problem, timeout_s)
    from evotune.gpu.cuda_compiler import CudaCompiler

    return CudaCompiler(kernel, problem, gpu=gpus[0].name, target=target, timeout_s=timeout_s)


def _ladder(plan: Recipe, settings: Settings) -> tuple[Fidelity, ...]:
    measure = _care(settings)
    ladder, final = plan.climbed(measure), plan.final(measure)
    if settings.run.search == "mfbo" and final.rank > ladder[-1].rank:
        return (*ladder, final)  # what others leave to the finals is this search's last phase
    return ladder


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
    """A target, why it was chosen, and the GPUs that it runs on, if it is for them."""

    name: str
    why: str
    gpus: tuple[Gpu, ...] = ()


def choose_target(
    wanted: str,
    kernel: LoadedKernel,
    count: int | Literal["all"] = 1,
    gpus: Callable[[], Sequence[Gpu]] = gpus_here,
    model: str | None = None,
) -> Chosen:
    """The target to tune for: what was asked for, or the GPU that is here, or the CPU.

    Args:
        wanted: A target's name, a recipe, or ``auto``.
        kernel: What is to be tuned.
        count: How many GPUs are to measure.
        gpus: Looks for those that may be taken.
        model: The name of a GPU, or a word of it, if only such may.

    Raises:
        DeviceError: A target or a model was named whose device is not here, or not so many of them are.
        UsageError: Several GPUs are asked for where none measures, or those here are not of one model.
    """
    some = gpus if model is None else lambda: _of_model(gpus(), model)
    chosen = _whatever_is_here(kernel, count, some) if wanted == "auto" else _named(wanted, kernel, count, some)
    given = [f"--gpus {count}"] if count != 1 else []
    given += [f"--gpu-model {model}"] if model is not None else []
    if given and not chosen.gpus:
        raise UsageError(
            f"{' and '.join(given)} is for targets that are GPUs; target {chosen.name} is none: {chosen.why}"
        )
    return chosen


def _of_model(gpus: Sequence[Gpu], model: str) -> list[Gpu]:
    fitting = [g for g in gpus if g.name == model or _is_called(g, model)]
    if not fitting:
        here = ", ".join(dict.fromkeys(g.name for g in gpus)) or f"no NVIDIA GPU{_hidden()}"
        raise DeviceError(f"--gpu-model {model} was asked for and {here} is here")
    return fitting


def _named(
    wanted: str, kernel: LoadedKernel, count: int | Literal["all"], gpus: Callable[[], Sequence[Gpu]]
) -> Chosen:
    plan = recipe.load(wanted)
    if plan.backend == "cpu":
        return Chosen(wanted, "as given")
    if plan.backend == "replay":
        raise UsageError("target 'replay' is for recorded spaces; kernels take auto, cpu, or a GPU's name")
    kernel.backend(plan.backend)
    found = gpus()
    fitting = [g for g in found if _is_called(g, plan.device_name)]
    if not fitting:
        here = ", ".join(g.name for g in found) or f"no NVIDIA GPU{_hidden()}"
        raise DeviceError(
            f"target {wanted} was asked for and {here} is here; to compile for it all the same: "
            f"evotune check {kernel.path} --target {wanted}"
        )
    taken = _several(fitting, count)
    return Chosen(wanted, f"as given; {_names(taken)} here", taken)


def _whatever_is_here(
    kernel: LoadedKernel, count: int | Literal["all"], gpus: Callable[[], Sequence[Gpu]]
) -> Chosen:
    found = gpus()
    if not found:
        if "cpu" not in kernel.definition.backends:
            raise DeviceError(
                f"{kernel.path.name} can only be measured on a GPU, and no GPU was found{_hidden()}; to compile "
                f"for one all the same: evotune check {kernel.path} --target h100"
            )
        return Chosen("cpu", f"no GPU found{_hidden()}: the CPU implementation is tuned, and really timed")
    gpu = found[0]
    if "cuda" not in kernel.definition.backends:
        return Chosen("cpu", f"{gpu.name} is here, but {kernel.path.name} has no cuda backend")
    if missing := [p for p in ("torch", "triton") if find_spec(p) is None]:
        wanted = f"{' and '.join(missing)} missing; to tune on it: pip install 'evotune[gpu]'"
        return Chosen("cpu", f"{gpu.name} is here, but {wanted}")
    named = [Path(entry).stem for entry in content.shipped(content.EVALUATORS)]
    fitting = [n for n in named if (plan := recipe.load(n)).device_name and _is_called(gpu, plan.device_name)]
    taken = _several(found, count)
    return Chosen(fitting[0] if fitting else "cuda", f"{_names(taken)} here", taken)


def _several(gpus: Sequence[Gpu], count: int | Literal["all"]) -> tuple[Gpu, ...]:
    """The first so many of one model: timings of different ones say nothing about each other."""
    same = tuple(g for g in gpus if g.name == gpus[0].name)
    if count == "all":
        if len(same) < len(gpus):
            models = ", ".join(sorted({g.name for g in gpus}))
            raise UsageError(
                f"--gpus all finds {models}, and timings of different GPUs cannot be compared; "
                "choose some by --target, --gpu-model or CUDA_VISIBLE_DEVICES, or tune for each by --per-model"
            )
        return same
    if len(same) < count:
        raise DeviceError(f"--gpus {count} was asked for and {_names(same)} here{_hidden()}")
    return same[:count]


def _hidden() -> str:
    """Why there may be fewer than expected."""
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if mask is None else f" (CUDA_VISIBLE_DEVICES={mask})"


def _names(gpus: Sequence[Gpu]) -> str:
    """``NVIDIA H100 (GPU 0) is``, or ``2 NVIDIA H100 (GPU 0, 3) are``."""
    which = f"{gpus[0].name} (GPU {', '.join(str(g.index) for g in gpus)})"
    return f"{which} is" if len(gpus) == 1 else f"{len(gpus)} {which} are"


def _is_called(gpu: Gpu, name: str | None) -> bool:
    """Whether a word of the device's name is this one: GH200 is not an H200, and a slice of an H100 is not
    an H100. None fits every GPU."""
    return name is None or (not gpu.is_slice and name.lower() in re.split(r"[^a-z0-9]+", gpu.name.lower()))


def _recorded(folder: Path, settings: Settings) -> Subject:
    if settings.run.target not in ("auto", "replay"):
        raise UsageError(f"{folder} is a recording; it cannot be run with --target {settings.run.target}")
    if settings.run.gpus != 1:
        raise UsageError(f"{folder} is a recording, which no GPU runs; leave --gpus {settings.run.gpus} out")
    if (model := settings.run.gpu_model) is not None:
        raise UsageError(f"{folder} is a recording, which no GPU runs; leave --gpu-model {model} out")
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
        fidelities=tuple(evaluator.fidelities),
    )


def _roofline(kernel: LoadedKernel, problem: Problem, plan: Recipe) -> Roofline | None:
    work = kernel.definition.flops(problem), kernel.definition.bytes_moved(problem)
    given: Mapping[str, Any] = dict(zip(("flops", "bytes_moved"), work, strict=True))
    for name, value in given.items():  # the user's functions may return anything
        if not isinstance(value, (int, float)):
            raise UsageError(f"{kernel.path}: {name}() gave {value!r}; a number is wanted")
    if not any(work):
        return None
    if plan.peaks is None:
        return Roofline(*work)
    return Roofline(*work, plan.peaks.flops_per_s.get(str(problem.get("dtype"))), plan.peaks.bytes_per_s)
