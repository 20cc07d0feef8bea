"""Attention tuned by evotune beside PyTorch's scaled_dot_product_attention, on one thread of this CPU.

    python benchmarks/sdpa.py [--shape default] [--rounds 200]

Both run on the same inputs in one process, in alternating rounds, timed in the CPU time of the
calling thread. The configuration is the best of `recordings/attention_cpu`; the ratio, not the
times, is the result.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from evotune.cpu.toolchain import find_compiler
from evotune.interval import ratio_ci95
from evotune.kernel import load_kernel
from evotune.replay import load_recording
from evotune.trial import Fidelity, Measurement

ROOT = Path(__file__).parents[1]


def thread_ms(call) -> float:
    start = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - start) / 1e6


def best_of(recording_folder: Path) -> dict:
    recording = load_recording(recording_folder)
    valid = {k: r.time_ms for k, r in recording.rows.items() if r.time_ms is not None}
    return recording.space.from_key(min(valid, key=lambda k: valid[k]))


def compiled(kernel, config: dict, problem, folder: Path):
    """The configuration as a C function, and the compiler that made it."""
    source = kernel.backend("cpu").build(config, problem)
    (folder / "kernel.c").write_text(source.text)
    compiler = find_compiler(folder)
    compiler.compile(folder / "kernel.c", folder / "kernel.so", source.flags, timeout_s=60)
    return ctypes.CDLL(str(folder / "kernel.so")).evotune_kernel, compiler


def alternate(calls: dict, rounds: int) -> dict[str, Measurement]:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(-20, rounds):  # the first twenty warm up
        for name, call in list(calls.items())[:: 1 if i % 2 else -1]:
            took = thread_ms(call)
            if i >= 0:
                samples[name].append(took)
    return {n: Measurement(Fidelity(4, "ultra", rounds), "measured", tuple(s)) for n, s in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="default")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--recording", type=Path, default=ROOT / "recordings" / "attention_cpu")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    config = best_of(args.recording)
    kernel = load_kernel(ROOT / "kernels" / "attention.py")
    problem = kernel.problem(args.shape, "cpu")
    inputs = kernel.definition.inputs(problem, np.random.default_rng(0))
    out = np.empty_like(kernel.definition.reference(problem, *inputs))
    tensors = [torch.from_numpy(a)[None] for a in inputs]
    is_causal = bool(problem.get("causal", 0))

    def sdpa():
        return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=is_causal)

    with TemporaryDirectory() as folder, torch.inference_mode():
        function, compiler = compiled(kernel, config, problem, Path(folder))
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (*inputs, out)]
        measured = alternate({"evotune": lambda: function(*pointers), "sdpa": sdpa}, args.rounds)
        difference = float(np.abs(out - sdpa()[0].numpy()).max())
    ratio, interval = ratio_ci95(measured["sdpa"], measured["evotune"])
    result = {
        "date": date.today().isoformat(),
        "shape": dict(problem),
        "config": config,
        "compiler": compiler.version,
        "torch": torch.__version__,
        "max_abs_difference": difference,
        "evotune_ms": round(measured["evotune"].latency_ms, 4),
        "sdpa_ms": round(measured["sdpa"].latency_ms, 4),
        "sdpa_over_evotune": round(ratio, 3),
        "ci95": [round(x, 3) for x in interval],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
