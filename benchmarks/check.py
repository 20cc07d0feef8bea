"""What compiling for GPUs that are not here is worth: which configurations it refuses, and how fast it is.

    python benchmarks/check.py [--parts kernels sweep throughput cache deadline] [--out benchmarks/results/check.md]

`sweep` draws configurations without regard to a space's constraints, so that some are beyond what the hardware
has. What was compiled before is taken from the cache (but in `throughput` and `cache`), so that the same command
goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

from evotune import content
from evotune.errors import Rejected
from evotune.gpu.check import CheckRow, check, choose
from evotune.gpu.compiler import Compiled, CrossCompiler, compiler_versions, default_cache
from evotune.gpu.target import Target, load_target
from evotune.kernel import LoadedKernel, load_kernel
from evotune.space import Config, ConfigSpace

TARGETS = ("h100", "b200")
SWEPT = ("matmul", "attention")
# CUDA C++ Programming Guide, technical specifications per compute capability: what a block may have.
# Written down a second time, so that the compiler's verdicts are judged by something else than its own table.
SHARED_BYTES, THREADS, REGISTERS_PER_THREAD, REGISTERS = 227 << 10, 1024, 255, 65536
TMEM_COLUMNS = {90: 0, 100: 512}
HANGING = """
from evotune.kernel import Backend, Tolerance
from evotune.space import ConfigSpace
name, shapes, tolerance = "hanging", {"default": {"n": 1, "dtype": "float32"}}, {"float32": Tolerance(0, 0)}
def build(config, problem):
    while config["hang"]: pass
    raise ValueError("does not hang")
