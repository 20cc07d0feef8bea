"""Merging journals: nothing is lost, nothing is there twice, and nothing that cannot be trusted comes in."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from evotune import history
from evotune.errors import UsageError
from evotune.journal import Journal, LlmCall, Rejection
from evotune.merge import merge
from evotune.rows import SCHEMA
from evotune.session import tune
from evotune.settings import load
from evotune.trial import Candidate, Fidelity, Measurement, Static, Trial
from tests.test_transfer import recorded

LOW, ULTRA = Fidelity(1, "low", 5), Fidelity(4, "ultra", 500)
TABLES = ("run", "trial", "attempt", "measurement", "rejection", "llm_call", "offer", "note")


def trial(number: int, tile: int, *, origin="random", parent: int | None = None) -> Trial:
    candidate = Candidate({"tile": tile}, f"# {tile}\n", origin, parent)
    return Trial(
        number, candidate, (Measurement(LOW, "measured", (1.0 + tile, 1.5 + tile)),), Static(0.1, {"r": 1.0})
    )


def record(path: Path, tiles, *, seed=0, ends=True, first=0, fresh=False) -> str:
    """Go on with a run, or begin it, by trials of these tiles."""
    with Journal(path) as journal:
        run = journal.open_run("toy", "hash", {"seed": seed, "device": "toy device"}, fresh=fresh)
        for number, tile in enumerate(tiles, first):
            parent = number - 1 if number else None
            done = trial(number, tile, origin="mutation" if number else "default", parent=parent)
            run.begin(Trial(number, done.candidate))
            run.append(done)
        run.record_call(LlmCall("mock", "m", 10, 5, 0.0, 0.1))
        run.reject([Rejection("mock", "parse", f"no value, {len(tiles)} tiles")])
        run.offer([{"tile": tile} for tile in tiles], None)
        if ends:
            run.append_measurements({number: Measurement(ULTRA, "measured", (0.9,)) for number in range(first, 1)})
            result = {"run_id": run.id, "evaluations": first + len(tiles), "best": None, "speedup": None}
            run.finish("evaluations", {**result, "stopped": "evaluations"})
        else:
            run.release()
        return run.id


def rows(path: Path) -> dict[str, list]:
    with closing(sqlite3.connect(path)) as db:
        return {table: sorted(db.execute(f"SELECT * FROM {table}"), key=repr) for table in TABLES}


def tiles(path: Path, run_id: str) -> list[int]:
    return [t.config["tile"] for t in history.load(path, run_id).trials]


def sql(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


def hide_rows(path: Path) -> None:
    """Let an index be that of a table with fewer rows."""
    roots = "SELECT rootpage FROM sqlite_master WHERE name='{}'"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM attempt WHERE trial > 3")
        db.execute("PRAGMA writable_schema=ON")
        ((few,),) = db.execute(roots.format("attempt_by_trial"))
        ((many,),) = db.execute(roots.format("measurement_by_trial"))
        db.execute("UPDATE sqlite_master SET rootpage=? WHERE name='measurement_by_trial'", (few,))
        db.execute("UPDATE sqlite_master SET rootpage=? WHERE name='attempt_by_trial'", (many,))


def flip_a_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    page = 4096
    for start in range(5 * page, len(content) - page, 2 * page):
        content[start : start + 16] = os.urandom(16)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def journals(tmp_path_factory) -> list[Path]:
    """Three without a run in common, the last of many pages."""
    folder = tmp_path_factory.mktemp("journals")
    paths = [folder / f"{name}.db" for name in ("ours", "sound", "bad")]
    for seed, (path, n) in enumerate(zip(paths, (1, 1, 60), strict=True)):
        record(path, range(n), seed=seed)
    return paths


def test_runs_of_another_journal_join_and_merging_again_adds_nothing(tmp_path):
    ours, theirs = tmp_path / "a.db", tmp_path / "b.db"
    mine, other = record(ours, [1, 2, 3]), record(theirs, [4, 5], seed=1)
    (merged,) = merge(ours, [theirs])
    assert (merged.added, merged.grown, merged.known, merged.trials) == (1, 0, 0, 2)
    assert tiles(ours, mine) == [1, 2, 3]
    assert tiles(ours, other) == [4, 5]
    there, here = history.load(theirs, other), history.load(ours, other)
    assert (here.trials, here.result, here.llm_calls) == (there.trials, there.result, there.llm_calls)
    assert (here.rejections, here.offers, here.attempts) == (there.rejections, there.offers, there.attempts)
    before = rows(ours)
    (again,) = merge(ours, [theirs])
    assert (again.added, again.grown, again.known, again.trials) == (0, 0, 1, 0)
    assert rows(ours) == before


@pytest.mark.parametrize("into_longer", [True, False])
def test_of_a_run_in_two_states_the_longer_one_stays(tmp_path, into_longer):
    short, long = tmp_path / "short.db", tmp_path / "long.db"
    run_id = record(short, [1, 2], ends=False)
    with Journal(short) as journal:  # the third is in flight
        journal.open_run("toy", "hash", {"seed": 0, "device": "toy device"}).begin(Trial(2, trial(2, 3).candidate))
    shutil.copy(short, long)
    with closing(sqlite3.connect(short)) as db, db:
        db.execute("UPDATE run SET owner=NULL")
    record(long, [3, 4], first=2)
    expected = history.load(long, run_id)
    into, source = (long, short) if into_longer else (short, long)
    merge(into, [source])
    found = history.load(into, run_id)
    assert tiles(into, run_id) == [1, 2, 3, 4]
    assert (found.trials, found.result, found.in_flight) == (expected.trials, expected.result, ())
    assert found.offers == expected.offers


def test_copies_that_both_went_on_unite_their_trials_whatever_the_order_of_merging(tmp_path):
    base, a, b = (tmp_path / f"{name}.db" for name in ("base", "a", "b"))
    run_id = record(base, [1, 2], ends=False)
    for copy, more in ((a, [10, 11]), (b, [20, 21, 22])):
        shutil.copy(base, copy)
        record(copy, more, first=2)
    both = tmp_path / "both.db"
    merge(both, [a, b])
    merge(a, [b])
    merge(b, [a])  # which has the trials of both by now
    merge(a, [b])
    for path, expected in ((a, [1, 2, 10, 11, 20, 21, 22]), (b, [1, 2, 20, 21, 22, 10, 11])):
        assert tiles(path, run_id) == expected
        assert history.runs(path)[0].evaluations == 7
    assert tiles(both, run_id) == [1, 2, 10, 11, 20, 21, 22]
    found = history.load(a, run_id)
    numbers = {t.number: t for t in found.trials}
    assert len(numbers) == 7
    parents = {t.config["tile"]: numbers[t.candidate.parent].config["tile"] for t in found.trials[1:]}
    assert parents == {2: 1, 10: 2, 11: 10, 20: 2, 21: 20, 22: 21}
    assert all(t.measurements[0].samples_ms[0] == 1.0 + t.config["tile"] for t in found.trials)
    assert found.result is None  # no result is of all of them: the same command goes on
    before = rows(a)
    merge(a, [b, both, base])
    assert rows(a) == before


def test_two_runs_that_have_the_same_id_by_chance_stay_two(tmp_path):
    ours, theirs = tmp_path / "a.db", tmp_path / "b.db"
    mine, other = record(ours, [1, 2]), record(theirs, [7], seed=1)
    with closing(sqlite3.connect(theirs)) as db, db:
        for table in TABLES:
            db.execute(f"UPDATE {table} SET {'id' if table == 'run' else 'run'}=?", (mine,))
    for _ in range(2):
        merge(ours, [theirs])
        assert tiles(ours, mine) == [1, 2]
        (renamed,) = {run.run_id for run in history.runs(ours)} - {mine}
        assert renamed != other
        assert tiles(ours, renamed) == [7]
        assert history.load(ours, renamed).result["run_id"] == renamed


def test_the_same_command_goes_on_with_a_run_of_the_first_journal(tmp_path):
    ours, theirs = tmp_path / "a.db", tmp_path / "b.db"
    mine = record(ours, [1, 2])
    others = [record(theirs, [3], fresh=True), record(theirs, [4], fresh=True)]
    merge(ours, [theirs])
    with Journal(ours) as journal:
        assert journal.runs() == [*others, mine]
        assert journal.open_run("toy", "hash", {"seed": 0, "device": "toy device"}).id == mine


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_run_that_a_living_tuner_has_open_is_refused(tmp_path, is_ours):
    ours, theirs = tmp_path / "a.db", tmp_path / "b.db"
    record(ours, [1]), record(theirs, [2], seed=1)
    code = (
        "import sys; from pathlib import Path; from evotune.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); journal.open_run('toy', 'hash', {'seed': 5})\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    busy = [sys.executable, "-c", code, str(ours if is_ours else theirs)]
    with subprocess.Popen(busy, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tuner:
        assert tuner.stdout.readline() == "open\n"
        before = rows(ours)
        with pytest.raises(UsageError, match=rf"is being worked on by process {tuner.pid}; wait"):
            merge(ours, [theirs])
        assert rows(ours) == before
        tuner.communicate()
    merge(ours, [theirs])  # it has died; what it left is no one's


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "no journal at"),
        (lambda path: path.write_text("not a database, but long enough to be taken for one" * 20), "no journal of"),
        (lambda path: sql(path, "UPDATE measurement SET samples_ms = '[1.0'"), "damaged"),
        (lambda path: sql(path, "UPDATE trial SET origin = 'rbndom'"), "damaged"),
        (lambda path: sql(path, "UPDATE rejection SET origin = 'rbndom'"), "damaged"),
        (lambda path: sql(path, "PRAGMA user_version=1"), "has schema version 1"),
        (lambda path: sql(path, "PRAGMA user_version=3"), "has schema version 3.*newer"),
        (hide_rows, "missing from index"),
        (flip_a_page, "damaged|malformed|disk image"),
    ],
)
def test_what_cannot_be_trusted_is_refused_before_anything_is_brought(tmp_path, journals, spoil, words):
    ours, sound, bad = (Path(shutil.copy(path, tmp_path)) for path in journals)
    spoil(bad)
    before = rows(ours)
    with pytest.raises(UsageError, match=words):
        merge(ours, [sound, bad])
    assert rows(ours) == before


def test_all_that_is_wrong_with_the_journals_is_told_at_once_in_terms_of_merging(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        record(Path(f"{name}.db"), [1])
    Path("link.db").symlink_to("a.db")
    Path("folder").mkdir()
    Path("empty.db").touch()
    Path("text.db").write_text("no journal at all, but of some length" * 20)
    given = ["link.db", "b.db", "b.db", "none.db", "folder", "empty.db", "text.db"]
    with pytest.raises(UsageError) as error:
        merge(Path("a.db"), [Path(name) for name in given])
    instead = "name another file in its place, or leave it out"
    assert str(error.value).splitlines() == [
        "link.db, the same file as a.db, is the journal that the others are brought into; leave it out of the "
        "others",
        "b.db is given twice; name each journal once",
        f"no journal at none.db; {instead}",
        f"journal folder is a folder; {instead}",
        f"journal empty.db is empty: no run has begun in it; {instead}",
        f"text.db is no journal of evotune: file is not a database; {instead}",
    ]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: sql(path, "PRAGMA user_version=3"), "a.db has schema version 3, this evotune writes 2"),
        (lambda path: path.write_text("no journal at all" * 99), "a.db cannot be used: file is not a database"),
        (lambda path: (path.unlink(), path.mkdir()), "a.db is a folder"),
        (lambda path: sql(path, "DROP TABLE trial"), "a.db cannot be used: no such table"),
    ],
)
def test_a_journal_that_cannot_grow_is_named_and_another_is_asked_for(tmp_path, monkeypatch, spoil, words):
    monkeypatch.chdir(tmp_path)
    record(Path("a.db"), [1]), record(Path("b.db"), [1], seed=1)
    spoil(Path("a.db"))
    with pytest.raises(UsageError, match=words) as error:
        merge(Path("a.db"), [Path("b.db")])
    assert "--journal" not in str(error.value)
    assert "into another one, given first or with --out" in str(error.value)


def test_columns_that_stand_in_another_order_find_their_places(tmp_path):
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    ranks = "rank INTEGER NOT NULL, fidelity TEXT NOT NULL"
    assert ranks in SCHEMA
    with closing(sqlite3.connect(old)) as db, db:
        db.executescript(SCHEMA.replace(ranks, ", ".join(reversed(ranks.split(", ")))) + "PRAGMA user_version=2;")
    source = tmp_path / "source.db"
    run_id = record(source, [1, 2])
    merge(old, [source])
    merge(new, [old])
    assert history.load(new, run_id).trials == history.load(source, run_id).trials


def test_a_failure_half_way_changes_nothing(tmp_path, monkeypatch):
    ours, theirs = tmp_path / "a.db", tmp_path / "b.db"
    record(ours, [1]), record(theirs, [2], seed=1), record(theirs, [3], seed=2)
    before = rows(ours)
    monkeypatch.setattr("evotune.merge.result_of", lambda result, total: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge(ours, [theirs])
    assert rows(ours) == before


class Silent:
    def on_note(self, text: str) -> None:
        pass

    def on_trial(self, trial, tuner, *, is_best) -> None:
        pass


def replay(recording: Path, journal: Path, evaluations: int, **flags):
    chosen = {"run.max_evaluations": evaluations, "run.journal": str(journal), "llm.provider": "none", **flags}
    return tune(str(recording), load(None, chosen, {}), observer=Silent())


def test_a_merged_journal_warms_a_run_and_a_united_run_is_gone_on_with(tmp_path):
    a, b, merged = tmp_path / "a.db", tmp_path / "b.db", tmp_path / "merged.db"
    toy = recorded(tmp_path / "toy")
    replay(toy, a, 10)
    shutil.copy(a, b)
    replay(toy, a, 12)
    replay(toy, b, 14)
    merge(merged, [a, b])
    (united,) = history.runs(merged)
    assert united.evaluations == 16
    assert replay(toy, merged, 4, **{"run.warm_start": str(merged), "run.seed": 1}).evaluations == 4
    result = replay(toy, merged, 18)
    assert (result.run_id, result.evaluations) == (united.run_id, 18)


def test_the_command_says_what_it_brought(tmp_path, monkeypatch, capsys):
    from evotune.cli import main

    def evotune(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evotune", "merge", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    monkeypatch.chdir(tmp_path)
    record(Path("a.db"), [1]), record(Path("b.db"), [2, 3], seed=1)
    code, out, _ = evotune("a.db", "b.db")
    assert (code, out) == (0, "b.db: runs new in a.db: 1, grown: 0, there before: 0; trials brought: 2\n")
    code, out, _ = evotune("a.db", "b.db", "--out", "all.db", "--json")
    assert code == 0
    assert [row["trials"] for row in json.loads(out)["merged"]] == [3, 0]
    code, _, err = evotune("a.db")
    assert (code, "only journal" in err) == (2, True)
    code, _, err = evotune("none.db", "a.db")
    assert (code, "--out" in err) == (2, True)
    assert not Path("none.db").exists()
    code, _, err = evotune("a.db", "b.db", "--out", "a.db")
    brought = "a.db is the journal that the others are brought into; leave it out of the others"
    assert (code, err) == (2, f"error: {brought}\n")
