"""How good is the attention kernel after 60 evaluations? Replays runs on its brute-forced CPU space.

    python benchmarks/attention_cpu.py [--evaluations 60] [--seeds 10]

Each run is `evotune run recordings/attention_cpu` with another seed: with the mock model, without a
model, and by random search. A figure is optimum / best found; 0.95 and more is within 5 %.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ARMS = {
    "evotune, mock model": {"llm.provider": "mock"},
    "evotune, no model": {"llm.provider": "none"},
    "random search": {"run.search": "random"},
}


class Silent:
    def on_trial(self, *_, **__) -> None: ...

    def on_note(self, text: str) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", default="recordings/attention_cpu")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    from evotune import session
    from evotune.content import RECORDINGS, find
    from evotune.replay import load_recording
    from evotune.settings import load

    meta = load_recording(find(args.recording, RECORDINGS)).meta
    optimum_ms = meta["optimum_ms"]
    print(f"{meta['name']}: {meta['n_valid']} of {meta['n']} configurations valid, optimum {optimum_ms:.4g} ms,")
    print(f"worst / best {meta['worst_ms'] / optimum_ms:.1f}, within 5 %: {meta['within5pct']}, ", end="")
    print(f"{args.evaluations} evaluations, {args.seeds} seeds")
    print(f"{'':22s} {'median':>7s} {'worst':>7s}  within 5 %")
    for name, arm in ARMS.items():
        found: list[float] = []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                flags = {"run.seed": seed, "run.max_evaluations": args.evaluations, **arm}
                settings = load(None, {**flags, "run.journal": str(Path(folder) / "j.db")}, {})
                best = session.tune(args.recording, settings, observer=Silent()).best
                found.append(0.0 if best is None else optimum_ms / best["latency_ms"])
        within = sum(f >= 0.95 for f in found)
        print(f"{name:22s} {statistics.median(found):7.3f} {min(found):7.3f}  {within} of {args.seeds}")


if __name__ == "__main__":
    main()
