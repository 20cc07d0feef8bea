import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evotune.errors import UsageError
from evotune.journal import Journal, LlmCall, Rejection
from evotune.trial import Candidate, Fidelity, Measurement, Static, Trial

LOW, ULTRA = Fidelity(1, "low", 5), Fidelity(4, "ultra", 500)


def trial(number: int, ms: float | None = 1.0, origin="random") -> Trial:
    config = {"tile": 16 << number % 3, "pad": True, "layout": "nt", "scale": 0.5}
    measured = (
        Measurement(LOW, "measured", (ms, ms * 1.1), context={"load": 0.5})
        if ms
        else Measurement(LOW, "measured", failed_stage="compile", reason="no")
    )
    static = Static(0.25, {"code_bytes": 96.0}) if ms else None
    return Trial(number, Candidate(config, "def ...", origin), (measured,), static)


def record(run, done: Trial) -> None:
    run.begin(Trial(done.number, done.candidate))
    run.append(done)


def test_a_run_gives_back_what_was_appended_in_the_order_in_which_trials_ended(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("k", "hash", {"seed": 0})
        first, second = trial(0, None), trial(1, 2.0, "llm")
        for t in (first, second):
            run.begin(Trial(t.number, t.candidate))
        run.append(second)
        run.append(first)
        assert list(run) == [second, first]
    with Journal(tmp_path / "j.db") as journal:
        again = journal.open_run("k", "hash", {"seed": 0})
        assert again.id == run.id
        assert not again.is_new
        assert list(again) == [second, first]
        record(again, trial(2))
        assert [t.number for t in again] == [1, 0, 2]


def test_another_description_or_fresh_starts_another_run(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        first = journal.open_run("k", "hash", {"seed": 0})
        assert journal.open_run("k", "hash", {"seed": 1}).id != first.id
        newest = journal.open_run("k", "hash", {"seed": 0}, fresh=True)
        assert newest.id != first.id
        assert journal.open_run("k", "hash", {"seed": 0}).id == newest.id
        assert len(journal.runs()) == 3


def test_an_edited_kernel_starts_a_new_run_and_says_so(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        assert not journal.open_run("k", "hash", {}).replaces_edited
        edited = journal.open_run("k", "other", {})
        assert edited.is_new
        assert edited.replaces_edited


def test_a_trial_without_outcome_is_known_with_its_attempts_until_withdrawn(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("k", "hash", {})
        begun = Trial(0, trial(0).candidate)
        run.begin(begun)
        run.begin(begun)
        assert run.interrupted() == [(begun, 2)]
        run.withdraw([0])
        assert run.interrupted() == [(begun, 0)]
        run.append(trial(0))
        assert run.interrupted() == []


def test_finals_rejections_calls_and_results_are_kept(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("k", "hash", {})
        record(run, trial(0))
        final = Measurement(ULTRA, "measured", (0.9,) * 3)
        run.append_measurements({0: final})
        assert next(iter(run)).best == final
        rejected = Rejection("llm", "parse", "no program")
        run.reject([rejected])
        assert run.rejections() == [rejected]
        call = LlmCall("mock", "mock", 10, 20, None, 0.5, None, 500, 0.25)
        run.record_call(call)
        assert run.calls() == [call]
        assert run.result() is None
        run.finish("evaluations", {"best": 1})
        assert run.result() == {"best": 1}


def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path):
    script = f"""
import os
from tests.test_journal import *
journal = Journal(Path({str(tmp_path / "j.db")!r}))
run = journal.open_run("k", "hash", {{}})
for n in range(5):
    record(run, trial(n))
run.begin(trial(5))
os.kill(os.getpid(), 9)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, check=False)
    assert done.returncode == -9
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("k", "hash", {})
        assert [t.number for t in run] == [0, 1, 2, 3, 4]
        assert [(t.number, n) for t, n in run.interrupted()] == [(5, 1)]


def test_two_living_processes_cannot_work_on_one_run(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("k", "hash", {})
        script = f"""
from pathlib import Path
from evotune.journal import Journal
Journal(Path({str(tmp_path / "j.db")!r})).open_run("k", "hash", {{}})
"""
        command = [sys.executable, "-c", script]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert f"run {run.id}" in refused.stderr
        assert str(os.getpid()) in refused.stderr
        run.release()
        assert subprocess.run(command, check=False).returncode == 0


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("hello " * 100)
    with pytest.raises(UsageError, match="--journal"):
        Journal(text)


def test_a_trial_keeps_the_fidelity_that_it_was_proposed_for_also_if_it_was_cut_off(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("k", "hash", {"seed": 0})
        done, cut_off = (replace(t, candidate=replace(t.candidate, fidelity_rank=2)) for t in (trial(0), trial(1)))
        record(run, done)
        run.begin(replace(cut_off, measurements=(), static=None))
        assert list(run) == [done]
        assert [t.candidate for t, _ in run.interrupted()] == [cut_off.candidate]


def test_a_journal_of_the_first_version_is_read_and_gone_on_with(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        record(journal.open_run("k", "hash", {"seed": 0}), trial(0))
    db = sqlite3.connect(tmp_path / "j.db")
    db.execute("ALTER TABLE trial DROP COLUMN fidelity_rank")
    for column in ("spent_tokens", "spent_usd"):
        db.execute(f"ALTER TABLE llm_call DROP COLUMN {column}")
    for table in ("offer", "note"):
        db.execute(f"DROP TABLE {table}")
    db.execute("PRAGMA user_version=1")
    db.close()
    for numbers in ([0], [0, 1]):
        with Journal(tmp_path / "j.db") as journal:
            run = journal.open_run("k", "hash", {"seed": 0})
            assert list(run) == [trial(n) for n in numbers]
            if numbers == [0]:
                record(run, trial(1))
                run.offer([{"tile": 32}], 0)
                run.note("model", "left out")
            else:
                assert (run.offers(), run.notes("model")) == ([({"tile": 32}, 0)], ["left out"])


def test_an_unknown_schema_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "j.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(UsageError, match="schema version 99"):
        Journal(path)


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used"):
        Journal(tmp_path / "file" / "j.db")


@pytest.mark.parametrize("text", ['{"tile": 16} {"tile": 32}', '{"tile": 16', "", "nonsense"])
def test_a_row_that_is_not_one_piece_of_json_is_an_error_and_not_another_trial(tmp_path, text):
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("k", "hash", {})
        record(run, trial(0))
        journal.write("UPDATE trial SET config=?", [(text,)])
        with pytest.raises(UsageError, match="is damaged"):
            list(run)
