"""Which configurations a GPU's compiler and hardware take, found without the GPU.

Real compilation, Triton to machine code, and facts read from the result. No speed is derived from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from evotune.errors import Rejected, UsageError
from evotune.gpu.compiler import CrossCompiler, default_cache
from evotune.gpu.detect import detect, visible
from evotune.gpu.target import Target, load_target
from evotune.kernel import LoadedKernel
from evotune.recipe import load
from evotune.space import Config, ConfigSpace

LIMITS = "limits"
"""The stage of a configuration that compiles and cannot be launched."""


@dataclass(frozen=True)
class CheckRow:
    """One configuration on one target: what compiling told, and at which stage it failed if it did.

    Numbers are None where compiling failed. ``facts`` has ``cubin_bytes``, ``threads`` of a block,
    ``occupancy`` (0 to 1, theoretical) and what limits it, and counts of instructions in the code.
    """

    target: str
    config: Config
    ok: bool
    stage: str | None = None
    reason: str | None = None
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    tmem_columns: int | None = None
    compile_s: float | None = None
    facts: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])

    def to_json(self) -> dict[str, Any]:
        """The row as ``evotune check --json`` prints it."""
        return {**vars(self), "config": dict(self.config), "facts": dict(self.facts)}


def check(
    kernel: LoadedKernel,
    targets: Sequence[str],
    *,
    shape: str | None = None,
    samples: int = 20,
    seed: int = 0,
    jobs: int | None = None,
    timeout_s: float = 60.0,
    cache: Path | None = None,
    on_row: Callable[[CheckRow], None] | None = None,
) -> list[CheckRow]:
    """Compile the default configuration and some sampled ones for each target.

    Args:
        kernel: A kernel file with a ``cuda`` backend.
        targets: Names of recipes: ``h100``, ``b200``, or a file.
        shape: A named shape of the kernel; the default one of its ``cuda`` backend if None.
        samples: Distinct configurations of each target's space besides the default.
        seed: Of the sample.
        jobs: Compilations at once; one for each core if None.
        timeout_s: After which one compilation is killed.
        cache: Folder for results; under the user's cache if None.
        on_row: Called with each row once it and those before it are known.

    Returns:
        For each target in order, the default's row and then the samples'.

    Raises:
        UsageError: Something of the above does not exist, or Triton is missing.
        DeviceError: No compiling process starts.
    """
    if not targets:
        raise UsageError("no target to compile for; name one: h100, h200 or b200")
    problem = kernel.problem(shape, "cuda")
    loaded = [_target(name) for name in targets]
    spaces = [(target, kernel.backend("cuda").space({**problem, **target.facts})) for target in loaded]
    work = [(target, config) for target, space in spaces for config in choose(space, samples, Random(seed))]
    compiler = CrossCompiler(kernel, problem, jobs=jobs, timeout_s=timeout_s, cache=cache or default_cache())
    rows: list[CheckRow] = []
    # Closed first: that ends the compilations under way, so that the pool's threads end too.
    with ThreadPoolExecutor(compiler.jobs) as pool, closing(compiler):
        futures = [pool.submit(_row, compiler, target, config) for target, config in work]
        try:
            for future in futures:
                rows.append(future.result())
                if on_row:
                    on_row(rows[-1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return rows


def choose(space: ConfigSpace, samples: int, rng: Random) -> list[Config]:
    """The default configuration, then distinct others; all there are if they are no more than asked for."""
    chosen: dict[tuple[int, ...], Config] = {space.key(space.default): space.default}
    if space.is_enumerable and space.cardinality <= samples + 1:
        rows = [space.config(row) for row in range(space.cardinality)]
        chosen |= {space.key(c): c for c in rows}
    misses = 0
    while len(chosen) < min(samples + 1, space.cardinality) and misses < 100 * samples:
        config = space.sample(rng, 1)[0]
        misses += space.key(config) in chosen
        chosen.setdefault(space.key(config), config)
    return list(chosen.values())


def _target(name: str) -> Target:
    """Of a recipe that leaves its architecture open, the GPU's that is here; else what the recipe says,
    whatever is here."""
    gpus = [] if load(name).arch else visible(detect(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return load_target(name, next(iter(gpus), None))


def _row(compiler: CrossCompiler, target: Target, config: Config) -> CheckRow:
    try:
        compiled = compiler.compile(config, target)
    except Rejected as rejected:
        return CheckRow(target.name, config, ok=False, stage=rejected.stage, reason=rejected.reason)
    broken = target.violations(compiled.facts)
    facts = target.described(compiled.facts, compiled.blocks)
    return CheckRow(
        target.name,
        config,
        ok=not broken,
        stage=LIMITS if broken else None,
        reason="; ".join(broken) or None,
        registers=_taken(facts, "registers"),
        spill_bytes=_taken(facts, "spill_bytes"),
        shared_bytes=_taken(facts, "shared_bytes"),
        tmem_columns=_taken(facts, "tmem_columns"),
        compile_s=compiled.compile_s,
        facts=facts,
    )


def _taken(facts: dict[str, float | str], name: str) -> int:
    return int(facts.pop(name))
