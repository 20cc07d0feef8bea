"""Everything that only a GPU can show, in one command that can be repeated until all of it is done.

    python benchmarks/on_gpu.py --out on_gpu [--minutes 9]      # again and again, until it says that all is done
    python benchmarks/on_gpu.py --out dry --dry-run             # the same steps on this CPU, with small sizes

Steps: `evotune doctor`; the tests marked `gpu`; recordings of five kernels; the original study on a matmul
(searches with three seeds each, their wall time, and their winners timed together in alternating rounds); tuned
attention and matmul beside PyTorch and beside timing every configuration; and what tuning gains in GB/s and
TFLOP/s. After each step, `on_gpu.json` and `on_gpu.md` in the folder of `--out` hold what is known. A step whose
package does not import here is left out with the reason. Exit codes: 0 all done, 1 a step failed, 2 no GPU, 75
the time was up: the same command goes on.

Nothing is installed. With packages as wheels in a folder: `pip install --no-index --find-links FOLDER evotune`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import on_gpu_page
import on_gpu_timing
from on_gpu_timing import Skipped

ROOT = Path(__file__).parents[1]
RECORDED = ("vector_add", "attention", "matmul", "softmax", "rms_norm")
# Searches of the study: those of `evotune run`, and Helion's on the same space.
STUDY = ("evotune", "mfbo", "pattern", "random", "helion-lfbo-tree")
DONE, FAILED, NO_GPU, TIME_IS_UP = 0, 1, 2, 75
GRACE_S = 20.0  # to stop a command and write the page


@dataclass(frozen=True)
class Plan:
    """Sizes of everything. The study's budgets are evaluations; mfbo's follows from its schedule."""

    target: str
    shapes: dict[str, str]
    samples: int
    seeds: tuple[int, ...]
    evaluations: dict[str, int]
    final_reps: int
    exhaustive: int


FULL = Plan(
    "auto",
    {"matmul": "gpu_1024", **{name: "gpu" for name in RECORDED if name != "matmul"}},
    samples=640,
    seeds=(0, 1, 2),
    evaluations={"evotune": 60, "mfbo": 60, "pattern": 400, "random": 400, "helion-lfbo-tree": 400},
    final_reps=10_000,
    exhaustive=200,
)
DRY = Plan(
    "cpu",
    dict.fromkeys(RECORDED, "small"),
    samples=6,
    seeds=(0,),
    evaluations=dict.fromkeys(STUDY, 6),
    final_reps=20,
    exhaustive=4,
)


class OutOfTime(Exception):
    """The next step needs more time than is left."""


class Bench:
    """The steps that are done, and commands that end when the time is up."""

    def __init__(self, out: Path, plan: Plan, minutes: float, dry: bool) -> None:
        self.out = out
        self.plan = plan
        self.dry = dry
        self._end_s = time.monotonic() + 60 * minutes
        self._path = out / "on_gpu.json"
        self.state: dict[str, Any] = {"dry_run": dry, "begun": date.today().isoformat(), "steps": {}}
        if self._path.exists():
            self.state = json.loads(self._path.read_text(encoding="utf-8"))
        if self.state["dry_run"] != dry:
            raise SystemExit(f"{out} holds {'a dry run' if not dry else 'a run on a GPU'}; give another --out")

    @property
    def left_s(self) -> float:
        return self._end_s - time.monotonic() - GRACE_S

    def result(self, step: str) -> Any:
        """What a step found; Skipped if it did not get there."""
        done = self.state["steps"].get(step, {})
        if done.get("status") != "done":
            raise Skipped(f"the step {step} has no result")
        return done["result"]

    def take(self, name: str, step: Callable[[], Any]) -> None:
        """Take a step that was not taken before, and write down what came of it."""
        if self.state["steps"].get(name, {}).get("status") in ("done", "skipped"):
            return
        print(f"{name} …", flush=True)
        started = time.monotonic()
        try:
            entry: dict[str, Any] = {"status": "done", "result": step()}
        except Skipped as why:
            entry = {"status": "skipped", "reason": str(why)}
        except OutOfTime:
            raise
        except Exception as error:  # one step must not keep the others from being taken
            entry = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        entry["seconds"] = round(time.monotonic() - started, 1)
        print(f"{name}: {entry['status']} in {entry['seconds']} s. {entry.get('reason', '')}", flush=True)
        self.state["steps"][name] = entry
        self.save()

    def save(self) -> None:
        self._path.write_text(json.dumps(self.state, indent=1), encoding="utf-8")
        (self.out / "on_gpu.md").write_text(on_gpu_page.page(self.state), encoding="utf-8")

    def command(self, *arguments: str, at_least_s: float = 10.0, codes: tuple[int, ...] = (0,)) -> str:
        """Stdout of a command that ends with one of ``codes``; when the time is up it is interrupted, so that it
        can be resumed."""
        if self.left_s < at_least_s:
            raise OutOfTime
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, *arguments]
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            running = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
            try:
                out, _ = running.communicate(timeout=self.left_s)
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGINT)
                running.wait(timeout=GRACE_S / 2)
                raise OutOfTime from None
            log.write(out)
        if running.returncode not in codes:
            raise RuntimeError(f"exit code {running.returncode}; see log.txt")
        return out

    def evotune(self, *arguments: str, at_least_s: float = 10.0, codes: tuple[int, ...] = (0,)) -> str:
        return self.command("-m", "evotune", *arguments, at_least_s=at_least_s, codes=codes)

    # -- steps ------------------------------------------------------------------------------

    def doctor(self) -> Any:
        return json.loads(self.evotune("doctor", "--json", codes=(0, 2, 3)))  # what fails is a result

    def tests(self) -> Any:
        on_gpu_timing.require("pytest")
        which = ["--collect-only"] if self.dry else []
        said = self.command("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *which, "tests")
        return {"said": said.strip().splitlines()[-1]}

    def record(self, kernel: str) -> Any:
        folder = self.out / "recordings" / kernel
        if not (folder / "meta.json").exists():
            options = ["--target", self.plan.target, "--shape", self.plan.shapes[kernel]]
            options += ["--samples", str(self.plan.samples), "--passes", "1", "--out", str(folder)]
            self.evotune("record", f"kernels/{kernel}.py", *options)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return {k: meta[k] for k in ("device", "n", "n_valid", "optimum_ms", "worst_ms")}

    def run(self, kernel: str, search: str, seed: int, evaluations: int) -> Any:
        """One search from nothing to its end. Not resumed: its wall time is a result."""
        slowest = max((s["seconds"] for n, s in self.state["steps"].items() if n.startswith("study/")), default=30)
        options = ["--target", self.plan.target, "--shape", self.plan.shapes[kernel], "--seed", str(seed), "--json"]
        options += ["--max-evaluations", str(evaluations), "--journal", str(self.out / "journal.db"), "--fresh"]
        if search.startswith("helion-"):
            on_gpu_timing.require("helion")
            script = str(Path(__file__).parent / "on_gpu_timing.py")
            said = self.command(script, "helion", search.removeprefix("helion-"), kernel, *options)
        else:
            options += ["--provider", "none", "--search", search, "--quiet"]
            said = self.evotune("run", f"kernels/{kernel}.py", *options, at_least_s=1.3 * slowest)
        found = json.loads(said)
        return {
            k: found[k]
            for k in ("best", "default", "speedup", "speedup_ci95", "evaluations", "seconds", "failures")
        }

    def retimed(self, kernel: str, configs: dict[str, Any]) -> Any:
        """Several configurations in alternating rounds of one process, by name."""
        asked = self.out / "asked.json"
        asked.write_text(json.dumps(configs), encoding="utf-8")
        script = str(Path(__file__).parent / "on_gpu_timing.py")
        options = ["--target", self.plan.target, "--shape", self.plan.shapes[kernel]]
        options += ["--reps", str(self.plan.final_reps)]
        return json.loads(self.command(script, "together", kernel, str(asked), *options, at_least_s=60))

    def study_finals(self) -> Any:
        steps = self.state["steps"]
        arms = {n: s["result"] for n, s in steps.items() if n.startswith("study/") and s["status"] == "done"}
        if not arms:
            raise Skipped("no search has ended")
        configs = {n: a["best"]["config"] for n, a in arms.items() if a["best"]}
        return self.retimed("matmul", {"default": next(iter(arms.values()))["default"]["config"], **configs})

    def peers(self, kernel: str) -> Any:
        on_gpu_timing.require("torch")
        best = self.result(f"gain/{kernel}")["run"]["best"]["config"]
        asked = self.out / "asked.json"
        asked.write_text(json.dumps(best), encoding="utf-8")
        script = str(Path(__file__).parent / "on_gpu_timing.py")
        options = ["--target", self.plan.target, "--shape", self.plan.shapes[kernel]]
        options += ["--exhaustive", str(self.plan.exhaustive)]
        return json.loads(self.command(script, "peers", kernel, str(asked), *options, at_least_s=60))

    def gain(self, kernel: str) -> Any:
        found = self.run(kernel, "evotune", 0, self.plan.evaluations["evotune"])
        configs = {"default": found["default"]["config"], "best": found["best"]["config"]}
        work = on_gpu_timing.work(kernel, self.plan.shapes[kernel])
        return {"run": found, "retimed": self.retimed(kernel, configs), **work}

    def steps(self) -> dict[str, Callable[[], Any]]:
        """All of them in order; the later ones use what the earlier ones found."""
        every: dict[str, Callable[[], Any]] = {"doctor": self.doctor, "tests": self.tests}
        for kernel in ("vector_add", "attention", "matmul"):
            every[f"gain/{kernel}"] = lambda kernel=kernel: self.gain(kernel)
        for seed in self.plan.seeds:
            for search in STUDY:
                arguments = ("matmul", search, seed, self.plan.evaluations[search])
                every[f"study/{search}/{seed}"] = lambda arguments=arguments: self.run(*arguments)
        every["study_finals"] = self.study_finals
        for kernel in ("attention", "matmul"):
            every[f"peers/{kernel}"] = lambda kernel=kernel: self.peers(kernel)
        for kernel in RECORDED:
            every[f"record/{kernel}"] = lambda kernel=kernel: self.record(kernel)
        return every


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is found")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so long; the same command goes on")
    parser.add_argument("--dry-run", action="store_true", help="take every step on this CPU, at small sizes")
    parser.add_argument("--only", action="append", help="only steps that begin so; may be given several times")
    args = parser.parse_args()
    if not args.dry_run and (why := on_gpu_timing.no_gpu()):
        print(f"{why}; to take every step on the CPU: --dry-run", file=sys.stderr)
        return NO_GPU
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.out.resolve(), DRY if args.dry_run else FULL, args.minutes, args.dry_run)
    steps = bench.steps()
    try:
        for name, step in steps.items():
            if args.only is None or name.startswith(tuple(args.only)):
                bench.take(name, step)
    except OutOfTime:
        print(
            f"the time is up: {len(bench.state['steps'])} of {len(steps)} steps are done; the same command goes on"
        )
        return TIME_IS_UP
    finally:
        bench.save()
    failed = [n for n, s in bench.state["steps"].items() if s["status"] == "failed"]
    print(f"done; see {args.out / 'on_gpu.md'}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return FAILED if failed else DONE


if __name__ == "__main__":
    sys.exit(main())
