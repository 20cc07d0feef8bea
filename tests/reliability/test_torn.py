"""A journal that was damaged on its disk; `benchmarks/reliability.py torn` does it at every byte."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from evotune.errors import UsageError
from evotune.journal import Journal
from tests.reliability import torn


@pytest.mark.slow
def test_a_torn_journal_is_recovered_up_to_what_is_left_and_is_never_wrong(tmp_path: Path) -> None:
    found = dict(torn.survey(tmp_path, share=0.004, rng=random.Random(0)))
    assert len(found) == 8
    for name, verdicts in found.items():
        assert verdicts, name
        if name.startswith("file with its log"):
            assert set(verdicts) == {"all"}, name
        elif name.startswith("log"):
            assert set(verdicts) <= {"all", "fewer"}, name
        else:
            assert set(verdicts) <= {"all", "refused"}, name


@pytest.mark.slow
def test_a_file_that_has_rotted_is_refused_in_words_or_read(tmp_path: Path) -> None:
    journals = torn.make(tmp_path)
    size = journals.rested.stat().st_size
    offsets = random.Random(0).sample(range(size), 40)
    offsets += range(journals.page, size, journals.page)  # the first byte of each page says what it is
    verdicts = torn.damage(journals.rested, "", offsets, torn.flip, journals.trials)
    assert verdicts["refused"]
    assert verdicts["all"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE measurement SET samples_ms = '[1.0' WHERE trial = 3",
        "UPDATE trial SET config = '{' WHERE number = 3",
        "UPDATE trial SET origin = 'rbndom' WHERE number = 3",
    ],
)
def test_a_row_that_cannot_be_read_is_a_clear_error_and_not_a_shorter_run(tmp_path: Path, damage: str) -> None:
    path = torn.make(tmp_path).rested
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(damage)
    with Journal(path) as journal:
        run = journal.open_run("toy", "hash", {"seed": 0})
        with pytest.raises(UsageError, match=r"is damaged.*--journal PATH"):
            list(run)
