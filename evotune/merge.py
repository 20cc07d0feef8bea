"""The runs of several journals in one: nothing is lost, and nothing is there twice.

A run is the same in two journals if it has the same id and was measured with the same: copies of one file, of
which one has gone on, or both have. Its trials unite. A trial is the same if it proposed the same and ended at
the same moment, so merging again adds nothing. Of all other rows a journal only ever gets more: what one of the two
has more often is there as often as that.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from evotune.errors import JournalError, UsageError
from evotune.journal import Journal, Write
from evotune.process.owner import is_alive
from evotune.reading import read
from evotune.rows import result_of

# Columns by name: in a file that was brought up to date they may stand in another order.
RUN = ("id", "key", "created_s", "kernel", "source_hash", "description", "owner", "stopped", "result")
TRIAL = (
    "number", "origin", "parent", "program", "config", "fidelity_rank", "compile_s", "facts", "done_order", "done_s"
)  # fmt: skip
# The first column of these is the number of a trial.
OF_TRIALS = {
    "attempt": ("trial", "pid", "started_s"),
    "measurement": (
        "trial", "rank", "fidelity", "reps", "provenance", "samples_ms", "failed_stage", "reason", "rel_sem",
        "context",
    ),
    "offer": ("parent", "config"),
}  # fmt: skip
OF_RUNS = {
    "rejection": ("origin", "stage", "reason", "at_s"),
    "llm_call": (
        "provider", "model", "input_tokens", "output_tokens", "usd", "seconds", "error", "at_s", "spent_tokens",
        "spent_usd",
    ),
    "note": ("kind", "text", "at_s"),
}  # fmt: skip

Row = tuple[Any, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Merged:
    """What one journal brought: runs that were new, that have grown, that were there already; and trials with
    an outcome that were new."""

    source: Path
    added: int
    grown: int
    known: int
    trials: int


def merge(into: Path, sources: Sequence[Path]) -> list[Merged]:
    """Bring the runs of journals into one, in one transaction.

    The runs of ``into`` stay the latest: the same command goes on with them, and only where it has none with
    one that was brought.

    Args:
        into: The journal that grows; made if it is not there.
        sources: Journals that are only read.

    Raises:
        UsageError: One is missing, damaged, of another version, or has a run that a tuner works on.
    """
    if wrong := [*_twice(into, sources), *_unreadable(sources)]:
        raise UsageError("\n".join(wrong))
    try:
        with Journal(into) as journal, journal.legible(), journal.transaction() as write:
            _require_rest(journal)
            return [_bring(source, journal, write) for source in sources]
    except JournalError as error:
        raise UsageError(
            f"{error.found}; nothing was brought: bring them into another one, given first or with --out"
        ) from None


def _twice(into: Path, sources: Sequence[Path]) -> list[str]:
    """What is wrong with journals that are one file, whatever they are called."""
    seen = {into.resolve(): into}
    out: list[str] = []
    for source in sources:
        first = seen.setdefault(place := source.resolve(), source)
        called = f"{source}" if first == source else f"{source}, the same file as {first},"
        if place == into.resolve():
            out.append(f"{called} is the journal that the others are brought into; leave it out of the others")
        elif first is not source:
            out.append(f"{called} is given twice; name each journal once")
    return out


def _unreadable(sources: Sequence[Path]) -> list[str]:
    out: list[str] = []
    for source in dict.fromkeys(sources):
        try:
            _read(source, _check)
        except UsageError as error:
            out.append(str(error))
    return out


def _read(source: Path, look: Callable[[Journal], T]) -> T:
    """As :func:`evotune.reading.read`, with advice for someone who merges."""
    try:
        return read(source, look)
    except JournalError as error:
        raise UsageError(f"{error.found}; name another file in its place, or leave it out") from None


def _check(journal: Journal) -> None:
    """Refuse a journal that is being written, or of which not everything can be read."""
    found = [text for (text,) in journal.read("PRAGMA integrity_check")]  # an index can hide rows
    if found != ["ok"]:
        raise sqlite3.DatabaseError(found[0])
    _require_rest(journal)
    for run_id in journal.runs():
        with journal.legible():
            json.loads(journal.read("SELECT description FROM run WHERE id=?", run_id)[0][0])
            run = journal.run(run_id)
            list(run)
            for look in (run.interrupted, run.offers, run.rejections, run.calls, run.result):
                look()


def _require_rest(journal: Journal) -> None:
    for run_id, owner in journal.read("SELECT id, owner FROM run WHERE owner IS NOT NULL"):
        if is_alive(owner):
            raise UsageError(
                f"run {run_id} in {journal.path} is being worked on by process {owner.split()[1]}; "
                "wait for it, or end it with Ctrl-C: the same command goes on afterwards"
            )


# -- one journal --------------------------------------------------------------------------------


def _bring(source: Path, journal: Journal, write: Write) -> Merged:
    # The latest first: each goes before all that are there.
    rows = _read(source, lambda theirs: theirs.read(f"SELECT {_list(RUN)} FROM run ORDER BY rowid DESC"))
    added = grown = trials = 0
    for row in rows:
        ours, is_new = _place(journal, write, dict(zip(RUN, row, strict=True)))
        theirs = str(row[0])
        brought = _read(source, lambda other, theirs=theirs: _Rows.of(other, theirs))
        changed, ended = _unite(journal, write, ours, brought)
        added += is_new
        grown += changed and not is_new
        trials += ended
    return Merged(source, added, grown, len(rows) - added - grown, trials)


def _place(journal: Journal, write: Write, run: Mapping[str, Any]) -> tuple[str, bool]:
    """Id under which a run is known here, and whether it is new."""
    run_id, key = run["id"], run["key"]
    if _is_taken(journal, run_id, key):  # by chance, and always by the same name
        run_id = f"r-{sha256(f'{run_id} {key}'.encode()).hexdigest()[:8]}"
    if journal.read("SELECT id FROM run WHERE id=? AND key=?", run_id, key):
        return run_id, False
    result = run["result"]
    if result is not None and run_id != run["id"]:
        result = json.dumps({**json.loads(result), "run_id": run_id})
    first = journal.read("SELECT COALESCE(MIN(rowid), 1) - 1 FROM run")[0][0]
    values = {**run, "id": run_id, "result": result, "rowid": first}
    write(f"INSERT INTO run ({_list(values)}) VALUES ({_marks(values)})", [tuple(values.values())])
    return run_id, True


def _is_taken(journal: Journal, run_id: str, key: str) -> bool:
    return bool(journal.read("SELECT id FROM run WHERE id=? AND key<>?", run_id, key))


# -- one run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """A row of :data:`TRIAL`."""

    number: int
    row: Row

    @property
    def proposed(self) -> Row:
        """What was proposed; not the parent's number, which may be another one elsewhere."""
        origin, _, *rest = self.row[1:6]
        return (origin, *rest)

    @property
    def outcome(self) -> Row:
        """compile_s and facts."""
        return self.row[6:8]

    @property
    def done_order(self) -> int | None:
        return self.row[8]

    @property
    def done_s(self) -> float | None:
        return self.row[9]


