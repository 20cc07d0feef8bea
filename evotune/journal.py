"""The record of everything that was tried: one SQLite file, written before and after each trial.

The intent to run a trial is committed before it is dispatched, and its result before the search
sees it: a killed tuner repeats at most what was in flight, and loses nothing that was acknowledged.
WAL with ``synchronous=FULL`` survives a power cut; the file must lie on a local disk.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast, get_args

from evotune.errors import UsageError
from evotune.space import Value
from evotune.trial import Candidate, Fidelity, Measurement, Origin, Static, Trial

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE run (
    id TEXT PRIMARY KEY, key TEXT NOT NULL, created_s REAL NOT NULL, kernel TEXT NOT NULL,
    source_hash TEXT NOT NULL, description TEXT NOT NULL, owner TEXT, stopped TEXT, result TEXT
);
CREATE INDEX run_by_key ON run (key, created_s);
CREATE TABLE trial (
    run TEXT NOT NULL REFERENCES run, number INTEGER NOT NULL, origin TEXT NOT NULL, parent INTEGER,
    program TEXT NOT NULL, config TEXT NOT NULL, compile_s REAL, facts TEXT, done_order INTEGER,
    done_s REAL,
    PRIMARY KEY (run, number)
);
CREATE TABLE attempt (run TEXT NOT NULL, trial INTEGER NOT NULL, pid INTEGER NOT NULL, started_s REAL NOT NULL);
CREATE INDEX attempt_by_trial ON attempt (run, trial);
CREATE TABLE measurement (
    run TEXT NOT NULL, trial INTEGER NOT NULL, rank INTEGER NOT NULL, fidelity TEXT NOT NULL,
    reps INTEGER NOT NULL, provenance TEXT NOT NULL, samples_ms TEXT NOT NULL, failed_stage TEXT,
    reason TEXT, rel_sem REAL, context TEXT NOT NULL
);
CREATE INDEX measurement_by_trial ON measurement (run, trial);
CREATE TABLE rejection (
    run TEXT NOT NULL, origin TEXT NOT NULL, stage TEXT NOT NULL, reason TEXT NOT NULL, at_s REAL NOT NULL
);
CREATE TABLE llm_call (
    run TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER,
    usd REAL, seconds REAL, error TEXT, at_s REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Rejection:
    """A candidate that never became a trial, and why."""

    origin: Origin
    stage: str
    reason: str


@dataclass(frozen=True)
class LlmCall:
    """One call of a model, as it was charged; None where the provider did not say."""

    provider: str
    model: str
    input_tokens: int | None
    output_tokens: int | None
    usd: float | None
    seconds: float
    error: str | None = None


class Journal:
    """All runs of one file. Close it, or use it in a ``with``.

    Raises:
        UsageError: The file cannot be written, is not a journal, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(_unusable(path, error)) from None
        try:
            found = self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise UsageError(_unusable(path, error)) from None
        if found != SCHEMA_VERSION:
            self._db.close()
            raise UsageError(
                f"journal {path} has schema version {found}, this evotune writes {SCHEMA_VERSION}; "
                "give another file with --journal PATH, or use the evotune that wrote it"
            )

    def _prepare(self) -> int:
        """The schema version of the file, after creating the tables of an empty one."""
        # Read first: a file that is not ours must not even change its journal mode.
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        is_empty = not self._db.execute("SELECT name FROM sqlite_master").fetchall()
        if found not in (0, SCHEMA_VERSION) or (found == 0 and not is_empty):
            return found
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if found == 0:
            with self._transaction():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        return SCHEMA_VERSION

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Safe to call twice."""
        self._db.close()

    def runs(self) -> list[str]:
        """Run ids, oldest first."""
        return [r[0] for r in self._db.execute("SELECT id FROM run ORDER BY created_s")]

    def open_run(
        self, kernel: str, source_hash: str, description: Mapping[str, Any], *, fresh: bool = False
    ) -> Run:
        """The latest run of exactly this description and source, to go on with; else a new one.

        Args:
            kernel: Name or path, to recognise an earlier run of an edited kernel.
            source_hash: Of the kernel's text.
            description: All that a result depends on: problem, device, versions, search, seed.
            fresh: Start a new run in any case.

        Raises:
            UsageError: Another living process is working on that run.
        """
        try:
            return self._open_run(kernel, source_hash, description, fresh=fresh)
        except sqlite3.Error as error:
            raise UsageError(_unusable(self.path, error)) from None

    def _open_run(self, kernel: str, source_hash: str, description: Mapping[str, Any], *, fresh: bool) -> Run:
        text = json.dumps(description, sort_keys=True)
        key = sha256(f"{kernel}\n{source_hash}\n{text}".encode()).hexdigest()
        row = None
        if not fresh:
            row = self._db.execute("SELECT id FROM run WHERE key=? ORDER BY created_s DESC", (key,)).fetchone()
        edited = False
        if row is None:
            older = self._db.execute(
                "SELECT source_hash FROM run WHERE kernel=? ORDER BY created_s DESC", (kernel,)
            )
            edited = (previous := older.fetchone()) is not None and previous[0] != source_hash
            run_id = f"r-{uuid.uuid4().hex[:8]}"
            with self._transaction():
                self._db.execute(
                    "INSERT INTO run (id, key, created_s, kernel, source_hash, description) VALUES (?,?,?,?,?,?)",
                    (run_id, key, time.time(), kernel, source_hash, text),
                )
        else:
            run_id = str(row[0])
        self._claim(run_id)
        return Run(self, run_id, is_new=row is None, replaces_edited=edited)

    def _claim(self, run_id: str) -> None:
        with self._transaction():
            owner = self._db.execute("SELECT owner FROM run WHERE id=?", (run_id,)).fetchone()[0]
            if owner and owner != _me() and _is_alive(owner):
                raise UsageError(
                    f"run {run_id} in {self.path} is being worked on by process {owner.split()[1]}; "
                    "wait for it, or start another run with --fresh"
                )
            self._db.execute("UPDATE run SET owner=? WHERE id=?", (_me(), run_id))

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def write(self, statement: str, rows: list[tuple[Any, ...]], *more: tuple[str, list[tuple[Any, ...]]]) -> None:
        """Commit rows of one or several statements together.

        Raises:
            UsageError: The disk is full or the file has become unwritable.
        """
        try:
            with self._transaction():
                for text, values in ((statement, rows), *more):
                    self._db.executemany(text, values)
        except sqlite3.Error as error:
            raise UsageError(
                f"journal {self.path} cannot be written any more: {error}; nothing recorded is lost"
            ) from None

    def read(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        return self._db.execute(statement, values).fetchall()


class Run:
    """One run in a journal; iterating gives its finished trials by number."""

    def __init__(self, journal: Journal, run_id: str, *, is_new: bool, replaces_edited: bool) -> None:
        self.journal = journal
        self.id = run_id
        self.is_new = is_new
        self.replaces_edited = replaces_edited
        # Counted, not timed: a clock may jump backwards.
        query = "SELECT COUNT(*) FROM trial WHERE run=? AND done_order IS NOT NULL"
        self._done = int(journal.read(query, run_id)[0][0])

    def __iter__(self) -> Iterator[Trial]:
        by_trial: dict[int, list[Measurement]] = {}
        columns = "trial, rank, fidelity, reps, provenance, samples_ms, failed_stage, reason, rel_sem, context"
        query = f"SELECT {columns} FROM measurement WHERE run=? ORDER BY rowid"
        for number, *rest in self.journal.read(query, self.id):
            by_trial.setdefault(number, []).append(_measurement(*rest))
        for number, origin, parent, program, config, compile_s, facts in self.journal.read(
            "SELECT number, origin, parent, program, config, compile_s, facts FROM trial "
            "WHERE run=? AND done_order IS NOT NULL ORDER BY done_order",
            self.id,
        ):
            decoded: dict[str, Value] = json.loads(config)
            static = None if compile_s is None else Static(compile_s, json.loads(facts))
            candidate = Candidate(decoded, program, _origin(origin), parent)
            yield Trial(number, candidate, tuple(by_trial.get(number, ())), static)

    def begin(self, trial: Trial) -> None:
        """Commit the intent to evaluate a trial; call before it is dispatched."""
        candidate = trial.candidate
        row = (self.id, trial.number, candidate.origin, candidate.parent, candidate.program, _json(trial.config))
        self.journal.write(
            "INSERT OR IGNORE INTO trial (run, number, origin, parent, program, config) VALUES (?,?,?,?,?,?)",
            [row],
            ("INSERT INTO attempt VALUES (?,?,?,?)", [(self.id, trial.number, os.getpid(), time.time())]),
        )

    def append(self, trial: Trial) -> None:
        """Commit a trial's outcome; call before the search learns from it."""
        compile_s = trial.static.compile_s if trial.static else None
        facts = _json(trial.static.facts) if trial.static else None
        done = (compile_s, facts, self._done, time.time(), self.id, trial.number)
        self.journal.write(
            "UPDATE trial SET compile_s=?, facts=?, done_order=?, done_s=? WHERE run=? AND number=?",
            [done],
            (
                "INSERT INTO measurement VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                [_row(self.id, trial.number, m) for m in trial.measurements],
            ),
        )
        self._done += 1

    def append_measurements(self, measured: Mapping[int, Measurement]) -> None:
        """Commit further measurements of finished trials: the finals."""
        rows = [_row(self.id, number, m) for number, m in measured.items()]
        self.journal.write("INSERT INTO measurement VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)

    def reject(self, rejections: list[Rejection]) -> None:
        """Commit candidates that never became trials."""
        rows = [(self.id, r.origin, r.stage, r.reason, time.time()) for r in rejections]
        self.journal.write("INSERT INTO rejection VALUES (?,?,?,?,?)", rows)

    def record_call(self, call: LlmCall) -> None:
        """Commit one call of a model."""
        row = (self.id, call.provider, call.model, call.input_tokens, call.output_tokens, call.usd, call.seconds)
        self.journal.write("INSERT INTO llm_call VALUES (?,?,?,?,?,?,?,?,?)", [(*row, call.error, time.time())])

    def rejections(self) -> list[Rejection]:
        """Candidates that never became trials, oldest first."""
        rows = self.journal.read("SELECT origin, stage, reason FROM rejection WHERE run=? ORDER BY rowid", self.id)
        return [Rejection(_origin(origin), stage, reason) for origin, stage, reason in rows]

    def calls(self) -> list[LlmCall]:
        """Calls of models, oldest first."""
        columns = "provider, model, input_tokens, output_tokens, usd, seconds, error"
        query = f"SELECT {columns} FROM llm_call WHERE run=? ORDER BY rowid"
        return [LlmCall(*row) for row in self.journal.read(query, self.id)]

    def interrupted(self) -> list[tuple[Trial, int]]:
        """Trials whose outcome never came, with the number of attempts made at each."""
        rows = self.journal.read(
            "SELECT number, origin, parent, program, config, "
            "(SELECT COUNT(*) FROM attempt WHERE attempt.run=trial.run AND attempt.trial=number) "
            "FROM trial WHERE run=? AND done_order IS NULL ORDER BY number",
            self.id,
        )
        out: list[tuple[Trial, int]] = []
        for number, origin, parent, program, config, attempts in rows:
            candidate = Candidate(json.loads(config), program, _origin(origin), parent)
            out.append((Trial(number, candidate), attempts))
        return out

    def withdraw(self, numbers: Iterable[int]) -> None:
        """Take back attempts that were cancelled on purpose, so that they are no one's fault."""
        self.journal.write("DELETE FROM attempt WHERE run=? AND trial=?", [(self.id, n) for n in numbers])

    def result(self) -> dict[str, Any] | None:
        """What :meth:`finish` recorded last, or None."""
        text = self.journal.read("SELECT result FROM run WHERE id=?", self.id)[0][0]
        return None if text is None else json.loads(text)

    def finish(self, stopped: str, result: Mapping[str, Any]) -> None:
        """Commit why the run ended and what it found, and let go of it."""
        row = (stopped, _json(result), self.id)
        self.journal.write("UPDATE run SET stopped=?, result=?, owner=NULL WHERE id=?", [row])

    def release(self) -> None:
        """Let another process go on with this run."""
        self.journal.write("UPDATE run SET owner=NULL WHERE id=? AND owner=?", [(self.id, _me())])


def _unusable(path: Path, error: Exception) -> str:
    return f"journal {path} cannot be used: {error}; give another file with --journal PATH"


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=False)


def _origin(text: str) -> Origin:
    assert text in get_args(Origin)
    return cast(Origin, text)


def _row(run: str, number: int, m: Measurement) -> tuple[Any, ...]:
    f = m.fidelity
    timing = (m.provenance, _json(m.samples_ms), m.failed_stage, m.reason, m.rel_sem, _json(dict(m.context)))
    return (run, number, f.rank, f.name, f.reps, *timing)


def _measurement(*row: Any) -> Measurement:
    rank, name, reps, provenance, samples_ms, failed_stage, reason, rel_sem, context = row
    samples = tuple(json.loads(samples_ms))
    fidelity = Fidelity(rank, name, reps)
    return Measurement(fidelity, provenance, samples, failed_stage, reason, rel_sem, json.loads(context))


def _me() -> str:
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def _is_alive(owner: str) -> bool:
    """Whether the process that wrote this still runs: a pid alone may have been given out again."""
    host, pid, started = owner.split()
    return host == socket.gethostname() and _started(int(pid)) == started


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot, or ``-`` if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except OSError:
        return "-"
