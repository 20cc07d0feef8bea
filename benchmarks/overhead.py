"""The tuner's own time per evaluation: CPU milliseconds of everything but compiling and measuring.

    python benchmarks/overhead.py [RECORDING …] [--evaluations 60] [--seeds 5] [--provider mock]

A run is replayed from a recording, so whatever CPU time it takes is the tuner's own: the search, the
screen, the model's sandbox, the journal. Child processes count; start-up (imports, loading the
recording) does not.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


class Silent:
    def on_trial(self, *_, **__) -> None: ...

    def on_note(self, text: str) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", default=["recordings/attention_cpu", "recordings/gemm_3090"])
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--provider", default="mock")
    args = parser.parse_args()
    from evotune import session
    from evotune.settings import load

    print(f"{'recording':24s} {'evaluations':>11s} {'min':>7s} {'median':>7s} {'max':>7s}  ms per evaluation")
    for name in args.recordings:
        found = []
        for seed in range(args.seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                flags = {
                    "run.seed": seed,
                    "run.max_evaluations": args.evaluations,
                    "run.journal": str(Path(folder) / "j.db"),
                    "llm.provider": args.provider,
                }
                settings = load(None, flags, {})
                before = cpu_s()
                session.tune(name, settings, observer=Silent())
                found.append(1e3 * (cpu_s() - before) / args.evaluations)
        found = found[1:]  # the first run also imports what is imported late
        print(
            f"{Path(name).name:24s} {args.evaluations:11d} {min(found):7.2f} {statistics.median(found):7.2f} "
            f"{max(found):7.2f}"
        )


if __name__ == "__main__":
    main()
