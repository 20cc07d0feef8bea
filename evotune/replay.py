"""Recorded spaces: every legal configuration, or a sample, with the time it took, once, on some device.

The format is described in ``recordings/README.md``. A replayed evaluation looks its latency up; it
is the real measurement of another day and machine, and is labelled ``replayed``.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np

from evotune.constraint import Array
from evotune.errors import Rejected, UsageError
from evotune.evaluator import Device
from evotune.space import Config, ConfigSpace, Value
from evotune.trial import SECONDS, Fidelity, Measurement, Provenance, Static

META = "meta.json"
TABLE = "space.csv.gz"
COLUMNS = ("time_ms", "status", "compile_ms", "bench_ms", "rel_std")
OK, COMPILE_FAILED, RUN_FAILED = "0", "1", "2"
FIDELITY = Fidelity(3, "high", 50)


@dataclass(frozen=True)
class Row:
    """What was recorded of one configuration; ``time_ms`` is None if it failed."""

    time_ms: float | None
    status: str
    compile_ms: float
    bench_ms: float
    rel_std: float

    @property
    def repeats(self) -> int:
        """Repetitions behind ``time_ms``: all of them together took ``bench_ms``."""
        return max(1, round(self.bench_ms / self.time_ms)) if self.time_ms else 0

    @property
    def seconds(self) -> float:
        """What evaluating this configuration cost when it was recorded."""
        return (self.compile_ms + self.bench_ms) / 1e3


class SampledSpace(ConfigSpace):
    """A space of which only some configurations were recorded: no others are legal, as nobody knows of them.

    Args:
        whole: The space that they were drawn from.
        keys: Theirs.
    """

    def __init__(self, whole: ConfigSpace, keys: Collection[tuple[int, ...]]) -> None:
        self._recorded = np.array(list(keys), dtype=np.int16).reshape(len(keys), len(whole.names))
        rules = [c.text for c in whole.constraints]
        default = whole.default if whole.key(whole.default) in keys else None
        super().__init__(whole.parameters, rules, constants=whole.constants, default=default)

    def holds(self, keys: Array) -> Array:
        return np.fromiter((tuple(key) in self._legal for key in keys.tolist()), bool, len(keys))

    def violations(self, config: Mapping[str, object]) -> list[str]:
        out = super().violations(config)
        if not out and not self.holds(np.array([self.key(cast(Config, config))]))[0]:
            n = len(self._recorded)
            out = [f"constraint 'was recorded' does not hold: the recording has {n} others and not this one"]
        return out

    @cached_property
    def _legal(self) -> frozenset[tuple[int, ...]]:
        return frozenset(map(tuple, self.keys.tolist()))

    @cached_property
    def _enumerated(self) -> Array | None:
        legal = self._recorded[super().holds(self._recorded)]
        return legal[np.argsort(legal @ self._radix)]


@dataclass(frozen=True)
class Recording:
    """A recorded space in memory; ``rows`` by the key of the configuration."""

    folder: Path
    meta: Mapping[str, Any]
    space: ConfigSpace
    rows: Mapping[tuple[int, ...], Row] = field(repr=False)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def hash(self) -> str:
        """Of both files, and of how they are read: another recording under the same name is another subject."""
        content = (self.folder / META).read_bytes() + (self.folder / TABLE).read_bytes()
        if isinstance(self.space, SampledSpace):
            content += b"a space of what was recorded"  # it was once the whole one
        return sha256(content).hexdigest()[:16]

    def row(self, config: Config) -> Row:
        """What was recorded; :class:`Rejected` if this configuration is not in the table."""
        found = self.rows.get(self.space.key(config))
        if found is None:
            raise Rejected("compile", "this configuration was not recorded")
        return found


def is_recording(path: Path) -> bool:
    """Whether a folder looks like a recorded space."""
    return (path / META).is_file() and (path / TABLE).is_file()


def load_recording(folder: Path) -> Recording:
    """Read a recorded space.

    Raises:
        UsageError: A file is missing or does not have the format of ``recordings/README.md``.
    """
    if not is_recording(folder):
        raise UsageError(f"{folder} is not a recorded space; it needs {META} and {TABLE}")
    try:
        meta = cast(dict[str, Any], json.loads((folder / META).read_text(encoding="utf-8")))
        space = ConfigSpace.from_dict(
            meta["params"],
            meta.get("restrictions", ()),
            constants=meta.get("fixed", {}),
            default=meta.get("default"),
        )
        with gzip.open(folder / TABLE, "rt", newline="", encoding="utf-8") as lines:
            rows = _read_table(space, csv.DictReader(lines))
    except (KeyError, ValueError, TypeError, OSError, EOFError) as error:
        if isinstance(error, UsageError):
            raise UsageError(f"{folder}: {error}") from None
        raise UsageError(f"{folder} cannot be read as a recorded space: {type(error).__name__}: {error}") from None
    if len(rows) < int(meta.get("n", 0)):
        raise UsageError(f"{folder}: the table has {len(rows)} rows, {META} speaks of {meta['n']}; it is cut short")
    is_whole = space.is_enumerable and len(rows) >= space.cardinality
    return Recording(folder, meta, space if is_whole else SampledSpace(space, rows.keys()), rows)


def save_recording(
    folder: Path, meta: Mapping[str, Any], space: ConfigSpace, rows: Mapping[tuple[int, ...], Row]
) -> None:
    """Write a recorded space; the same content gives the same bytes."""
    good = sorted(r.time_ms for r in rows.values() if r.time_ms is not None)
    if not good:
        raise UsageError("nothing to save: every configuration failed")
    counted = {
        "n": len(rows),
        "n_valid": len(good),
        "n_compile_fail": sum(r.status == COMPILE_FAILED for r in rows.values()),
        "n_runtime_fail": sum(r.status == RUN_FAILED for r in rows.values()),
        "optimum_ms": good[0],
        "median_ms": good[len(good) // 2],
        "worst_ms": good[-1],
        "within1pct": sum(t <= 1.01 * good[0] for t in good),
        "within5pct": sum(t <= 1.05 * good[0] for t in good),
        "within10pct": sum(t <= 1.10 * good[0] for t in good),
        "exhaustive": space.is_enumerable and len(rows) == space.cardinality,
        "cartesian": space.cartesian,
    }
    described = {
        "params": {n: list(p.values) for n, p in space.parameters.items()},
        "fixed": space.constants,
        "restrictions": [c.text for c in space.constraints],
        "default": dict(space.default),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": folder.name, **meta, **described, **counted}, indent=1) + "\n"
    (folder / META).write_text(text, encoding="utf-8")
    with (
        (folder / TABLE).open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed,
    ):
        packed.write((",".join([*space.names, *COLUMNS]) + "\n").encode())
        for key, row in sorted(rows.items()):
            time_ms = "" if row.time_ms is None else f"{row.time_ms:.7g}"
            tail = [time_ms, row.status, f"{row.compile_ms:.5g}", f"{row.bench_ms:.5g}", f"{row.rel_std:.3g}"]
            packed.write((",".join([*map(str, space.from_key(key).values()), *tail]) + "\n").encode())


def _read_table(space: ConfigSpace, table: csv.DictReader[str]) -> dict[tuple[int, ...], Row]:
    wanted = {*space.names, *COLUMNS}
    if missing := sorted(wanted - set(table.fieldnames or ())):
        raise UsageError(f"the table lacks the columns {missing}")
    as_text = {n: {_canonical(v): i for i, v in enumerate(p.values)} for n, p in space.parameters.items()}
    rows: dict[tuple[int, ...], Row] = {}
    for line in table:
        key = tuple(as_text[n][_canonical(line[n])] for n in space.names)
        time_ms = float(line["time_ms"]) if line["status"] == OK else None
        numbers = [float(line[c] or 0) for c in ("compile_ms", "bench_ms", "rel_std")]
        rows[key] = Row(time_ms, line["status"], *numbers)
    return rows


def _canonical(value: Value) -> str:
    """One spelling for a value of the space and of the table: tables write 32 for 32.0."""
    if isinstance(value, bool):
        return str(value)
    try:
        return f"{float(value):g}"
    except ValueError:
        return str(value)


class ReplayEvaluator:
    """Looks configurations up in a recording instead of running them."""

    provenance: Provenance = "replayed"

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.fidelities: Sequence[Fidelity] = (FIDELITY,)
        name = str(recording.meta.get("device") or "unnamed device")
        self.device = Device("replay", name, {"recording": recording.name})

    def compile(self, config: Config) -> Static:
        row = self.recording.row(config)
        if row.status == COMPILE_FAILED:
            raise Rejected("compile", "recorded as failing to compile")
        return Static(compile_s=row.compile_ms / 1e3)

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        row = self.recording.row(config)
        took_s = {SECONDS: row.bench_ms / 1e3}
        if row.time_ms is None:
            reason = "recorded as failing to run"
            return Measurement(fidelity, "replayed", failed_stage="run", reason=reason, context=took_s)
        error = row.rel_std / math.sqrt(row.repeats)
        return Measurement(fidelity, "replayed", (row.time_ms,), rel_sem=error, context=took_s)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """What is on record: a recording cannot be measured again."""
        return [self.measure(c, fidelity) for c in configs]

    def close(self) -> None:
        """Nothing is held."""
