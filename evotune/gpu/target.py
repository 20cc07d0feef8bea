"""A GPU to compile for: what kernels are told of it, and what a block of threads must fit into."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evotune import recipe
from evotune.errors import UsageError
from evotune.gpu.detect import Gpu
from evotune.gpu.occupancy import MULTIPROCESSORS, Multiprocessor, Occupancy, occupancy
from evotune.kernel import Problem

FACTS = ("capability", "multiprocessors")
"""What a problem on a GPU has beside its sizes."""


@dataclass(frozen=True)
class Target:
    """``capability`` is the compute capability times ten, 90 for an H100."""

    name: str
    capability: int
    multiprocessors: int

    @property
    def facts(self) -> Problem:
        """What a backend's space and build find in their ``problem`` beside the sizes."""
        return dict(zip(FACTS, (self.capability, self.multiprocessors), strict=True))

    @property
    def multiprocessor(self) -> Multiprocessor | None:
        """What each has; None for an architecture that is not listed, where nothing is refused."""
        return MULTIPROCESSORS.get(self.capability)

    @property
    def card(self) -> Mapping[str, float | str]:
        """What a reader is told of it: the facts, and what a block may have."""
        limits = self.multiprocessor.block_limits if self.multiprocessor else {}
        return {**self.facts, **{name: n for name, n in limits.items() if n}}

    def violations(self, facts: Mapping[str, float]) -> list[str]:
        """Which limits of the hardware a kernel's largest block exceeds, in words."""
        return self.multiprocessor.violations(facts) if self.multiprocessor else []

    def described(self, facts: Mapping[str, float], blocks: Sequence[Mapping[str, int]]) -> dict[str, float | str]:
        """The facts of what was compiled, with the occupancy of the kernel that has the fewest warps resident."""
        if self.multiprocessor is None:
            return dict(facts)
        lowest = min((occupancy(self.multiprocessor, **block) for block in blocks), key=_share)
        return {
            **facts,
            "occupancy": lowest.share,
            "blocks_per_sm": lowest.blocks,
            "limited_by": lowest.limited_by,
        }


def load_target(name: str, gpu: Gpu | None = None) -> Target:
    """The target of a recipe for GPUs; what ``gpu`` tells of itself wins over the recipe's numbers.

    Raises:
        UsageError: There is no such recipe, it is not for GPUs, or something stays unknown.
    """
    plan = recipe.load(name)
    if plan.backend != "cuda":
        raise UsageError(f"target {name!r} is not a GPU; compile for h100, h200 or b200")
    known = {
        "capability": _capability(name, plan.arch) if plan.arch else gpu and gpu.capability,
        "multiprocessors": (gpu and gpu.multiprocessors) or plan.multiprocessors,
    }
    capability, multiprocessors = known.values()
    if not capability or not multiprocessors:
        lacking = " and ".join(n for n, value in known.items() if not value)
        raise UsageError(
            f"target {name!r} takes its {lacking} from the device, and that is not known here; name a GPU, "
            "such as h100, or give a recipe of your own with arch and multiprocessors"
        )
    return Target(name, capability, multiprocessors)


def _capability(name: str, arch: str) -> int:
    found = re.fullmatch(r"sm_(\d+)[af]?", arch)
    if found is None:
        raise UsageError(f"target {name!r} has arch {arch!r}; it must be like sm_90a")
    return int(found[1])


def _share(found: Occupancy) -> float:
    return found.share
