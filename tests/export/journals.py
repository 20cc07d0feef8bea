"""Journals of runs that were never made, written by the real journal: GPU targets included."""

from __future__ import annotations

from evotune.journal import Journal
from evotune.trial import Candidate, Measurement, Static, Trial
from tests.toy import LADDER, ULTRA

MATMUL = {"BLOCK_M": 64, "BLOCK_N": 64, "PRECISION": "ieee", "num_warps": 4, "num_stages": 3, "maxnreg": 0}
H100 = {"target": "h100", "device": "NVIDIA H100 80GB HBM3", "versions": {"triton": "3.9.0"}, "search": "evotune"}
PROBLEM = {"m": 4096, "n": 4096, "k": 4096, "dtype": "float16"}


def write(
    path, configs, *, kernel="matmul", problem=PROBLEM, provenance="measured", fails=(), result=True, **described
):
    """One run; the first configuration is the default and takes 2 ms, later ones less and less."""
    described = {**H100, "problem": dict(problem), "seed": 0, **described}
    with Journal(path) as journal:
        run = journal.open_run(kernel, "hash", described, fresh=True)
        for number, config in enumerate(configs):
            latency_ms = 2.0 / (1 + number)
            timed = Measurement(LADDER[1], provenance, (latency_ms, latency_ms * 1.01), context={"seconds": 0.5})
            failed = Measurement(LADDER[1], provenance, failed_stage="incorrect", reason="off by one")
            trial = Trial(
                number,
                Candidate(config, f"# program {number}\n", "default" if number == 0 else "random"),
                (failed if number in fails else timed,),
                Static(0.25, {"registers": 40.0}),
            )
            run.begin(trial)
            run.append(trial)
        best = max((n for n in range(len(configs)) if n not in fails), default=None)
        if result:
            run.finish("evaluations", _result(configs, best, run.id, path, described, kernel, provenance))
        else:
            run.release()
        return run.id


def _result(configs, best, run_id, path, described, kernel, provenance):
    speedup = None if best is None else 1.0 + best
    return {
        "run_id": run_id,
        "kernel": kernel,
        "target": described["target"],
        "device": described["device"],
        "provenance": provenance,
        "best": None
        if best is None
        else {"config": configs[best], "latency_ms": 2.0 / speedup, "ci95_ms": [1.9 / speedup, 2.1 / speedup]},
        "default": {"config": configs[0], "latency_ms": 2.0},
        "speedup": speedup,
        "speedup_ci95": None if best is None else [0.9 * speedup, 1.1 * speedup],
        "evaluations": len(configs),
        "failures": {},
        "proposals": {},
        "llm": {"provider": "none", "calls": 0},
        "stopped": "evaluations",
        "seconds": 1.0,
        "journal": str(path),
    }


def write_shapes(path):
    """A run over two shapes, with a program, as its end records it."""
    program = (
        "def get_kernel_config(problem):\n"
        '    """For both."""\n'
        "    if problem['n'] <= 181:\n"
        "        return {'tile': 16}  # small\n"
        "    return {'tile': 64}  # large\n"
    )
    shapes = {"small": {"n": 64}, "large": {"n": 512}}
    described = {"shapes": shapes, "target": "cpu", "device": "CPU", "versions": {}, "seed": 0}
    with Journal(path) as journal:
        run = journal.open_run("toy (small, large)", "hash", described, fresh=True)
        for number, (shape, tile) in enumerate([("small", 16), ("large", 64)]):
            measured = (Measurement(ULTRA, "measured", (1.0 + number,)),)
            trial = Trial(number, Candidate({"@shape": shape, "tile": tile}, "", "default"), measured, Static(0.1))
            run.begin(trial)
            run.append(trial)
        result = _result([{}, {}], 1, run.id, path, described, "toy", "measured")
        rows = [
            {
                "shape": shape,
                "problem": problem,
                "config": {"tile": tile},
                "latency_ms": latency_ms,
                "ci95_ms": [latency_ms, latency_ms],
                "default": {"config": {"tile": 16}, "latency_ms": 2.0},
                "speedup": 2.0 / latency_ms,
                "speedup_ci95": [1.0, 2.0],
            }
            for (shape, problem), tile, latency_ms in zip(shapes.items(), (16, 64), (1.0, 2.0), strict=True)
        ]
        run.finish("evaluations", {**result, "program": program, "shapes": rows, "score": 1.0, "single": None})
        return run.id