backends = {"cuda": Backend(lambda problem: ConfigSpace.from_dict({"hang": [False, True]}), build)}
def inputs(problem, rng): return (rng.standard_normal(1).astype("float32"),)
def reference(problem, x): return x
def flops(problem): return 1.0
def bytes_moved(problem): return 8.0
"""


def shipped(name: str) -> LoadedKernel:
    return load_kernel(content.find(name, content.KERNELS))


def space_of(kernel: LoadedKernel, target: Target) -> ConfigSpace:
    return kernel.backend("cuda").space({**kernel.problem(None, "cuda"), **target.facts})


# -- every shipped kernel ------------------------------------------------------------------------


def kernels(args: argparse.Namespace) -> Iterator[str]:
    """The default and some samples of each kernel on both targets."""
    yield "## Shipped kernels\n"
    yield (
        f"The default and {args.samples} sampled configurations of each, at the default shape. `seconds` is the "
        "time of compiling, added up over processes. `limits`: compiled, and more than a block may have.\n"
    )
    yield "| kernel | target | default | compile | limits | fail | spill | seconds | reasons |"
    yield "|---|---|---|--:|--:|--:|--:|--:|---|"
    for path in sorted(content.shipped(content.KERNELS)):
        kernel = shipped(str(path))
        for name in TARGETS:
            rows = check(kernel, [name], samples=args.samples, jobs=args.jobs, timeout_s=args.timeout_s)
            stages = Counter("ok" if row.ok else "limits" if row.stage == "limits" else "fail" for row in rows)
            default = "compiles" if rows[0].ok else str(rows[0].stage)
            spilling = sum(bool(row.spill_bytes) for row in rows if row.ok)
            seconds = sum(row.compile_s or 0.0 for row in rows)
            yield (
                f"| {kernel.name} | {name} | {default} | {stages['ok']} | {stages['limits']} | {stages['fail']} "
                f"| {spilling} | {seconds:.0f} | {_reasons(rows)} |"
            )


def _reasons(rows: Sequence[CheckRow]) -> str:
    counts = Counter(_kind(f"{row.stage}: {row.reason}") for row in rows if not row.ok)
    return "; ".join(f"{n} x {text}" for text, n in counts.most_common(3))


def _kind(reason: str) -> str:
    """A reason without its numbers, so that alike ones are one."""
    return re.sub(r"\d+", "#", reason.replace("|", "/"))[:110]


# -- soundness -----------------------------------------------------------------------------------


def sweep(args: argparse.Namespace) -> Iterator[str]:
    """Configurations drawn without constraints: what is refused exceeds a limit, and nothing else does."""
    yield "## Refusals\n"
    yield (
        f"{args.configs} configurations of each kernel's values, whatever its constraints say. A refusal is right "
        "if the facts of what was compiled exceed a limit of the programming guide, worked out anew here; where "
        "Triton itself refuses to make the code, the numbers are those of its message.\n"
    )
    yield "| kernel | target | compiled | accepted | refused | refused by Triton | wrong verdicts | fail |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    failures: Counter[str] = Counter()
    for name in SWEPT:
        kernel = shipped(name)
        for target in map(load_target, TARGETS):
            counts, wrong = _swept(kernel, target, args, failures)
            yield (
                f"| {name} | {target.name} | {counts['accepted'] + counts['refused']} | {counts['accepted']} "
                f"| {counts['refused']} | {counts['triton']} | {len(wrong)} | {counts['fail']} |"
            )
            yield from (f"| | | | | | | {text} | |" for text in wrong)
    yield "\nFailures of the compiler, which are no limit of the hardware:\n"
    yield from (f"- {n} x {text}" for text, n in failures.most_common(8))
    yield ""


def _swept(
    kernel: LoadedKernel, target: Target, args: argparse.Namespace, failures: Counter[str]
) -> tuple[Counter[str], list[str]]:
    free = ConfigSpace(space_of(kernel, target).parameters)
    configs = choose(free, args.configs - 1, random.Random(args.seed))
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for config, found in zip(configs, compile_all(kernel, target, configs, args, default_cache()), strict=True):
        if isinstance(found, Compiled):
            refused, beyond = bool(target.violations(found.facts)), exceeded(found.facts, target)
            counts["refused" if refused else "accepted"] += 1
            is_right = refused == bool(beyond)
        elif found.stage == "limits":
            counts["triton"] += 1
            is_right = _is_sound(found.reason, target)
        else:
            counts["fail"] += 1
            failures[f"{target.name}, {_kind(f'{found.stage}: {found.reason}')}"] += 1
            continue
        if not is_right:
            wrong.append(f"{dict(config)}: {found}")
    return counts, wrong


def exceeded(facts: Mapping[str, float], target: Target) -> list[str]:
    """The limits that a block exceeds."""
    warps = -(-int(facts["threads"]) // 32)
    # Registers are given to a warp in steps of 256, and to as many warps as fill the four quarters of an SM.
    registers = -(-int(facts["registers"]) * 32 // 256) * 256 * (-(-warps // 4) * 4)
    over = {
        "shared memory": facts["shared_bytes"] > SHARED_BYTES,
        "threads": facts["threads"] > THREADS,
        "registers of a thread": facts["registers"] > REGISTERS_PER_THREAD,
        "registers": registers > REGISTERS,
        "tensor memory": facts["tmem_columns"] > TMEM_COLUMNS[target.capability],
    }
    return [name for name, is_over in over.items() if is_over]


def _is_sound(reason: str, target: Target) -> bool:
    """Whether Triton's own refusal names a limit of this architecture, and more than that."""
    found = re.search(r"tensor memory, Required: (\d+), Hardware limit: (\d+)", reason)
    return found is not None and int(found[1]) > int(found[2]) == TMEM_COLUMNS[target.capability]


def compile_all(
    kernel: LoadedKernel, target: Target, configs: Sequence[Config], args: argparse.Namespace, cache: Path | None
) -> list[Compiled | Rejected]:
    problem = kernel.problem(None, "cuda")
    compiler = CrossCompiler(kernel, problem, jobs=args.jobs, timeout_s=args.timeout_s, cache=cache)
    with ThreadPoolExecutor(compiler.jobs) as pool, closing(compiler):
        return list(pool.map(lambda config: _outcome(compiler, config, target), configs))


def _outcome(compiler: CrossCompiler, config: Config, target: Target) -> Compiled | Rejected:
    try:
        return compiler.compile(config, target)
    except Rejected as rejected:
        return rejected


