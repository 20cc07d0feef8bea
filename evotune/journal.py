"""The record of everything that was tried: one SQLite file, written before and after each trial.

The intent to run a trial is committed before it is dispatched, and its result before the search
sees it: a killed tuner repeats at most what was in flight, and loses nothing that was acknowledged.
WAL with ``synchronous=FULL`` survives a power cut; the file must lie on a local disk.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from evotune.errors import JournalError, UsageError
from evotune.process.owner import is_alive, me
from evotune.rows import (
    INDEXES,
    SCHEMA,
    SCHEMA_VERSION,
    UPGRADE,
    candidate_of,
    from_text,
    measurement_of,
    origin_of,
    row_of,
    to_text,
)
from evotune.space import Config
from evotune.trial import Measurement, Origin, Static, Trial

BUSY_S = 10.0  # for which another process may hold the file
_LOOK = "SELECT user_version, (SELECT COUNT(*) FROM sqlite_master) FROM pragma_user_version"
# Columns of a trial that make up its candidate, in the order of :func:`candidate_of`.
_CANDIDATE = "origin, parent, program, config, fidelity_rank"

Write = Callable[[str, Iterable[tuple[Any, ...]]], object]
"""Executes a statement for each row of values."""


@dataclass(frozen=True)
class Rejection:
    """A candidate that never became a trial, and why."""

    origin: Origin
    stage: str
    reason: str


@dataclass(frozen=True)
class LlmCall:
    """One call of a model, as it was charged; None where the provider did not say.

    ``spent`` is what counts against the limits of the run: the worst case where nobody said.
    """

    provider: str
    model: str
    input_tokens: int | None
    output_tokens: int | None
    usd: float | None
    seconds: float
    error: str | None = None
    spent_tokens: int | None = None
    spent_usd: float | None = None


class Journal:
    """All runs of one file. Close it, or use it in a ``with``.

    Raises:
        JournalError: The file cannot be written, is not a journal, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise folder_instead(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from None
        try:
            found = self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, error) from None
        if found != SCHEMA_VERSION:
            self._db.close()
            raise JournalError(
                f"journal {path} has schema version {found}, this evotune writes {SCHEMA_VERSION}",
                "give another file with --journal PATH, or use the evotune that wrote it",
            )

    def _prepare(self) -> int:
        """The schema version of the file, after creating the tables of an empty one."""
        # Read first, and at one moment: a file that is not ours must not even change its journal mode.
        found, tables = self._insist(_LOOK).fetchone()
        if found not in (0, 1, SCHEMA_VERSION) or (found == 0 and tables):
            return int(found)
        self._insist("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if found != SCHEMA_VERSION:
            with self.transaction():
                found, _ = self._db.execute(_LOOK).fetchone()  # another tuner may have come first
                missing = () if found == SCHEMA_VERSION else UPGRADE if found else SCHEMA.split(";")
                for statement in filter(str.strip, missing):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        for statement in INDEXES:
            self._insist(statement)
        return SCHEMA_VERSION

    def _insist(self, statement: str) -> sqlite3.Cursor:
        """Execute as soon as no other tuner is in the way: for some locks SQLite itself does not wait."""
        end_s = time.monotonic() + BUSY_S
        while True:
            try:
                return self._db.execute(statement)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end_s:
                    raise
                time.sleep(0.01)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Safe to call twice."""
        self._db.close()

    def runs(self) -> list[str]:
        """Run ids, oldest first."""
        return [r[0] for r in self._db.execute("SELECT id FROM run ORDER BY rowid")]

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
        text = json.dumps(description, sort_keys=True)
        with self.legible():
            return self._open_run(kernel, source_hash, text, fresh=fresh)

    def run(self, run_id: str) -> Run:
        """One run, to be looked at: it is not taken over from whoever works on it."""
        return Run(self, run_id, is_new=False, replaces_edited=False)

    def has_runs_with(self, entry: str, kernel: str, but: str) -> bool:
        """Whether another run of a kernel has an entry in its description."""
        runs = self.read("SELECT id, kernel, description FROM run")
        return any(k == kernel and i != but and entry in json.loads(text) for i, k, text in runs)

    def _open_run(self, kernel: str, source_hash: str, text: str, *, fresh: bool) -> Run:
        key = sha256(f"{kernel}\n{source_hash}\n{text}".encode()).hexdigest()
        # The latest by its place, not by its time: a clock may have jumped backwards.
        latest = "SELECT {} FROM run WHERE {}=? ORDER BY rowid DESC LIMIT 1"
        known = [] if fresh else self.read(latest.format("id", "key"), key)
        edited = False
        if not known:
            older = self.read(latest.format("source_hash", "kernel"), kernel)
            edited = bool(older) and older[0][0] != source_hash
            run_id = f"r-{uuid.uuid4().hex[:8]}"
            with self.transaction():
                self._db.execute(
                    "INSERT INTO run (id, key, created_s, kernel, source_hash, description) VALUES (?,?,?,?,?,?)",
                    (run_id, key, time.time(), kernel, source_hash, text),
                )
        else:
            run_id = str(known[0][0])
        self._claim(run_id)
        return Run(self, run_id, is_new=not known, replaces_edited=edited)

    def _claim(self, run_id: str) -> None:
        with self.transaction():
            owner = self._db.execute("SELECT owner FROM run WHERE id=?", (run_id,)).fetchone()[0]
            if owner and owner != me() and is_alive(owner):
                raise UsageError(
                    f"run {run_id} in {self.path} is being worked on by process {owner.split()[1]}; "
                    "wait for it, or start another run with --fresh"
                )
            self._db.execute("UPDATE run SET owner=? WHERE id=?", (me(), run_id))

    @contextmanager
    def transaction(self) -> Generator[Write]:
        """Commit what the block writes, or nothing of it if it raises. What it reads, no other process changes
        meanwhile."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db.executemany
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
            with self.transaction() as execute:
                for text, values in ((statement, rows), *more):
                    execute(text, values)
        except sqlite3.Error as error:
            raise UsageError(
                f"journal {self.path} cannot be written any more: {error}; nothing recorded is lost"
            ) from None

    def read(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query.

        Raises:
            UsageError: The file is damaged or has become unreadable.
        """
        with self.legible():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def legible(self) -> Generator[None]:
        """Says of an error that comes from the content of the file that it does."""
        try:
            yield
        except UsageError:
            raise
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from None
        except (ValueError, TypeError) as error:
            raise _unusable(self.path, f"it is damaged ({error})") from None


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
        with self.journal.legible():
            trials = list(self._trials())
        yield from trials

    def _trials(self) -> Iterator[Trial]:
        by_trial: dict[int, list[Measurement]] = {}
        columns = "trial, rank, fidelity, reps, provenance, samples_ms, failed_stage, reason, rel_sem, context"
        query = f"SELECT {columns} FROM measurement WHERE run=? ORDER BY rowid"
        for number, *rest in self.journal.read(query, self.id):
            by_trial.setdefault(number, []).append(measurement_of(*rest))
        for number, compile_s, facts, *proposed in self.journal.read(
            f"SELECT number, compile_s, facts, {_CANDIDATE} FROM trial "
            "WHERE run=? AND done_order IS NOT NULL ORDER BY done_order",
            self.id,
        ):
            static = None if compile_s is None else Static(compile_s, from_text(facts))
            yield Trial(number, candidate_of(*proposed), tuple(by_trial.get(number, ())), static)

    def begin(self, trial: Trial) -> None:
        """Commit the intent to evaluate a trial; call before it is dispatched."""
        candidate = trial.candidate
        proposed = (candidate.program, to_text(trial.config), candidate.fidelity_rank)
        row = (self.id, trial.number, candidate.origin, candidate.parent, *proposed)
        self.journal.write(
            f"INSERT OR IGNORE INTO trial (run, number, {_CANDIDATE}) VALUES (?,?,?,?,?,?,?)",
            [row],
            ("INSERT INTO attempt VALUES (?,?,?,?)", [(self.id, trial.number, os.getpid(), time.time())]),
        )

    def append(self, trial: Trial) -> None:
        """Commit a trial's outcome; call before the search learns from it."""
        compile_s = trial.static.compile_s if trial.static else None
        facts = to_text(trial.static.facts) if trial.static else None
        done = (compile_s, facts, self._done, time.time(), self.id, trial.number)
        self.journal.write(
            "UPDATE trial SET compile_s=?, facts=?, done_order=?, done_s=? WHERE run=? AND number=?",
            [done],
            (
                "INSERT INTO measurement VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                [row_of(self.id, trial.number, m) for m in trial.measurements],
            ),
        )
        self._done += 1

    def append_measurements(self, measured: Mapping[int, Measurement]) -> None:
        """Commit further measurements of finished trials: the finals."""
        rows = [row_of(self.id, number, m) for number, m in measured.items()]
        self.journal.write("INSERT INTO measurement VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)

    def reject(self, rejections: list[Rejection]) -> None:
        """Commit candidates that never became trials."""
        rows = [(self.id, r.origin, r.stage, r.reason, time.time()) for r in rejections]
        self.journal.write("INSERT INTO rejection VALUES (?,?,?,?,?)", rows)

    def record_call(self, call: LlmCall) -> None:
        """Commit one call of a model."""
        row = (self.id, call.provider, call.model, call.input_tokens, call.output_tokens, call.usd, call.seconds)
        rest = (call.error, time.time(), call.spent_tokens, call.spent_usd)
        self.journal.write("INSERT INTO llm_call VALUES (?,?,?,?,?,?,?,?,?,?,?)", [(*row, *rest)])

    def offer(self, configs: Iterable[Config], parent: int | None) -> None:
        """Commit configurations that a model was paid for, before any of them becomes a trial."""
        rows = [(self.id, parent, to_text(dict(config))) for config in configs]
        self.journal.write("INSERT INTO offer VALUES (?,?,?)", rows)

    def offers(self) -> list[tuple[Config, int | None]]:
        """All that models offered, with the trials that they were derived from, oldest first."""
        rows = self.journal.read("SELECT config, parent FROM offer WHERE run=? ORDER BY rowid", self.id)
        return [(json.loads(config), parent) for config, parent in rows]

    def note(self, kind: str, text: str) -> None:
        """Commit something that a person was told."""
        self.journal.write("INSERT INTO note VALUES (?,?,?,?)", [(self.id, kind, text, time.time())])

    def notes(self, kind: str) -> list[str]:
        """What was told of a kind, oldest first."""
        query = "SELECT text FROM note WHERE run=? AND kind=? ORDER BY rowid"
        return [text for (text,) in self.journal.read(query, self.id, kind)]

    def rejections(self) -> list[Rejection]:
        """Candidates that never became trials, oldest first."""
        rows = self.journal.read("SELECT origin, stage, reason FROM rejection WHERE run=? ORDER BY rowid", self.id)
        return [Rejection(origin_of(origin), stage, reason) for origin, stage, reason in rows]

    def calls(self) -> list[LlmCall]:
        """Calls of models, oldest first."""
        columns = "provider, model, input_tokens, output_tokens, usd, seconds, error, spent_tokens, spent_usd"
        query = f"SELECT {columns} FROM llm_call WHERE run=? ORDER BY rowid"
        return [LlmCall(*row) for row in self.journal.read(query, self.id)]

    def interrupted(self) -> list[tuple[Trial, int]]:
        """Trials whose outcome never came, with the number of attempts made at each."""
        rows = self.journal.read(
            "SELECT number, (SELECT COUNT(*) FROM attempt WHERE attempt.run=trial.run AND attempt.trial=number), "
            f"{_CANDIDATE} FROM trial WHERE run=? AND done_order IS NULL ORDER BY number",
            self.id,
        )
        with self.journal.legible():
            return [(Trial(number, candidate_of(*proposed)), attempts) for number, attempts, *proposed in rows]

    def withdraw(self, numbers: Iterable[int]) -> None:
        """Take back attempts that were cancelled on purpose, so that they are no one's fault."""
        self.journal.write("DELETE FROM attempt WHERE run=? AND trial=?", [(self.id, n) for n in numbers])

    def result(self) -> dict[str, Any] | None:
        """What :meth:`finish` recorded last, or None."""
        text = self.journal.read("SELECT result FROM run WHERE id=?", self.id)[0][0]
        return None if text is None else json.loads(text)

    def finish(self, stopped: str, result: Mapping[str, Any]) -> None:
        """Commit why the run ended and what it found, and let go of it."""
        row = (stopped, to_text(result), self.id)
        self.journal.write("UPDATE run SET stopped=?, result=?, owner=NULL WHERE id=?", [row])

    def release(self) -> None:
        """Let another process go on with this run."""
        self.journal.write("UPDATE run SET owner=NULL WHERE id=? AND owner=?", [(self.id, me())])


def folder_instead(path: Path) -> JournalError:
    """What is wrong with a folder in the place of a journal."""
    advice = f"name a file with --journal PATH, such as {path / 'journal.db'}"
    return JournalError(f"journal {path} is a folder", advice)


def _unusable(path: Path, error: Exception | str) -> JournalError:
    return JournalError(f"journal {path} cannot be used: {error}", "give another file with --journal PATH")
