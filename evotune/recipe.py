"""What is known about a target before it is looked at: one YAML file of ``evaluators/`` each."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from evotune import content
from evotune.errors import UsageError
from evotune.schema import Section, problems, read_yaml
from evotune.settings import Measure
from evotune.trial import Fidelity

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, Field(gt=0)]
RANKS = {"low": 1, "medium": 2, "high": 3, "ultra": 4}  # 0 is static: compiled, not run


class Rung(Section):
    """One fidelity of the ladder: its repetitions are a setting, ``limit_s`` caps their time."""

    fidelity: Literal["low", "medium", "high", "ultra"]
    limit_s: Rate | None = None


class Peaks(Section):
    """Best case of the device for the roofline; ``flops_per_s`` by dtype, dense."""

    bytes_per_s: Rate
    flops_per_s: dict[str, Rate]


class Recipe(Section):
    """How a target is compiled for, measured, and judged.

    ``arch`` is the compiler's name for it; None takes the device's own. ``device_name`` is a word
    of the name that the driver reports. ``clocks`` says where clock readings come from.
    ``settle_s`` is how long the device is kept busy before finalists are timed. ``multiprocessors`` is
    what kernels are told where the device itself does not say.
    """

    backend: Literal["cpu", "cuda", "replay"]
    arch: str | None = None
    device_name: str | None = None
    ladder: Annotated[list[Rung], Field(min_length=1)]
    finals: Rung
    settle_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    clocks: Literal["none", "cpufreq", "nvml"] = "none"
    multiprocessors: Size | None = None
    l2_bytes: Size | None = None
    peaks: Peaks | None = None

    def card(self, dtype: str) -> dict[str, float | str]:
        """What is known of the device, for a reader; peaks are those of a dtype."""
        known: dict[str, float | str | None] = {
            "arch": self.arch,
            "multiprocessors": self.multiprocessors,
            "l2_bytes": self.l2_bytes,
            "peak_bytes_per_s": self.peaks.bytes_per_s if self.peaks else None,
            "peak_flops_per_s": self.peaks.flops_per_s.get(dtype) if self.peaks else None,
        }
        return {name: value for name, value in known.items() if value}

    def climbed(self, measure: Measure) -> tuple[Fidelity, ...]:
        """Fidelities that a trial climbs, rising."""
        return tuple(_fidelity(rung, measure) for rung in self.ladder)

    def final(self, measure: Measure) -> Fidelity:
        """Fidelity at which finalists are interleaved."""
        return _fidelity(self.finals, measure)


def load(target: str) -> Recipe:
    """The recipe of a shipped target (``h100``) or of the user's own file.

    Raises:
        UsageError: There is no such recipe, or it has unknown keys or wrong values (all are listed).
    """
    path = content.find(target, content.EVALUATORS)
    values = read_yaml(path)
    try:
        recipe = Recipe.model_validate(values, strict=True)
    except ValidationError as error:
        lines = problems(error, Recipe, values, ".".join)
        raise UsageError("\n".join(f"{path}: {line}" for line in lines)) from None
    ranks = [RANKS[rung.fidelity] for rung in recipe.ladder]
    if ranks != sorted(set(ranks)) or ranks[-1] > RANKS[recipe.finals.fidelity]:
        order = " < ".join(RANKS)
        raise UsageError(f"{path}: ladder and finals must rise from rung to rung: {order}")
    return recipe


def _fidelity(rung: Rung, measure: Measure) -> Fidelity:
    reps = {
        "low": measure.low_reps,
        "medium": measure.medium_reps,
        "high": measure.high_reps,
        "ultra": measure.ultra_reps,
    }
    limit_s = math.inf if rung.limit_s is None else rung.limit_s
    return Fidelity(RANKS[rung.fidelity], rung.fidelity, reps[rung.fidelity], limit_s)