@dataclass(frozen=True)
class _Rows:
    """All that a journal has of a run."""

    stopped: str | None
    result: str | None
    trials: Sequence[_Trial]
    """By their end; those that have not ended come last."""
    others: Mapping[str, Sequence[Row]]

    @classmethod
    def of(cls, journal: Journal, run_id: str) -> _Rows:
        stopped, result = journal.read("SELECT stopped, result FROM run WHERE id=?", run_id)[0]
        order = "done_order IS NULL, done_order, number"
        rows = journal.read(f"SELECT {_list(TRIAL)} FROM trial WHERE run=? ORDER BY {order}", run_id)
        others = {
            table: journal.read(f"SELECT {_list(columns)} FROM {table} WHERE run=? ORDER BY rowid", run_id)
            for table, columns in {**OF_TRIALS, **OF_RUNS}.items()
        }
        return cls(stopped, result, [_Trial(row[0], row) for row in rows], others)

    @property
    def ended(self) -> int:
        return sum(t.done_s is not None for t in self.trials)


def _unite(journal: Journal, write: Write, run_id: str, theirs: _Rows) -> tuple[bool, int]:
    """Add to a run what it lacks; whether that was anything, and how many trials with an outcome."""
    ours = _Rows.of(journal, run_id)
    numbers = _numbers(ours.trials, theirs.trials)
    ended = _add_trials(write, run_id, ours, theirs, numbers)
    grows = ended > 0
    for table, columns in {**OF_TRIALS, **OF_RUNS}.items():
        brought = theirs.others[table]
        if table in OF_TRIALS:
            brought = [(_renumbered(row[0], numbers), *row[1:]) for row in brought if row[0] in (None, *numbers)]
        missing = _missing(ours.others[table], brought)
        write(f"INSERT INTO {table} (run, {_list(columns)}) VALUES (?,{_marks(columns)})", _rows(run_id, missing))
        grows |= bool(missing)
    total = ours.ended + ended
    if result_of(theirs.result, total) and not result_of(ours.result, total):
        write("UPDATE run SET stopped=?, result=? WHERE id=?", [(theirs.stopped, theirs.result, run_id)])
        grows = True
    return grows, ended


