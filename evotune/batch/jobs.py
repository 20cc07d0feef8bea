"""A file of jobs: kernels, their shapes and targets, and the options of their runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, Field, ValidationError

from evotune.errors import UsageError, nearest
from evotune.schema import KeyPath, Section, problems, read_yaml
from evotune.settings import OPTIONS as OF_RUN
from evotune.settings import Count, Run, Seconds, Settings

DEFAULTS = "defaults"
# What a job says in words of its own, or what all jobs share.
NO_OPTIONS = ("target", "shape", "shapes", "journal")
# A job's keys beside its own are options of `evotune run`.
OPTIONS: Mapping[str, KeyPath] = {n: path for n, path in OF_RUN.items() if n not in NO_OPTIONS}
_OPTION_AT: Mapping[KeyPath, str] = {path: name for name, path in OPTIONS.items()}


class InAll(Section):
    """What all jobs may cost together; ``max_seconds`` is of one call of the batch."""

    max_evaluations: Count | None = None
    max_seconds: Seconds | None = None
    max_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class _File(Section):
    """The keys of the whole file."""

    defaults: dict[str, Any] = Field(default_factory=dict[str, Any])
    in_all: InAll = InAll()
    jobs: Annotated[list[dict[str, Any]], Field(min_length=1)]


class _Own(Section):
    """The keys of an entry that are no options of a run."""

    kernel: str
    shapes: Annotated[list[str], Field(min_length=1)] | None = None
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    priority: int = 0


KEYS = (*_Own.model_fields, *OPTIONS)
TOLD = ("search", "seed", "warm_start")  # where they are no defaults: they tell runs of a kernel apart


@dataclass(frozen=True)
class Job:
    """One kernel at one shape on one target. ``where`` is its entry in the file."""

    where: str
    kernel: str
    priority: int
    settings: Settings

    def __str__(self) -> str:
        run = self.settings.run
        return " ".join(filter(None, (self.kernel, run.shape, f"on {run.target}"))) + self.apart

    @property
    def apart(self) -> str:
        """What tells it from a job of the same kernel, shape and target: ``, seed 2``."""
        run = self.settings.run
        names = [name for name in TOLD if getattr(run, name) != Run.model_fields[name].default]
        return "".join(f", {name.replace('_', ' ')} {getattr(run, name)}" for name in names)

    def to_json(self) -> dict[str, Any]:
        """What a plan and a result of a batch say of it."""
        run = self.settings.run
        return {"kernel": self.kernel, "shape": run.shape, "target": run.target, "priority": self.priority}


@dataclass(frozen=True)
class Batch:
    """The jobs of a file, those of higher priority first, and else in its order."""

    jobs: Sequence[Job]
    in_all: InAll


def read_batch(path: Path, base: Settings) -> Batch:
    """The jobs of a file.

    Args:
        path: YAML, with ``jobs``, ``defaults`` for each of them, and ``in_all``.
        base: What neither says.

    Raises:
        UsageError: Unknown keys or wrong values, all of them in one message.
    """
    # A section whose keys are all commented out reads as null.
    values = {key: value for key, value in read_yaml(path).items() if value is not None}
    entries = dict(_entries(values))
    defaults = entries.pop(DEFAULTS, {})
    stray = [key for key in values if key in KEYS]
    wrong = _wrong(_File, {key: value for key, value in values.items() if key not in stray}, _spelt)
    wrong += [_belongs(key) for key in stray] + _problems(DEFAULTS, defaults, {})
    wrong += [line for where, entry in entries.items() for line in _problems(where, entry, defaults)]
    if wrong:
        raise UsageError(_message(path, wrong))
    jobs = [job for where, entry in entries.items() for job in _jobs(where, {**defaults, **entry}, base)]
    return Batch(sorted(jobs, key=lambda job: -job.priority), _File.model_validate(values).in_all)


def _spelt(path: KeyPath) -> str:
    """``jobs[2].shapes[0]``."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path).removeprefix(".")


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The defaults and the jobs, as far as they are keys with values; what else there is breaks :class:`_File`."""
    listed: object = values.get("jobs")
    jobs = cast(list[object], listed) if isinstance(listed, list) else []
    for where, entry in ((DEFAULTS, values.get(DEFAULTS)), *((f"jobs[{i}]", job) for i, job in enumerate(jobs))):
        if isinstance(entry, Mapping):
            pairs = cast(Mapping[object, Any], entry).items()
            yield where, {key: value for key, value in pairs if isinstance(key, str)}


def _belongs(key: str) -> str:
    """Where a key belongs that stands beside the jobs."""
    together = f", and in_all.{key} for all together" if key in InAll.model_fields else ""
    return f"{key} is a key of a job and not of the file; {DEFAULTS}.{key} is for each of them{together}"


def _problems(where: str, entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    unknown = [f"{where}.{key} is not known{nearest(key, KEYS)}" for key in entry if key not in KEYS]
    inherited = {"kernel": "any"} if where == DEFAULTS else {k: v for k, v in defaults.items() if k == "kernel"}
    own = _wrong(_Own, {**inherited, **_own(entry)}, lambda path: f"{where}.{_spelt(path)}")
    options = _wrong(Settings, _nested(entry), lambda path: f"{where}.{_OPTION_AT[path]}")
    return [*unknown, *own, *options]


def _own(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in _Own.model_fields if name in entry}


def _wrong(model: type[BaseModel], values: Mapping[str, Any], label: Callable[[KeyPath], str]) -> list[str]:
    try:
        model.model_validate(values, strict=True)
    except ValidationError as error:
        return problems(error, model, values, label)
    return []


def _nested(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of an entry as settings."""
    out: dict[str, dict[str, Any]] = {}
    for name in filter(OPTIONS.__contains__, entry):
        section, key = OPTIONS[name]
        out.setdefault(section, {})[key] = entry[name]
    return out


def _jobs(where: str, entry: Mapping[str, Any], base: Settings) -> Iterator[Job]:
    own = _Own.model_validate(_own(entry))
    values = base.model_dump(exclude_unset=True)
    for section, keys in _nested(entry).items():
        values[section] = {**values.get(section, {}), **keys}
    settings = Settings.model_validate(values)
    shapes: Sequence[str | None] = own.shapes or [settings.run.shape]
    for shape, target in product(shapes, own.targets or [settings.run.target]):
        run = settings.run.model_copy(update={"shape": shape, "target": target})
        yield Job(where, own.kernel, own.priority, settings.model_copy(update={"run": run}))


def _message(path: Path, lines: Sequence[str]) -> str:
    return "\n".join(f"{path}: {line}" for line in lines)
