"""Brute force: measure every configuration of a kernel and keep it as a recorded space."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median, stdev
from typing import Any, TextIO

from evotune.errors import Rejected, UsageError
from evotune.evaluator import Evaluator
from evotune.facts import space_to_json
from evotune.files import digest
from evotune.replay import COMPILE_FAILED, META, OK, RUN_FAILED, Row, save_recording
from evotune.space import ConfigSpace
from evotune.trial import Fidelity, Static

PARTIAL = "partial.jsonl"
Key = tuple[int, ...]


@dataclass
class _Seen:
    """Passes over one configuration so far."""

    times_ms: list[float] = field(default_factory=list[float])
    bench_ms: float = 0.0
    compile_ms: float = 0.0
    status: str = OK


def record(
    space: ConfigSpace,
    evaluator: Evaluator,
    folder: Path,
    meta: Mapping[str, Any],
    *,
    fidelity: Fidelity,
    passes: int,
    samples: int | None,
    seed: int,
    compile_jobs: int,
    on_progress: Callable[[int, int], None],
) -> None:
    """Measure configurations in several passes, each in another order, and save the medians.

    A pass is complete before the next begins, so that a drift of the machine falls on all
    configurations alike. What was measured is kept in ``partial.jsonl`` until the end: the same call
    goes on where an interrupted one stopped, and another is refused.

    Args:
        samples: How many configurations, drawn by ``seed``; all if None.
        on_progress: Called with (done, in all) evaluations.

    Raises:
        UsageError: The folder cannot be written, or holds another recording or part of one, or the space is too
            large and ``samples`` is None.
    """
    if (folder / META).exists():
        raise UsageError(f"{folder} holds a recording already; give another folder, or remove it first")
    keys = _chosen(space, samples, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = (folder / PARTIAL).open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error}") from None
    with partial:
        try:
            fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another process records into {folder}; wait for it, or give another folder"
            ) from None
        seen = _read(partial, _header(space, fidelity, meta))
        done = sum(len(s.times_ms) if s.status == OK else passes for s in seen.values())
        for number in range(passes):
            order = list(keys)
            Random(f"{seed}:{number}").shuffle(order)
            todo = [k for k in order if _lacks(seen.get(k), number)]
            for line in _one_pass(space, evaluator, todo, fidelity, compile_jobs):
                partial.write(json.dumps(line) + "\n")
                partial.flush()
                _add(seen, line)
                done += 1 if line["status"] == OK else passes
                on_progress(min(done, passes * len(keys)), passes * len(keys))
    wanted = set(keys)
    rows = {key: _row(s) for key, s in seen.items() if key in wanted}
    save_recording(folder, meta, space, rows)
    (folder / PARTIAL).unlink()


def _chosen(space: ConfigSpace, samples: int | None, seed: int) -> list[Key]:
    if samples is None or (space.is_enumerable and samples >= space.cardinality):
        return [tuple(map(int, k)) for k in space.keys]
    if space.is_enumerable:
        rows = Random(seed).sample(range(space.cardinality), samples)
        keys = [tuple(map(int, space.keys[r])) for r in sorted(rows)]
    else:
        keys = list(dict.fromkeys(space.key(c) for c in space.sample(Random(seed), samples)))
    default = space.key(space.default)
    return keys if default in keys else [default, *keys]


def _lacks(seen: _Seen | None, passes_before: int) -> bool:
    return seen is None or (seen.status == OK and len(seen.times_ms) <= passes_before)


def _one_pass(
    space: ConfigSpace, evaluator: Evaluator, keys: Sequence[Key], fidelity: Fidelity, compile_jobs: int
) -> Iterator[dict[str, Any]]:
    """Compile a few ahead on threads, measure one at a time."""

    def compiled(key: Key) -> Static | Rejected:
        try:
            return evaluator.compile(space.from_key(key))
        except Rejected as rejected:
            return rejected

    with ThreadPoolExecutor(compile_jobs) as pool:
        waiting = iter(keys)
        ahead = [(key, pool.submit(compiled, key)) for key in islice(waiting, 4 * compile_jobs)]
        while ahead:
            key, future = ahead.pop(0)
            ahead.extend((k, pool.submit(compiled, k)) for k in islice(waiting, 1))
            static = future.result()
            if isinstance(static, Rejected):
                yield {"key": key, "status": COMPILE_FAILED, "reason": static.reason}
                continue
            measured = evaluator.measure(space.from_key(key), fidelity)
            line: dict[str, Any] = {"key": key, "status": OK, "compile_ms": 1e3 * static.compile_s}
            if measured.ok:
                yield {**line, "time_ms": measured.latency_ms, "bench_ms": sum(measured.samples_ms)}
            else:
                yield {**line, "status": RUN_FAILED, "reason": f"{measured.failed_stage}: {measured.reason}"}


def _header(space: ConfigSpace, fidelity: Fidelity, meta: Mapping[str, Any]) -> str:
    """The first line of ``partial.jsonl``: what tells its measurements from others. When they were made, and how
    often, does not."""
    of = {name: value for name, value in meta.items() if name not in ("recorded", "passes")}
    text = json.dumps([of, space_to_json(space), asdict(fidelity)], sort_keys=True)
    return json.dumps({"of": digest(text)})


def _read(partial: TextIO, header: str) -> dict[Key, _Seen]:
    """What an earlier call measured, without a last line that was cut off; a new file gets its header."""
    partial.seek(0)
    complete, _, cut = partial.read().rpartition("\n")
    if cut:  # that configuration is measured again
        partial.truncate(len(complete.encode()) + 1 if complete else 0)
    lines = complete.splitlines()
    if not lines:
        partial.write(header + "\n")
    elif lines[0] != header:
        raise UsageError(
            f"{partial.name} is of another measurement: the kernel, its problem, the device, a version or the "
            "fidelity is not what it was; give another folder, or remove that file to measure all anew"
        )
    seen: dict[Key, _Seen] = {}
    for number, text in enumerate(lines[1:], 2):
        try:
            _add(seen, json.loads(text))
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{partial.name}: line {number} is no measurement; remove it, or the file") from None
    return seen


def _add(seen: dict[Key, _Seen], line: Mapping[str, Any]) -> None:
    entry = seen.setdefault(tuple(line["key"]), _Seen())
    entry.status = line["status"]
    # The first pass compiled it; later ones find it in the evaluator's cache.
    entry.compile_ms = max(entry.compile_ms, float(line.get("compile_ms", 0.0)))
    if entry.status == OK:
        entry.times_ms.append(line["time_ms"])
        entry.bench_ms += line["bench_ms"]


def _row(seen: _Seen) -> Row:
    if seen.status != OK:
        return Row(None, seen.status, seen.compile_ms, 0.0, 0.0)
    centre = median(seen.times_ms)
    spread = stdev(seen.times_ms) / centre if len(seen.times_ms) > 1 else 0.0
    return Row(centre, OK, seen.compile_ms, seen.bench_ms, spread)