def _numbers(ours: Sequence[_Trial], theirs: Sequence[_Trial]) -> dict[int, int]:
    """The number here of each of their trials, less those that never ended and would stand in another's place."""
    by_number = {t.number: t for t in ours}
    ended = {(t.proposed, t.done_s): t.number for t in ours if t.done_s is not None}
    free = 1 + max((t.number for t in (*ours, *theirs)), default=0)
    out: dict[int, int] = {}
    for trial in theirs:
        here = by_number.get(trial.number)
        if trial.done_s is not None and (trial.proposed, trial.done_s) in ended:
            out[trial.number] = ended[trial.proposed, trial.done_s]
        elif here is None or (here.proposed == trial.proposed and None in (here.done_s, trial.done_s)):
            out[trial.number] = trial.number
        elif trial.done_s is not None:
            out[trial.number], free = free, free + 1
    return out


def _add_trials(write: Write, run_id: str, ours: _Rows, theirs: _Rows, numbers: Mapping[int, int]) -> int:
    known = {t.number: t for t in ours.trials}
    begun: list[Row] = []
    ended: list[Row] = []
    for trial in theirs.trials:
        number = numbers.get(trial.number)
        if number is None:
            continue
        here = known.get(number)
        if here is None:
            origin, parent, *rest = trial.row[1:6]
            begun.append((run_id, number, origin, _renumbered(parent, numbers), *rest))
        if trial.done_s is not None and (here is None or here.done_s is None):
            ended.append((*trial.outcome, ours.ended + len(ended), trial.done_s, run_id, number))
    columns = _list(("run", *TRIAL[:6]))
    write(f"INSERT INTO trial ({columns}) VALUES (?,?,?,?,?,?,?)", begun)
    write("UPDATE trial SET compile_s=?, facts=?, done_order=?, done_s=? WHERE run=? AND number=?", ended)
    return len(ended)


def _renumbered(number: int | None, numbers: Mapping[int, int]) -> int | None:
    return None if number is None else numbers.get(number, number)


def _missing(ours: Iterable[Row], theirs: Iterable[Row]) -> list[Row]:
    """Rows that they have more often, in their order, as often as they are missing."""
    here = Counter(ours)
    out: list[Row] = []
    for row in theirs:
        if here[row]:
            here[row] -= 1
        else:
            out.append(row)
    return out


def _rows(run_id: str, rows: Iterable[Row]) -> list[Row]:
    return [(run_id, *row) for row in rows]


def _list(columns: Iterable[str]) -> str:
    return ", ".join(columns)


def _marks(columns: Iterable[str]) -> str:
    return ",".join("?" for _ in columns)