# -- speed ---------------------------------------------------------------------------------------


def throughput(args: argparse.Namespace) -> Iterator[str]:
    """Compilations per second by one process and by two, in alternating rounds."""
    yield "## Two processes against one\n"
    yield (
        f"{args.batch} configurations of matmul for h100, nothing from a cache, the processes warm; which goes "
        "first alternates.\n"
    )
    yield "| round | load average before | one, s | two, s | ratio |"
    yield "|--:|--:|--:|--:|--:|"
    ratios: list[float] = []
    for i in range(args.rounds):
        load = os.getloadavg()[0]
        seconds = {jobs: _batch_s(jobs, args) for jobs in ((1, 2) if i % 2 == 0 else (2, 1))}
        ratios.append(seconds[1] / seconds[2])
        yield f"| {i + 1} | {load:.2f} | {seconds[1]:.1f} | {seconds[2]:.1f} | {ratios[-1]:.2f} |"
    yield f"\nMedian: **{statistics.median(ratios):.2f} times** the throughput (1.7 wanted)."


def _batch_s(jobs: int, args: argparse.Namespace) -> float:
    kernel, target = shipped("matmul"), load_target("h100")
    first, *configs = choose(space_of(kernel, target), args.batch, random.Random(args.seed))
    compiler = CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=jobs, timeout_s=args.timeout_s)
    with compiler, ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda _: _outcome(compiler, first, target), range(jobs)))
        started = time.perf_counter()
        list(pool.map(lambda config: _outcome(compiler, config, target), configs))
        return time.perf_counter() - started


def cache(args: argparse.Namespace) -> Iterator[str]:
    """The same check twice."""
    yield "## The second time\n"
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            compiler_versions.cache_clear()  # asking the tools for their versions is part of a run
            started = time.perf_counter()
            check(shipped("matmul"), TARGETS, samples=args.samples, jobs=args.jobs, cache=Path(folder))
            seconds.append(time.perf_counter() - started)
    yield (
        f"matmul, default and {args.samples} samples on both targets: {seconds[0]:.1f} s, then {seconds[1]:.3f} s "
        f"from the cache: **{seconds[0] / seconds[1]:.0f} times** as fast (50 wanted)."
    )


def deadline(args: argparse.Namespace) -> Iterator[str]:
    """A compilation that never ends."""
    yield "## A compilation that hangs\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hanging.py")
        path.write_text(HANGING)
        kernel, target = load_kernel(path), load_target("h100")
        with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1, timeout_s=2.0) as compiler:
            _outcome(compiler, {"hang": False}, target)
            started = time.perf_counter()
            hung = _outcome(compiler, {"hang": True}, target)
            seconds = time.perf_counter() - started
            after = _outcome(compiler, {"hang": False}, target)
    assert isinstance(hung, Rejected)
    assert isinstance(after, Rejected)
    yield (
        f"An endless loop in `build`, with a deadline of 2 s: killed after {seconds:.2f} s (`{hung.stage}: "
        f"{hung.reason}`); the next one is answered (`{after.stage}: {after.reason}`)."
    )


PARTS: Mapping[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "kernels": kernels,
    "sweep": sweep,
    "throughput": throughput,
    "cache": cache,
    "deadline": deadline,
}


def heading() -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in compiler_versions().items())
    yield "# Compiling for GPUs that are not here\n"
    yield f"    python {shlex.join(sys.argv)}\n"
    yield (
        f"On {datetime.now(timezone.utc).date().isoformat()}; {os.cpu_count()} cores, {platform.machine()}, load "
        f"average {os.getloadavg()[0]:.2f} at the start; {versions}. Nothing here was run on a GPU, and nothing "
        "tells how fast a kernel is.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--configs", type=int, default=200, help="of each kernel and target in the sweep")
    parser.add_argument("--batch", type=int, default=24, help="compilations of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--timeout-s", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines: list[str] = []
    for part in (lambda _: heading(), *(PARTS[name] for name in args.parts)):
        for line in part(args):
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    if args.out:
        args.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
