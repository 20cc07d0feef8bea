"""Many runs in child processes, each run recorded as soon as it has ended."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evotune.compare import methods
from evotune.compare.runs import SearchRun, open_space, run_search
from evotune.content import PACKAGE
from evotune.errors import DeviceError, UsageError
from evotune.process import Worker
from evotune.replay import Recording

ENTRY = "evotune.compare.parallel:serve"
# BLAS threads of runs side by side would fight over the cores, and the time of a search would
# depend on who else is running.
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
RUN_TIMEOUT_S = 6 * 3600.0


@dataclass(frozen=True)
class Plan:
    """One run that is to be made."""

    space: str
    """As :func:`~evotune.compare.runs.open_space` takes it."""
    method: str
    seed: int
    budget: int


@dataclass(frozen=True)
class Progress:
    """How far a comparison is; ``run`` is the one that ended last."""

    done: int
    total: int
    run: SearchRun


def run_all(
    plans: Mapping[Plan, str],
    *,
    jobs: int,
    partial: Path | None,
    on_progress: Callable[[Progress], None] | None,
    on_note: Callable[[str], None],
) -> list[SearchRun]:
    """One run per plan, in the order of the plans.

    Args:
        plans: Runs to make, and the :func:`marks` by which they are found again.
        jobs: Child processes.
        partial: Where runs are appended as they end, and found again by the next call; None for nowhere.
        on_progress: Called from this thread after each run.
        on_note: Hears how many runs were found.

    Raises:
        UsageError: A search raised.
        DeviceError: A child died or ran out of time.
    """
    known = _read(partial)
    done = {plan: known[mark] for plan, mark in plans.items() if mark in known}
    if done:
        on_note(f"{len(done)} of {len(plans)} runs are in {partial} already")
    for plan, run in _each([p for p in plans if p not in done], jobs):
        done[plan] = run
        if partial is not None:
            with partial.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"mark": plans[plan], "run": run.to_json()}) + "\n")
        if on_progress is not None:
            on_progress(Progress(len(done), len(plans), run))
    return [done[plan] for plan in plans]


def marks(plans: Sequence[Plan], recordings: Mapping[str, Recording]) -> dict[Plan, str]:
    """What names each run among those of other calls: the same mark would give the same run."""
    subjects = {space: (recording.name, recording.hash) for space, recording in recordings.items()}
    return {
        p: json.dumps([*subjects[p.space], p.method, p.seed, p.budget, _code_hash(), _hash_of(p.method)])
        for p in plans
    }


def serve(setup: object) -> Callable[[Any], Any]:
    """What a child does: makes the runs that it is asked for."""
    opened = cache(open_space)

    def handle(request: Any) -> Any:
        plan = Plan(**request)
        recording = opened(plan.space)
        _ = recording.space.cardinality  # enumerating is part of opening, not of the first search
        run = run_search(recording, plan.method, methods.factory(plan.method), plan.seed, plan.budget)
        return run.to_json()

    return handle


def _each(plans: Sequence[Plan], jobs: int) -> Iterator[tuple[Plan, SearchRun]]:
    """Runs as they end."""
    waiting: queue.SimpleQueue[Plan] = queue.SimpleQueue()
    for plan in plans:
        waiting.put(plan)
    ended: queue.SimpleQueue[tuple[Plan, SearchRun] | BaseException] = queue.SimpleQueue()
    stopping = threading.Event()
    workers = [Worker(ENTRY, environment=ONE_THREAD) for _ in range(min(jobs, len(plans)))]
    with ThreadPoolExecutor(max(1, len(workers)), thread_name_prefix="evotune-compare") as threads:
        for worker in workers:
            threads.submit(_work, worker, waiting, ended, stopping)
        try:
            for _ in plans:
                item = ended.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopping.set()
            for worker in workers:
                worker.stop()


def _work(
    worker: Worker,
    waiting: queue.SimpleQueue[Plan],
    ended: queue.SimpleQueue[tuple[Plan, SearchRun] | BaseException],
    stopping: threading.Event,
) -> None:
    try:
        while not stopping.is_set():
            plan = waiting.get_nowait()
            reply = worker.call(asdict(plan), RUN_TIMEOUT_S)
            if not reply.ok:
                what = f"{plan.method} on {plan.space}, seed {plan.seed}"
                if reply.kind == "error":
                    raise UsageError(f"{what} raised {reply.error}: {reply.message}")
                raise DeviceError(f"{what}: {reply.kind}, {reply.message}")
            ended.put((plan, SearchRun.from_json(reply.value)))
    except queue.Empty:
        return
    except BaseException as error:  # whatever it is, the main thread must hear of it
        ended.put(error)
    finally:
        worker.stop()


@cache
def _code_hash() -> str:
    """Of evotune itself: a run of other code is not taken up again."""
    sources = sorted(PACKAGE.rglob("*.py"))
    return sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]


@cache
def _hash_of(method: str) -> str | None:
    """Of what a method takes from elsewhere: the recording that warms it, or the module of the user."""
    if method.startswith(methods.WARM):
        return open_space(method.removeprefix(methods.WARM)).hash
    found = find_spec(method.partition(":")[0]) if ":" in method else None
    if found is None or found.origin is None:
        return None
    return sha256(Path(found.origin).read_bytes()).hexdigest()[:16]


def _read(partial: Path | None) -> dict[str, SearchRun]:
    """Runs of an earlier call; the last line may have been cut off."""
    out: dict[str, SearchRun] = {}
    if partial is None or not partial.exists():
        return out
    text = partial.read_text(encoding="utf-8")
    complete, _, cut = text.rpartition("\n")
    if cut:
        partial.write_text(complete + "\n" if complete else "", encoding="utf-8")
    for line in complete.splitlines():
        try:
            record = json.loads(line)
            out[record["mark"]] = SearchRun.from_json(record["run"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{partial} is not a list of runs; move it away or choose another output") from None
    return out
