"""Tune matrix multiplication from Python: the objective is the measured rate, in GFLOP/s.

On a machine without a GPU the CPU implementation is tuned, and without an API key a mock model
proposes; the times are real either way.

    python examples/matmul_tuning.py            # tune
    python examples/matmul_tuning.py --simple   # time the default configuration, no tuning
"""

from __future__ import annotations

import argparse
import os
from contextlib import closing

from evotune import OpenEvolveTuner
from evotune.errors import Rejected
from evotune.settings import load
from evotune.subject import find_subject


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simple", action="store_true", help="time the default configuration, no tuning")
    parser.add_argument("--target", default="auto", help="auto, cpu, h100, h200, b200")
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--provider", default="auto", help="auto, openai, anthropic, mock, none")
    args = parser.parse_args()

    subject = find_subject("kernels/matmul.py", load(None, {"run.target": args.target}, os.environ))
    gigaflops = subject.roofline.flops / 1e9
    with closing(subject.open_evaluator()) as evaluator:
        print(f"target {subject.target} ({subject.why}), {evaluator.device.name}")

        def rate(config: dict) -> float | None:
            """GFLOP/s of one configuration, None if it does not compile or its result is wrong."""
            try:
                evaluator.compile(config)
            except Rejected:
                return None
            measured = evaluator.measure(config, evaluator.fidelities[-1])
            return gigaflops / (measured.latency_ms * 1e-3) if measured.ok else None

        default = rate(dict(subject.space.default))
        print(f"default {dict(subject.space.default)}: {default:.1f} GFLOP/s")
        if args.simple:
            return
        tuner = OpenEvolveTuner(
            subject.space, rate, max_evaluations=args.evaluations, provider=args.provider, verbose=True
        )
        best = tuner.tune()
        print(f"best {best}: {tuner.best_score:.1f} GFLOP/s, {tuner.best_score / default:.2f}x the default")


if __name__ == "__main__":
    main()
