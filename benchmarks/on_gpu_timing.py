"""The steps of `on_gpu.py` that need a process of their own; each prints one JSON object.

python benchmarks/on_gpu_timing.py together KERNEL CONFIGS.json --target T --shape S --reps N
python benchmarks/on_gpu_timing.py helion lfbo-tree KERNEL --target T --shape S --seed N …
python benchmarks/on_gpu_timing.py peers KERNEL CONFIG.json --target T --shape S --exhaustive N
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]  # a checkout without an installation

ROOT = Path(__file__).parents[1]
LIMIT_S = 20.0  # for one configuration among several in alternation
ROUNDS = 200


class Skipped(Exception):
    """A step that cannot be taken here, and why."""


def require(package: str) -> None:
    """Leave a step out, with the reason, if a package does not import."""
    try:
        importlib.import_module(package)
    except Exception as error:  # a package for another version of torch may raise anything
        raise Skipped(f"{package} does not import: {type(error).__name__}: {error}") from None


def no_gpu() -> str | None:
    """Why nothing can be measured here, if nothing can."""
    from evotune.gpu.detect import detect

    if not detect():
        return "no NVIDIA GPU is here"
    try:
        import torch
    except ImportError as error:
        return f"a GPU is here and torch is not: {error}"
    return None if torch.cuda.is_available() else "a GPU is here and torch finds no CUDA device"


def work(kernel: str, shape: str) -> dict[str, float]:
    """Operations and bytes of a problem."""
    from evotune.kernel import load_kernel

    loaded = load_kernel(ROOT / "kernels" / f"{kernel}.py")
    problem = loaded.definition.shapes[shape]
    return {"flops": loaded.definition.flops(problem), "bytes": loaded.definition.bytes_moved(problem)}


def settings_of(args: argparse.Namespace) -> Any:
    from evotune import settings

    flags = {"run.target": args.target, "run.shape": args.shape, "measure.run_timeout_s": 3 * LIMIT_S}
    flags |= {"run.seed": args.seed, "run.max_evaluations": args.max_evaluations, "run.journal": args.journal}
    return settings.load(None, {**flags, "llm.provider": "none"}, {})


def together(args: argparse.Namespace) -> Any:
    """Latencies of named configurations from alternating rounds, and ratios to the first."""
    from evotune.interval import latency_ci95_ms, ratio_ci95
    from evotune.subject import find_subject
    from evotune.trial import Fidelity

    configs = json.loads(args.configs.read_text(encoding="utf-8"))
    subject = find_subject(str(ROOT / "kernels" / f"{args.kernel}.py"), settings_of(args))
    evaluator = subject.open_evaluator()
    try:
        fidelity = Fidelity(4, "ultra", args.reps, LIMIT_S)
        measured = evaluator.interleave(list(configs.values()), fidelity)
        device = evaluator.device
    finally:
        evaluator.close()
    out: dict[str, Any] = {"device": device.name, "versions": dict(device.versions), "rows": {}}
    first = measured[0]
    for name, found in zip(configs, measured, strict=True):
        if not found.ok:
            out["rows"][name] = {"failed": f"{found.failed_stage}: {found.reason}"}
            continue
        row: dict[str, Any] = {"latency_ms": found.latency_ms, "ci95_ms": latency_ci95_ms(found)}
        row |= {"samples": len(found.samples_ms), "context": dict(found.context)}
        if first.ok:
            row["speedup"], row["speedup_ci95"] = ratio_ci95(first, found)
        out["rows"][name] = row
    return out


class Silent:
    def on_trial(self, *_: Any, **__: Any) -> None: ...

    def on_note(self, text: str) -> None:
        print(text, file=sys.stderr)


def helion(args: argparse.Namespace) -> Any:
    """One of Helion's searches, unmodified, over the kernel's own space: `evotune run` with another searcher."""
    from evotune.helion import ALGORITHMS, HelionSearch
    from evotune.journal import Journal
    from evotune.subject import find_subject
    from evotune.tuner import Budget, Finals, Tuner

    settings = settings_of(args)
    subject = find_subject(str(ROOT / "kernels" / f"{args.kernel}.py"), settings)
    with contextlib.ExitStack() as stack:
        evaluator = subject.open_evaluator()
        stack.callback(evaluator.close)
        journal = stack.enter_context(Journal(Path(args.journal)))
        description = {"search": f"helion {args.algorithm}", "seed": args.seed, "device": evaluator.device.name}
        engine = subject.open_engine(evaluator)
        stack.callback(engine.cancel)
        tuner = Tuner(
            HelionSearch(subject.space, args.seed, ALGORITHMS[args.algorithm]),
            engine,
            evaluator,
            journal.open_run(subject.name, subject.source_hash, description, fresh=True),
            budget=Budget(settings.run.max_evaluations, math.inf),
            finals=Finals(settings.measure.finalists, subject.finals),
            names={"kernel": subject.name, "target": subject.target},
            llm=lambda: {},
            observers=[Silent()],
        )
        return tuner.tune().to_json()


def peers(args: argparse.Namespace) -> Any:
    """The tuned kernel, PyTorch's, and the best of timing many configurations one after the other.

    Without CUDA only PyTorch's function is run, on the CPU, to have walked the step.
    """
    import numpy as np
    import torch

    from evotune.gpu.inputs import compare, to_tensor
    from evotune.kernel import load_kernel

    kernel = load_kernel(ROOT / "kernels" / f"{args.kernel}.py")
    problem = dict(kernel.definition.shapes[args.shape])
    drawn = kernel.definition.inputs(problem, np.random.default_rng(0))
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    tensors = [to_tensor(a, device) for a in drawn]
    theirs = {"matmul": torch_matmul, "attention": torch_attention}[args.kernel](tensors, problem)
    out: dict[str, Any] = {"device": device, "torch": torch.__version__}
    if device == "cpu":
        started = time.perf_counter()
        theirs()
        return {**out, "torch_ms": 1e3 * (time.perf_counter() - started), "skipped": "the rest needs CUDA"}
    from evotune.gpu.detect import detect
    from evotune.gpu.device import CudaDevice

    gpu = detect()[0]
    capability = torch.cuda.get_device_capability()
    problem |= {"capability": 10 * capability[0] + capability[1]}
    problem |= {"multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count}
    backend = kernel.backend("cuda")
    expected = theirs()
    result = torch.empty_like(expected.reshape(tensors[0].shape if args.kernel == "attention" else expected.shape))

    def launcher(config: Any) -> Any:
        launch = backend.build(config, problem)
        return lambda: launch(*tensors, result)

    ours = launcher(json.loads(args.configs.read_text(encoding="utf-8")))
    ours()
    torch.cuda.synchronize()
    wrong = compare(result, expected.reshape(result.shape), kernel.definition.tolerance[str(problem["dtype"])])
    clock = CudaDevice(gpu.uuid)
    for _ in range(20):
        clock.time_ms([ours, theirs])
    times = [clock.time_ms([ours, theirs] if i % 2 == 0 else [theirs, ours])[:: 1 if i % 2 == 0 else -1]
             for i in range(ROUNDS)]  # fmt: skip
    out |= {"tuned_ms": [t[0] for t in times], "torch_ms": [t[1] for t in times], "differs": wrong}
    return {**out, "exhaustive": exhaustive(backend.space(problem), launcher, args.exhaustive)}


def exhaustive(space: Any, launcher: Any, n: int) -> dict[str, Any]:
    """As `triton.autotune` does: compile and `do_bench` each configuration, one after the other."""
    from random import Random

    import triton.testing

    configs = [space.default, *space.sample(Random(0), n - 1)]
    started, best, failed = time.perf_counter(), math.inf, 0
    for config in configs:
        try:
            best = min(best, triton.testing.do_bench(launcher(config), return_mode="median"))
        except Exception:  # one that does not compile or fit: triton.autotune takes it as infinitely slow
            failed += 1
    return {"configs": len(configs), "failed": failed, "best_ms": best, "seconds": time.perf_counter() - started}


def torch_matmul(tensors: Any, problem: Any) -> Any:
    import torch

    return lambda: torch.matmul(*tensors)


def torch_attention(tensors: Any, problem: Any) -> Any:
    import torch

    batched = [t[None] for t in tensors]
    causal = bool(problem.get("causal", False))
    return lambda: torch.nn.functional.scaled_dot_product_attention(*batched, is_causal=causal)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = {"together": together, "helion": helion, "peers": peers}
    commands = parser.add_subparsers(dest="way", required=True)
    for way in ways:
        command = commands.add_parser(way)
        if way == "helion":
            command.add_argument("algorithm")
        command.add_argument("kernel")
        if way != "helion":
            command.add_argument("configs", type=Path)
        command.add_argument("--target", default="auto")
        command.add_argument("--shape", required=True)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--max-evaluations", type=int, default=60)
        command.add_argument("--journal", default=":memory:")
        command.add_argument("--reps", type=int, default=500)
        command.add_argument("--exhaustive", type=int, default=200)
        command.add_argument("--fresh", action="store_true")
        command.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        found = ways[args.way](args)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
