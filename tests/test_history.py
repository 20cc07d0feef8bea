"""What is read back from a journal, finished or not, is what the tuner knew."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from evotune import history
from evotune.errors import UsageError
from evotune.journal import SCHEMA_VERSION, Journal, LlmCall, Rejection
from evotune.plan import plan
from evotune.process.owner import me
from evotune.proposers.multifidelity import MultiFidelityBayesianSearch
from evotune.reading import read
from evotune.settings import Settings
from evotune.shapes.table import SHAPE
from evotune.trial import Candidate, Measurement, Static, Trial
from tests.test_tuner import BEST, Ladder, Listener, run
from tests.toy import LADDER, SPACE, ULTRA, ToyEvaluator

ROOT = Path(__file__).parents[1]


class Watcher(Listener):
    """Reads the journal after every trial, and compares what it says with what the tuner holds."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.seen = []

    def on_trial(self, trial, tuner, *, is_best):
        super().on_trial(trial, tuner, is_best=is_best)
        found = history.load(self.path)
        self.seen.append((found.incumbent and found.incumbent.number, tuner.incumbent and tuner.incumbent.number))
        assert found.summary.is_running
        assert found.summary.state == "running"
        assert found.summary.evaluations == len(tuner.trials)


class Fragile(Ladder):
    """What leads at the low fidelities fails when it is looked at closely."""

    def measure(self, config, fidelity):
        if fidelity.rank > 1 and config["stages"] == 2:
            return Measurement(fidelity, "measured", failed_stage="incorrect", reason="by one")
        return super().measure(config, fidelity)


SEARCHES = {
    "random": {},
    "failing": {"evaluator": ToyEvaluator(fails=lambda c: c["stages"] == 2)},
    "mfbo": {"search": MultiFidelityBayesianSearch, "evaluator": Ladder()},
    "fragile": {"search": MultiFidelityBayesianSearch, "evaluator": Fragile()},
}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("search", SEARCHES)
def test_the_best_so_far_is_the_tuners_incumbent_after_every_trial(tmp_path, search, resumed):
    path = tmp_path / "j.db"
    watcher = Watcher(path)
    if resumed:  # finals lie between: they are more careful than the search, and must not lead for that
        run(path, 4, **SEARCHES[search])
    run(path, 24, listener=watcher, **SEARCHES[search])
    assert len(watcher.seen) >= 20
    assert [found for found, _ in watcher.seen] == [held for _, held in watcher.seen]
    assert resumed or len({held for _, held in watcher.seen}) > 1


def test_a_finished_run_tells_what_it_reported(tmp_path):
    path = tmp_path / "j.db"
    result = run(path, 20)
    found = history.load(path)
    assert found.result == json.loads(json.dumps(result.to_json()))
    assert found.best == found.result["best"]
    assert found.best_trial.config == result.best["config"]
    assert found.summary.stopped == found.summary.state == "evaluations"
    assert not found.summary.is_running
    assert found.summary.best_ms == result.best["latency_ms"]
    assert found.summary.speedup == result.speedup
    assert found.description == {"seed": 0}
    assert found.provenance == "measured"
    assert found.default.config == SPACE.default
    assert [t.number for t in found.trials] == list(range(20))
    times = [found.done_s[t.number] for t in found.trials]
    assert times == sorted(times)
    assert all(len(starts) == 1 for starts in found.attempts.values())


def test_a_run_that_goes_on_after_its_end_has_no_result_until_it_ends_again(tmp_path):
    path = tmp_path / "j.db"
    run(path, 10)
    with Journal(path) as journal:
        again = journal.open_run("toy", "hash", {"seed": 0})
        slow = Trial(
            10,
            Candidate({**BEST, "stages": 3}, "", "random"),
            (Measurement(LADDER[1], "measured", (9.0,)),),
            Static(0.1),
        )
        again.begin(slow)
        again.append(slow)
        found = history.load(path)
    assert found.result is None
    assert found.summary.speedup is None
    assert found.summary.stopped is None
    assert found.best["config"] == found.incumbent.config == BEST
    assert found.summary.evaluations == 11


def test_an_interrupted_run_keeps_what_it_found(tmp_path):
    evaluator = ToyEvaluator()
    evaluator.raised_on = 8
    result = run(tmp_path / "j.db", 20, evaluator)
    found = history.load(tmp_path / "j.db")
    assert found.summary.state == "interrupted"
    assert found.best["config"] == result.best["config"] == found.incumbent.config
    assert [t.number for t in found.in_flight] == [7]
    assert not found.attempts.get(7)  # taken back: Ctrl-C is no fault of the trial


