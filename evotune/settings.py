"""Every setting with its type, its range and its default.

``config.yaml`` repeats the defaults with a line of why for each; a test keeps the two equal. A flag
wins over an environment variable (``EVOTUNE_LLM_MODEL``), which wins over the file, which wins over
the default. Importing this module imports pydantic, so the command line does it late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from evotune import content
from evotune.errors import UsageError, nearest
from evotune.schema import KeyPath, Section, key_paths, problems, read_yaml

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Run(Section):
    """What is tuned, where, and for how long."""

    target: str = "auto"
    gpus: Count | Literal["all"] = 1
    gpu_model: str | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    shape: str | None = None
    shapes: str | None = None
    search: Literal["evotune", "mfbo", "random", "pattern", "de", "genetic", "annealing"] = "evotune"
    max_evaluations: Count = 60
    max_seconds: Seconds | None = None
    target_latency_ms: Milliseconds | None = None
    roofline_share: Annotated[float, Field(gt=0, le=1)] | None = None
    no_progress: Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    warm_start: str | None = None
    isolation: Literal["strict", "standard"] = "standard"
    journal: str = ".evotune/journal.db"


class Measure(Section):
    """How carefully configurations are measured."""

    low_reps: Count = 5
    medium_reps: Count = 15
    high_reps: Count = 50
    ultra_reps: Count = 500
    finalists: Count = 4
    compile_timeout_s: Seconds = 60
    run_timeout_s: Seconds = 30


class Search(Section):
    """How evotune's own search decides what to measure."""

    start_points: Count = 8
    screen: bool = True
    kernel: Literal["matern52", "matern32", "rbf"] = "matern52"
    acquisition: Literal["ei", "ucb", "pi"] = "ei"
    cost_aware: bool = False


class Mfbo(Section):
    """The multi-fidelity search: configurations measured at each fidelity, and repetitions there."""

    preset: Literal["default", "study"] = "default"
    n_low_fidelity: Count | None = None
    n_medium_fidelity: Count | None = None
    n_high_fidelity: Count | None = None
    n_ultra_fidelity: Count | None = None
    fidelity_low: Count | None = None
    fidelity_medium: Count | None = None
    fidelity_high: Count | None = None
    fidelity_ultra: Count | None = None


class Islands(Section):
    """Sub-populations from which elites are drawn."""

    count: Count = 2
    population_size: Count = 60
    archive_size: Count = 4
    migration_interval: Count = 10
    exploration_ratio: Share = 0.1
    exploitation_ratio: Share = 0.9

    def problem(self) -> str | None:
        """What is wrong with the two shares together: OpenEvolve would cut the second one off in silence."""
        random, archive = self.exploration_ratio, self.exploitation_ratio
        if random + archive <= 1 + 1e-6:  # thirds may be written with six digits
            return None
        return (
            f"islands.exploration_ratio is {random:g} and islands.exploitation_ratio is {archive:g}, together "
            f"{random + archive:g}; they should be 1 at most, as they are the shares of parents that are drawn at "
            "random and from the archive, and what is left of 1 is drawn by score. Lower one of them, say "
            f"islands.exploitation_ratio to {1 - random:g}"
        )


class Llm(Section):
    """The language model: which one, how often, and at what cost."""

    provider: str = "auto"
    model: str | None = None
    key_file: str | None = None
    openai_model: str = "gpt-4o-mini"
    anthropic_model: str = "claude-haiku-4-5"
    base_url: str | None = None
    on_error: Literal["fail", "fallback"] = "fail"
    temperature: Share = 0.8
    configs_per_call: Count = 8
    concurrency: Count = 2
    timeout_s: Seconds = 60
    structured_output: bool = True
    max_output_tokens: Annotated[int, Field(ge=256)] = 8192
    max_calls: Count | None = None
    max_tokens: Count | None = None
    max_seconds: Seconds | None = None
    max_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Prompt(Section):
    """What a model is told; each ingredient can be left out."""

    folder: str | None = None
    budget_tokens: Annotated[int, Field(ge=500)] = 6000
    programs: bool = True
    source: bool = True
    problem: bool = True
    roofline: bool = True
    device: bool = True
    constraints: bool = True
    incumbent: bool = True
    top: bool = True
    failures: bool = True
    static: bool = True
    untouched: bool = True
    tried: bool = True
    focus: bool = True


class Settings(Section):
    """All settings of a run."""

    run: Run = Run()
    measure: Measure = Measure()
    search: Search = Search()
    mfbo: Mfbo = Mfbo()
    islands: Islands = Islands()
    llm: Llm = Llm()
    prompt: Prompt = Prompt()

    def changed(self) -> dict[str, Any]:
        """What is not the default in the sections that proposals and timings depend on."""
        sections = {"measure", "search", "islands", *(["mfbo"] if self.run.search == "mfbo" else [])}
        return self.model_dump(include=sections, exclude_defaults=True)


