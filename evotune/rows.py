"""The tables of the journal, and how candidates and measurements lie in their rows."""

from __future__ import annotations

import json
from typing import Any, cast, get_args

from evotune.space import Value
from evotune.trial import Candidate, Fidelity, Measurement, Origin

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE run (
    id TEXT PRIMARY KEY, key TEXT NOT NULL, created_s REAL NOT NULL, kernel TEXT NOT NULL,
    source_hash TEXT NOT NULL, description TEXT NOT NULL, owner TEXT, stopped TEXT, result TEXT
);
CREATE INDEX run_by_key ON run (key, created_s);
CREATE TABLE trial (
    run TEXT NOT NULL REFERENCES run, number INTEGER NOT NULL, origin TEXT NOT NULL, parent INTEGER,
    program TEXT NOT NULL, config TEXT NOT NULL, compile_s REAL, facts TEXT, done_order INTEGER,
    done_s REAL, fidelity_rank INTEGER,
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
    usd REAL, seconds REAL, error TEXT, at_s REAL NOT NULL, spent_tokens INTEGER, spent_usd REAL
);
CREATE TABLE offer (run TEXT NOT NULL, parent INTEGER, config TEXT NOT NULL);
CREATE TABLE note (run TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, at_s REAL NOT NULL);
"""
# What brings a file of the first version to this one; its trials all climbed.
UPGRADE = (
    "ALTER TABLE trial ADD COLUMN fidelity_rank INTEGER",
    "ALTER TABLE llm_call ADD COLUMN spent_tokens INTEGER",
    "ALTER TABLE llm_call ADD COLUMN spent_usd REAL",
    *(s for s in SCHEMA.split(";") if "TABLE offer" in s or "TABLE note" in s),
)
# Lists of runs must not read all trials. Not a matter of the version: files without them are read as well.
INDEXES = (
    "CREATE INDEX IF NOT EXISTS trial_by_end ON trial (run, done_order, done_s)",
    "CREATE INDEX IF NOT EXISTS attempt_by_start ON attempt (run, started_s)",
)


_decoder = json.JSONDecoder()


def to_text(value: object) -> str:
    """A value as JSON; parameters keep their order."""
    return json.dumps(value, sort_keys=False)


def from_text(text: str) -> Any:
    """A value that :func:`to_text` wrote, in half the time of ``json.loads``: there is no space around it.

    Raises:
        ValueError: It is no JSON, or more than that.
    """
    value, end = _decoder.raw_decode(text)
    if end != len(text):
        raise ValueError(f"there is something after the JSON: {text[end : end + 20]!r}")
    return value


def origin_of(text: str) -> Origin:
    """An origin that was written as text; ``ValueError`` if there is no such."""
    if text not in get_args(Origin):
        raise ValueError(f"{text!r} is no origin of a candidate")
    return cast(Origin, text)


def candidate_of(origin: str, parent: int | None, program: str, config: str, rank: int | None) -> Candidate:
    """A candidate from its columns of a trial."""
    decoded: dict[str, Value] = from_text(config)
    return Candidate(decoded, program, origin_of(origin), parent, rank)


def result_of(text: str | None, evaluations: int) -> dict[str, Any] | None:
    """What a run of so many trials reported at its end; None if it has not ended, or has gone on since."""
    found: dict[str, Any] | None = None if text is None else from_text(text)
    return None if found is None or found["evaluations"] != evaluations else found


def row_of(run: str, number: int, m: Measurement) -> tuple[Any, ...]:
    """A measurement of a trial as a row."""
    f = m.fidelity
    timing = (m.provenance, to_text(m.samples_ms), m.failed_stage, m.reason, m.rel_sem, to_text(dict(m.context)))
    return (run, number, f.rank, f.name, f.reps, *timing)


def measurement_of(*row: Any) -> Measurement:
    """A measurement from the columns that follow run and trial."""
    rank, name, reps, provenance, samples_ms, failed_stage, reason, rel_sem, context = row
    samples = tuple(from_text(samples_ms))
    fidelity = Fidelity(rank, name, reps)
    return Measurement(fidelity, provenance, samples, failed_stage, reason, rel_sem, from_text(context))
