"""The long versions of the promises in docs/reliability.md, one command for each.

    python benchmarks/reliability.py corpus
    python benchmarks/reliability.py fuzz [--minutes 10]
    python benchmarks/reliability.py kill [--kills 200]
    python benchmarks/reliability.py torn [--share 1.0]
    python benchmarks/reliability.py long [--evaluations 5000]
    python benchmarks/reliability.py million [--trials 1000000]
    python benchmarks/reliability.py faults
    python benchmarks/reliability.py pythons PYTHON…

Each prints what it measured and ends with status 1 if the promise was not kept. They need the ``dev``
extra; the last one an interpreter of each version with evotune, pytest and hypothesis.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
# At the end: the package that is installed is the one that is looked at.
sys.path.append(str(ROOT))

REPLAY = ["recordings/pnpoly_3090", "--search", "random", "--provider", "none", "--max-evaluations", "400"]
KERNEL = ["kernels/vector_add.py", "--target", "cpu", "--search", "random", "--provider", "none"]
KILLS_EACH = 25
PYTHON_TESTS = ["tests/reliability", "tests/program", "tests/test_journal.py", "tests/test_process.py"]


def corpus(_: argparse.Namespace) -> bool:
    """Every program of the corpus once: effects, wrong answers, seconds and memory."""
    from evotune.errors import Rejected
    from evotune.program import Sandbox
    from tests.program import corpus as programs
    from tests.program.test_corpus import SECRET, SPACE, Surroundings

    hostile = [p for category in programs.HOSTILE.values() for p in category]
    effects, accepted, refused, seconds = [], [], [], []
    os.environ["EVOTUNE_SECRET"] = SECRET
    with tempfile.TemporaryDirectory() as folder, Sandbox("strict") as sandbox:
        sandbox.protection()
        there = Surroundings(Path(folder))
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for program in hostile + programs.SWALLOWING + programs.LEGITIMATE:
            text = there.place(program)
            sandbox.protection()  # the next process is ready: starting it is not the program's time
            start = time.monotonic()
            try:
                config = sandbox.run(text, SPACE)
            except Rejected as rejection:
                if program in programs.LEGITIMATE:
                    refused.append(program)
                if SECRET in rejection.reason:
                    effects.append("the secret was told")
            else:
                if program in hostile or config != programs.LEGAL:
                    accepted.append(program)
            seconds.append(time.monotonic() - start)
            effects += there.effects()
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    worker_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    hiding = len(programs.SWALLOWING)
    print(
        f"{len(hostile)} hostile programs in {len(programs.HOSTILE)} categories, {hiding} that hide their failure"
    )
    print(f"effects {effects}, wrong accepts {accepted}")
    print(f"legitimate programs refused: {len(refused)} of {len(programs.LEGITIMATE)} {refused}")
    print(f"seconds: median {statistics.median(seconds):.3f}, most {max(seconds):.3f}")
    print(
        f"memory: a program's process at most {worker_kib >> 10} MiB, the one that asks grew {grown_kib >> 10} MiB"
    )
    return not effects and not accepted and not refused and max(seconds) < 1.0 and worker_kib < 150 << 10


def fuzz(arguments: argparse.Namespace) -> bool:
    """Bent answers and programs until the time is up."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    from evotune.process.memory import resident_bytes
    from evotune.program import Sandbox
    from tests.reliability.fuzzing import bent, check_extraction, check_run

    counts: Counter[str] = Counter()
    slowest_s = 0.0
    with Sandbox() as sandbox:
        sandbox.protection()

        def answers(text: str) -> None:
            counts["answers"] += 1
            check_extraction(text)

        def programs(text: str) -> None:
            nonlocal slowest_s
            counts["programs"] += 1
            start = time.monotonic()
            counts["accepted"] += check_run(sandbox, text)
            slowest_s = max(slowest_s, time.monotonic() - start)

        started_with, end = 0, time.monotonic() + 60 * arguments.minutes
        for batch in range(10**9):
            for check, many in ((answers, 300), (programs, 100)):
                quiet = settings(
                    max_examples=many, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                seed(batch)(quiet(given(st.one_of(bent(), bent(), st.text(max_size=4000)))(check)))()
            started_with = started_with or resident_bytes(os.getpid())
            if time.monotonic() > end:
                break
        grown = resident_bytes(os.getpid()) / started_with - 1
    print(
        f"{counts['answers']} answers read, {counts['programs']} programs run, {counts['accepted']} of them legal"
    )
    print(f"slowest program {slowest_s:.2f} s with the start of its process; memory grew by {grown:.1%}")
    return True  # a broken promise is an exception


def kill(arguments: argparse.Namespace) -> bool:
    """Runs that are killed at random moments and go on."""
    from evotune.engine import ahead
    from evotune.process import usable_cores
    from tests.reliability.killing import Ballistic, Toll

    tolls: list[Toll] = []
    kinds: Counter[str] = Counter()
    has_compiler = shutil.which("cc") is not None
    while (struck := sum(kinds.values())) < arguments.kills:
        # A quarter of the runs compile and measure.
        is_kernel = has_compiler and len(tolls) % 4 == 3
        what, budget = (KERNEL, ["--max-evaluations", "40"]) if is_kernel else (REPLAY, [])
        with tempfile.TemporaryDirectory() as folder:
            run = Ballistic(Path(folder), [*what, *budget], seed=len(tolls))
            tolls.append(toll := run.run(min(KILLS_EACH, arguments.kills - struck)))
        kinds.update(toll.kills)
        slots = 1 if not is_kernel else 1 + ahead(usable_cores(), 1, 40)
        if toll.repeated > slots * sum(toll.kills.values()):
            toll.lost.append(f"{toll.repeated} evaluations repeated")
        print(
            f"{what[0]}: {dict(toll.kills)}, {toll.acknowledged} acknowledged, {toll.repeated} repeated", flush=True
        )
    resume_s = [s for toll in tolls for s in toll.resume_s]
    resume_cpu_s = [s for toll in tolls for s in toll.resume_cpu_s]
    lost = [text for toll in tolls for text in toll.lost]
    left = [pid for toll in tolls for pid in toll.left]
    print(f"{sum(kinds.values())} kills ({dict(kinds)}), {sum(t.acknowledged for t in tolls)} results acknowledged")
    print(f"lost {lost}, processes left {left}")
    print(f"evaluations repeated {sum(t.repeated for t in tolls)}, left out {sum(t.quarantined for t in tolls)}")
    for what, seconds in (("wall", resume_s), ("processor", resume_cpu_s)):
        middle, most = statistics.median(seconds), max(seconds)
        print(f"{what} time until the first evaluation: median {middle:.2f} s, most {most:.2f} s")
    print(f"best so far is monotone: {all(t.is_monotone for t in tolls)}")
    return not lost and not left and all(t.is_monotone for t in tolls) and max(resume_cpu_s) < 5.0


def torn(arguments: argparse.Namespace) -> bool:
    """A journal damaged at every byte of its last page."""
    from tests.reliability import torn as damages

    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for name, verdicts in damages.survey(Path(folder), arguments.share, random.Random(0)):
            print(f"{name}: {dict(verdicts)}", flush=True)
            total.update(verdicts)
        journals = damages.make(Path(folder))
        offsets = random.Random(0).sample(range(journals.rested.stat().st_size), round(2000 * arguments.share))
        rotted = damages.damage(journals.rested, "", offsets, damages.flip, journals.trials)
        print(f"file alone, one bit anywhere (not promised): {dict(rotted)}")
    return not total["WRONG"]


def long(arguments: argparse.Namespace) -> bool:
    """Memory and time per evaluation of a replayed run."""
    from tests.reliability.growth import long_run

    kept = True
    for search in ("random", "evotune"):
        with tempfile.TemporaryDirectory() as folder:
            course = long_run(Path(folder, "j.db"), "recordings/dedisp_A100", arguments.evaluations, search)
        n, step = len(course.at_s), len(course.at_s) // 10
        each = [f"{course.ms_each(a + 1, a + step):.1f}" for a in range(0, n - step + 1, step)]
        growth = course.growth(after=min(500, n // 2))
        mib = course.rss_bytes[-1] >> 20
        print(f"{search}: {n} evaluations; memory {mib} MiB, grew by {growth:.1%} after the 500th")
        print(f"  processor time per evaluation, by tenths of the run: {' '.join(each)} ms", flush=True)
        kept = kept and growth < 0.2
    return kept


def million(arguments: argparse.Namespace) -> bool:
    """What reading costs in a journal of many trials, in many runs and in one."""
    from evotune.journal import Journal
    from tests.reliability.growth import fill

    kept = True
    for runs in (1000, 1):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "j.db")
            fill(path, runs, arguments.trials // runs)
            print(f"{runs} runs of {arguments.trials // runs} trials, {path.stat().st_size >> 20} MiB", flush=True)
            show = {what: _seconds(["show", *more, "--journal", str(path)]) for what, more in SHOWN.items()}
            start = time.process_time()
            with Journal(path) as journal:
                trials = len(list(journal.open_run("toy", "hash", {"seed": runs - 1, "target": "cpu"})))
            resume_s = time.process_time() - start
            print(f"  {', '.join(f'{what} {s:.2f} s' for what, s in show.items())}")
            print(f"  reading the {trials} trials of a run that is resumed {resume_s:.2f} s", flush=True)
            kept = kept and max(show["show"], resume_s) < 2.0
    return kept


SHOWN = {"show": [], "show --all": ["--all"]}


def _seconds(command: list[str]) -> float:
    """Processor time of a command; wall time would be that of whoever else uses the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "evotune", *command], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def faults(_: argparse.Namespace) -> bool:
    """Workers that fail in every way we know, and a run over kernels that take theirs with them."""
    from evotune.process import Worker
    from evotune.supervisor import Subject, Supervisor
    from evotune.trial import Fidelity
    from tests.test_process import FAULTS, processes_in_group
    from tests.test_supervisor import CLASSES

    sys.path.append(str(ROOT / "tests" / "cpu"))
    low, kept = Fidelity(1, "low", 5), True
    of_a_candidate = {fault: kind for fault, (kind, _) in FAULTS.items() if kind not in ("value", "error")}
    for fault in {**of_a_candidate, **CLASSES}:
        with Worker("faulty_worker:measuring", max_resident_bytes=256 << 20, environment=FILE) as worker:
            is_late = of_a_candidate.get(fault) == "timeout"
            supervisor, guilty = Supervisor([worker], 1.0 if is_late else 20.0), Subject(fault, fault)
            groups = [worker.start() and worker.pid]
            found = [supervisor.measure(guilty, low) for _ in range(3)]
            following = supervisor.measure(Subject("ok", "ok"), low)
            groups.append(worker.pid)
        left = [pid for group in groups for pid in processes_in_group(group)]
        is_quarantined = str(found[2].reason).startswith("quarantined")
        is_known = found[0].failed_stage == ("timeout" if is_late else "crash")
        good = is_known and is_quarantined and following.ok and not left
        kept = kept and good
        print(f"{fault}: {found[0].failed_stage}, {found[0].reason}; {'kept' if good else 'NOT KEPT'}", flush=True)
    return _faulty_kernels() and kept


FILE = {"EVOTUNE_TEST_FILE": "/nonexistent"}


def _faulty_kernels() -> bool:
    """Whether a run over them ends with the right winner, and the journal says what became of each."""
    from evotune import history
    from tests.cpu.saxpy import FAULTY

    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "j.db")
        command = ["run", str(ROOT / "tests" / "cpu" / "saxpy.py"), "--shape", "faulty", "--target", "cpu"]
        options = ["--search", "random", "--provider", "none", "--max-evaluations", "99", "--journal", str(journal)]
        done = subprocess.run(
            [sys.executable, "-m", "evotune", *command, *options, "--json"], capture_output=True, text=True,
            check=False, cwd=ROOT, env={**os.environ, "EVOTUNE_MEASURE_RUN_TIMEOUT_S": "3"},
        )  # fmt: skip
        result = json.loads(done.stdout)
        stages = {t.config["variant"]: t.failure for t in history.load(journal).trials}
    for variant in FAULTY:
        if failure := stages.get(variant):
            print(f"a run, {variant}: {failure.failed_stage}, {failure.reason}")
    print(f"best {result['best'] and result['best']['config']['variant']}, {result['failures']}")
    return result["best"]["config"]["variant"] == "right" and all(stages.get(v) for v in FAULTY)


def pythons(arguments: argparse.Namespace) -> bool:
    """The tests of these promises with other interpreters."""
    kept = True
    for python in arguments.python:
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", *PYTHON_TESTS]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
        lines = done.stdout.strip().splitlines() or [done.stderr]
        print(
            f"{version}: {lines[-1]}",
            *(line for line in lines if line.startswith("FAILED")),
            sep="\n  ",
            flush=True,
        )
        kept = kept and done.returncode == 0
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    options: dict[Callable[[argparse.Namespace], bool], dict[str, float]] = {
        corpus: {}, fuzz: {"minutes": 10.0}, kill: {"kills": 200}, torn: {"share": 1.0},
        long: {"evaluations": 5000}, million: {"trials": 1_000_000}, faults: {}, pythons: {},
    }  # fmt: skip
    for promise, defaults in options.items():
        command = commands.add_parser(promise.__name__, help=promise.__doc__)
        command.set_defaults(promise=promise)
        for name, default in defaults.items():
            command.add_argument(f"--{name}", type=type(default), default=default)
        if promise is pythons:
            command.add_argument("python", nargs="+")
    arguments = parser.parse_args()
    kept = arguments.promise(arguments)
    print(json.dumps({"promise": arguments.promise.__name__, "kept": kept}))
    raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
    main()