# The options of `evotune run` that are settings, and where these stand.
OPTIONS: Mapping[str, KeyPath] = {
    **{name: ("run", name) for name in Run.model_fields},
    "provider": ("llm", "provider"),
    "model": ("llm", "model"),
    "base_url": ("llm", "base_url"),
    "on_llm_error": ("llm", "on_error"),
    "max_usd": ("llm", "max_usd"),
    "prompts": ("prompt", "folder"),
}


def check_together(settings: Settings, *, ray_address: str | None, track: str | None) -> None:
    """Refuse what was given for a run of another kind than the settings say.

    Raises:
        UsageError: It was.
    """
    if ray_address is not None and settings.run.engine != "ray":
        raise UsageError("--ray-address is where trials run with --engine ray; give that too")
    if track is not None and settings.run.shapes is not None:
        raise UsageError("--track is for runs of one shape")


def default_path() -> Path | None:
    """``config.yaml`` of the checkout that evotune runs from; None if evotune is installed."""
    root = content.checkout()
    path = root / "config.yaml" if root else None
    return path if path and path.is_file() else None


def load(path: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Settings from the defaults, a file, the environment and flags, each winning over those before.

    Args:
        path: A file like ``config.yaml``, which may leave out what it does not change; None for none.
        flags: By key path, such as ``"run.seed"``; None stands for a flag that was not given.
        environ: ``EVOTUNE_<SECTION>_<KEY>``; an empty value stands for null.

    Raises:
        UsageError: Unknown keys or wrong values, all of them in one message.
    """
    layers = [_from_environment(environ), _from_flags(flags)]
    if path is not None:
        layers.insert(0, _from_file(path))
    merged: dict[str, dict[str, Any]] = {}
    wrong = _unknown_sections(environ)
    for layer in layers:
        try:
            checked = Settings.model_validate(layer.values, strict=layer.strict)
        except ValidationError as error:
            lines = problems(error, Settings, layer.values, layer.spelling)
            wrong += [f"{layer.file}: {line}" if layer.file else line for line in lines]
            continue
        for section, values in checked.model_dump(exclude_unset=True).items():
            merged.setdefault(section, {}).update(values)
    if wrong:
        raise UsageError("\n".join(wrong))
    found = Settings.model_validate(merged)
    # Only here, as one of them may be of the file and the other of the environment.
    if problem := found.islands.problem():
        raise UsageError(problem)
    return found


@dataclass(frozen=True)
class _Layer:
    """Values of one source, and how the user spells a key path there.

    The environment knows only text, so its values are not strict.
    """

    values: Mapping[str, Any]
    spelling: Callable[[KeyPath], str]
    file: Path | None = None
    strict: bool = True


def _from_file(path: Path) -> _Layer:
    # A section whose keys are all commented out reads as null.
    values = {k: v for k, v in read_yaml(path).items() if v is not None}
    return _Layer(values, ".".join, file=path)


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    values: dict[str, dict[str, Any]] = {}
    for name, text in sorted(environ.items()):
        for section in Settings.model_fields:
            prefix = f"EVOTUNE_{section.upper()}_"
            if name.startswith(prefix):
                key = name[len(prefix) :].lower()
                values.setdefault(section, {})[key] = None if text.lower() in ("", "null") else text
    return _Layer(values, _variable, strict=False)


def _unknown_sections(environ: Mapping[str, str]) -> list[str]:
    """What is wrong with variables whose section does not exist: they would be ignored without a word."""
    known = [_variable(path) for path in key_paths(Settings)]
    sections = tuple(f"EVOTUNE_{section.upper()}_" for section in Settings.model_fields)
    strangers = [n for n in sorted(environ) if n.startswith("EVOTUNE_") and not n.startswith(sections)]
    return [f"{name} is not known{nearest(name, known)}" for name in strangers]


def _variable(path: KeyPath) -> str:
    return "_".join(("EVOTUNE", *path)).upper()


def _from_flags(flags: Mapping[str, Any]) -> _Layer:
    values: dict[str, dict[str, Any]] = {}
    for path, value in flags.items():
        section, _, key = path.partition(".")
        if value is not None:
            values.setdefault(section, {})[key] = value
    # They need no more of a name inside their sections; on the command line they do.
    names = {"on_error": "on_llm_error", "folder": "prompts"}
    return _Layer(values, lambda path: "--" + names.get(path[-1], path[-1]).replace("_", "-"))