def test_a_run_that_was_killed_is_cut_off(tmp_path):
    path = tmp_path / "j.db"
    with Journal(path) as journal:
        killed = journal.open_run("toy", "hash", {"target": "cpu"})
        killed.begin(Trial(0, Candidate(SPACE.default, "text", "default")))
        host, pid, started = me().split()
        journal.write("UPDATE run SET owner=?", [(f"{host} {pid} {int(started) + 1}",)])  # that pid is another now
    found = history.load(path)
    assert found.summary.state == "cut off"
    assert found.summary.best_ms is None
    assert found.best is found.incumbent is found.provenance is None
    assert [t.number for t in found.in_flight] == [0]
    assert len(found.attempts[0]) == 1


def test_a_run_that_was_let_go_without_a_result_was_not_cut_off(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        journal.open_run("toy", "hash", {}).release()
    assert history.load(tmp_path / "j.db").summary.state == "let go"


def test_rejections_calls_and_notes_are_there(tmp_path):
    path = tmp_path / "j.db"
    with Journal(path) as journal:
        opened = journal.open_run("toy", "hash", {})
        opened.reject([Rejection("llm", "parse", "no program")])
        opened.record_call(LlmCall("openai", "m", 10, 20, 0.1, 1.5, None, 30, 0.1))
        opened.note("given", json.dumps("kernels/toy.py"))
        opened.note("model left out", "it did not earn its share")
    found = history.load(path)
    assert found.rejections == (Rejection("llm", "parse", "no program"),)
    assert found.llm_calls == (LlmCall("openai", "m", 10, 20, 0.1, 1.5, None, 30, 0.1),)
    assert [(n.kind, n.text) for n in found.notes][1] == ("model left out", "it did not earn its share")


def test_a_run_over_several_shapes_has_a_best_trial_for_each_and_no_incumbent(tmp_path):
    assert history.SHAPE == SHAPE  # spelt out there, for what importing it would cost
    path = tmp_path / "j.db"
    with Journal(path) as journal:
        opened = journal.open_run("toy (a, b)", "hash", {"shapes": {"a": {"n": 1}, "b": {"n": 2}}})
        for number, (shape, tile, latency_ms) in enumerate([("a", 16, 2.0), ("b", 16, 9.0), ("a", 32, 1.0)]):
            config = {SHAPE: shape, "tile": tile}
            trial = Trial(
                number,
                Candidate(config, "", "random"),
                (Measurement(LADDER[1], "measured", (latency_ms,)),),
                Static(0.1),
            )
            opened.begin(trial)
            opened.append(trial)
    found = history.load(path)
    assert found.best is found.incumbent is found.summary.best_ms is None
    assert {shape: t.number for shape, t in found.incumbents.items()} == {"a": 2, "b": 1}


# -- which run ----------------------------------------------------------------------------------


def ids(path, *created_s):
    with Journal(path) as journal:
        known = [journal.open_run("toy", "h", {"seed": i}).id for i, _ in enumerate(created_s)]
        journal.write(
            "UPDATE run SET created_s=? WHERE id=?", [(c, i) for i, c in zip(known, created_s, strict=True)]
        )
    return known


def test_the_run_that_was_worked_on_last_comes_first(tmp_path):
    first, second, third = ids(tmp_path / "j.db", 100.0, 300.0, 200.0)
    with Journal(tmp_path / "j.db") as journal:
        assert [s.run_id for s in history.runs(tmp_path / "j.db")] == [second, third, first]
        journal.open_run("toy", "h", {"seed": 0}).begin(Trial(0, Candidate(SPACE.default, "", "default")))
    assert [s.run_id for s in history.runs(tmp_path / "j.db")] == [first, second, third]
    assert history.load(tmp_path / "j.db").summary.run_id == first


def test_a_run_is_found_by_the_beginning_of_its_id(tmp_path):
    path = tmp_path / "j.db"
    known = ids(path, 1.0, 2.0)
    with Journal(path) as journal:
        journal.write("UPDATE run SET id=? WHERE id=?", [("r-abc1", known[0]), ("r-abd2", known[1])])
    for text in ("r-abc1", "r-abc", "abc", "abc1"):
        assert history.load(path, text).summary.run_id == "r-abc1"
    with pytest.raises(UsageError, match=r"2 runs begin with 'r-ab': r-abd2, r-abc1"):
        history.load(path, "r-ab")
    with pytest.raises(UsageError, match=r"no run 'r-abc9'; the nearest are r-abc1.*evotune show --all --journal"):
        history.load(path, "r-abc9")


def test_a_journal_without_runs_says_how_to_make_one(tmp_path):
    Journal(tmp_path / "j.db").close()
    assert history.runs(tmp_path / "j.db") == []
    with pytest.raises(UsageError, match="has no runs; evotune run KERNEL"):
        history.load(tmp_path / "j.db")


# -- the file -----------------------------------------------------------------------------------


def _tree(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_reading_changes_nothing_on_the_disk(tmp_path):
    run(tmp_path / "j.db", 3)
    before = _tree(tmp_path)
    history.load(tmp_path / "j.db")
    history.runs(tmp_path / "j.db")
    assert _tree(tmp_path) == before


def test_a_missing_journal_is_named_and_not_made(tmp_path):
    with pytest.raises(UsageError, match=r"no journal at .*j\.db; a run makes one"):
        history.load(tmp_path / "j.db")
    assert _tree(tmp_path) == {}


@pytest.mark.parametrize("content", ["text, not a database " * 50, "another database"])
def test_a_file_of_something_else_is_no_journal_and_stays_as_it_is(tmp_path, content):
    path = tmp_path / "j.db"
    path.write_text(content, encoding="utf-8")
    if content == "another database":
        path.unlink()
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE cake (x)")
        db.close()
    before = _tree(tmp_path)
    with pytest.raises(UsageError, match="is no journal of evotune"):
        history.load(path)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize(("version", "advice"), [(1, "the next run in it brings it up to date"), (99, "newer one")])
def test_a_journal_of_another_version_is_refused_with_what_to_do_and_not_upgraded(tmp_path, version, advice):
    path = tmp_path / "j.db"
    run(path, 3)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={version}")
    db.close()
    with pytest.raises(UsageError, match=f"version {version}, this evotune reads {SCHEMA_VERSION}; .*{advice}"):
        history.load(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == version
    db.close()


def test_a_journal_is_read_that_a_killed_writer_left_behind(tmp_path):
    (tmp_path / "copy").mkdir()
    with Journal(tmp_path / "j.db") as journal:
        journal.open_run("toy", "h", {})
        for file in tmp_path.glob("j.db*"):  # as a kill leaves them, with what was committed in the -wal alone
            shutil.copy(file, tmp_path / "copy")
    assert [s.kernel for s in history.runs(tmp_path / "copy" / "j.db")] == ["toy"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up its rights and keep a folder to clean up")
def test_a_journal_in_a_folder_that_cannot_be_written_is_read(tmp_path):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder / "j.db", 3)
        folder.chmod(0o555)
        (folder / "j.db").chmod(0o444)
        code = (
            "import os; from pathlib import Path; from evotune import history; os.setuid(65534)\n"
            f"print(history.runs(Path({str(folder / 'j.db')!r}))[0].evaluations)"
        )
        command = [sys.executable, "-c", code]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "3", found.stderr


def test_a_candidate_measured_in_finals_only_does_not_raise_the_top(tmp_path):
    run(tmp_path / "j.db", 12)
    found = history.load(tmp_path / "j.db")
    assert found.top_rank == LADDER[-1].rank
    assert any(m.fidelity.rank == ULTRA.rank for t in found.trials for m in t.measurements)


@pytest.mark.parametrize("open_journal", [Journal, lambda path: read(path, lambda journal: journal.runs())])
def test_a_folder_in_the_place_of_a_journal_is_called_one(tmp_path, open_journal):
    with pytest.raises(UsageError, match=r"is a folder; name a file with --journal PATH, such as .*journal\.db"):
        open_journal(tmp_path)


def test_an_empty_file_is_a_journal_without_runs_in_which_one_may_begin(tmp_path):
    path = tmp_path / "j.db"
    path.touch()
    with pytest.raises(UsageError, match="is empty: no run has begun in it; evotune run KERNEL"):
        read(path, lambda journal: journal.runs())
    settings = Settings.model_validate({"run": {"journal": str(path)}, "llm": {"provider": "none"}})
    assert plan("recordings/pnpoly_3090", settings, {}).resumes is None
    with Journal(path) as journal:
        assert journal.runs() == []
