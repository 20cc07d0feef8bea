"""A GPU to compile for: its architecture, and what a block of threads must fit into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from evotune import recipe
from evotune.errors import UsageError
from evotune.gpu.compiler import Compiled
from evotune.gpu.detect import Gpu
from evotune.gpu.occupancy import (
    MULTIPROCESSORS,
    REGISTERS_PER_ALLOCATION,
    WARP_THREADS,
    Occupancy,
    occupancy,
)
from evotune.recipe import Limits


@dataclass(frozen=True)
class Target:
    """``capability`` is the compute capability times ten; without ``limits`` nothing is refused."""

    name: str
    capability: int
    limits: Limits | None


def load_target(name: str, gpu: Gpu | None = None) -> Target:
    """The target of a recipe for GPUs; ``gpu`` gives the architecture where the recipe leaves it open.

    Raises:
        UsageError: There is no such recipe, it is not for GPUs, or the architecture stays unknown.
    """
    plan = recipe.load(name)
    if plan.backend != "cuda":
        raise UsageError(f"target {name!r} is not a GPU; compile for h100, h200 or b200")
    if plan.arch is None:
        if gpu is None or gpu.capability is None:
            raise UsageError(
                f"target {name!r} takes the architecture of the device and none is known here; name one: h100"
            )
        return Target(name, gpu.capability, plan.limits)
    found = re.fullmatch(r"sm_(\d+)[af]?", plan.arch)
    if found is None:
        raise UsageError(f"target {name!r} has arch {plan.arch!r}; it must be like sm_90a")
    return Target(name, int(found[1]), plan.limits)


def violations(facts: Mapping[str, float], limits: Limits) -> list[str]:
    """Which limits of the hardware a kernel's largest block exceeds, in words."""
    threads, registers = int(facts["threads"]), int(facts["registers"])
    per_warp = -(-registers * WARP_THREADS // REGISTERS_PER_ALLOCATION) * REGISTERS_PER_ALLOCATION
    used = [
        ("bytes of shared memory", facts["shared_bytes"], limits.shared_bytes_per_block),
        ("threads", threads, limits.threads_per_block),
        ("registers of a thread", registers, limits.registers_per_thread),
        ("registers", per_warp * -(-threads // WARP_THREADS), limits.registers_per_block),
        ("columns of tensor memory", facts["tmem_columns"], limits.tmem_columns),
    ]
    return [f"a block needs {int(n)} {what}, the limit is {most}" for what, n, most in used if n > most]


def lowest_occupancy(compiled: Compiled, capability: int) -> Occupancy | None:
    """That of the kernel with the fewest resident warps; None for an unlisted architecture."""
    sm = MULTIPROCESSORS.get(capability)
    if sm is None:
        return None
    return min((occupancy(sm, **block) for block in compiled.blocks), key=lambda o: o.share)
