"""Warm starts: from recordings and journals, through the command's own path."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from evotune.compare import compare
from evotune.errors import UsageError
from evotune.journal import Journal
from evotune.openevolve_tuner import OpenEvolveTuner
from evotune.replay import Row, load_recording, save_recording
from evotune.session import tune
from evotune.settings import load
from evotune.space import ConfigSpace
from evotune.transfer import warm_start
from tests.toy import SPACE, latency_ms

ROOT = Path(__file__).parents[1]


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_trial(self, trial, tuner, *, is_best) -> None:
        pass

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def recorded(folder: Path, *, kernel="toy", device="slow", space=SPACE, factor=1.0) -> Path:
    rows = {
        space.key(c): Row(factor * latency_ms(c), "0", 10.0, 5.0, 0.01)
        for c in map(space.config, range(space.cardinality))
    }
    save_recording(folder, {"kernel": kernel, "device": device}, space, rows)
    return folder


def run(name: Path, journal: Path, **flags):
    notes = Notes()
    chosen = {"run.max_evaluations": 8, "run.journal": str(journal), "llm.provider": "none", **flags}
    return tune(str(name), load(None, chosen, {}), observer=notes), notes.notes


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return recorded(tmp_path / "here", device="fast", factor=0.5)


def test_a_recording_from_another_device_warms_a_run(tmp_path, here):
    source = recorded(tmp_path / "there")
    result, notes = run(here, tmp_path / "j.db", **{"run.warm_start": str(source), "run.max_evaluations": 3})
    assert result.best["latency_ms"] == pytest.approx(0.5), "the best of the source is tried second"
    assert f"warm start from {source}: {SPACE.cardinality} configurations" in notes


def test_the_same_command_resumes_and_another_source_is_another_run(tmp_path, here):
    first, second = recorded(tmp_path / "a"), recorded(tmp_path / "b", factor=3.0)
    journal = tmp_path / "j.db"
    cold, _ = run(here, journal)
    warm, _ = run(here, journal, **{"run.warm_start": str(first), "run.max_evaluations": 4})
    again, notes = run(here, journal, **{"run.warm_start": str(first)})
    other, _ = run(here, journal, **{"run.warm_start": str(second)})
    assert warm.run_id == again.run_id
    assert any("resuming" in note for note in notes)
    assert len({cold.run_id, warm.run_id, other.run_id}) == 3
    whole, _ = run(here, tmp_path / "k.db", **{"run.warm_start": str(first)})
    assert configs(tmp_path / "k.db", whole.run_id) == configs(journal, again.run_id)


def configs(path: Path, run_id: str) -> list:
    with Journal(path) as journal:
        return journal.read("SELECT config FROM trial WHERE run=? ORDER BY number", run_id)


def test_a_journal_warms_a_run_and_may_be_the_runs_own(tmp_path, here):
    journal = tmp_path / "j.db"
    before, _ = run(here, journal, **{"run.seed": 7, "run.max_evaluations": 30})
    warm, notes = run(here, journal, **{"run.warm_start": str(journal), "run.max_evaluations": 3})
    again, _ = run(here, journal, **{"run.warm_start": str(journal), "run.max_evaluations": 5})
    assert warm.best["latency_ms"] == before.best["latency_ms"]
    assert again.run_id == warm.run_id, "its own trials are no source"
    assert any("30 configurations" in note for note in notes)


def test_another_process_with_another_hash_seed_makes_the_same_trials(tmp_path, here):
    source = recorded(tmp_path / "there")
    found = []
    for hash_seed in ("1", "2"):
        journal = tmp_path / f"{hash_seed}.db"
        flags = ["--warm-start", str(source), "--provider", "none", "--max-evaluations", "15"]
        subprocess.run(
            [sys.executable, "-m", "evotune", "run", str(here), *flags, "--journal", str(journal)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=120,
        )
        with Journal(journal) as opened:
            found.append(opened.read("SELECT config FROM trial ORDER BY number"))
    assert len(found[0]) == 15
    assert found[0] == found[1]


def test_what_cannot_be_a_source_is_refused_with_what_was_found_and_wanted(tmp_path, here):
    def message(given: object) -> str:
        with pytest.raises(UsageError) as error:
            run(here, tmp_path / "j.db", **{"run.warm_start": str(given)})
        return str(error.value)

    assert "recording of 'other'; a warm start for 'here', 'toy' is wanted" in message(
        recorded(tmp_path / "other", kernel="other")
    )
    strange = ConfigSpace.from_dict({"x": [1, 2, 4]})
    rows = {strange.key({"x": x}): Row(1.0, "0", 1.0, 1.0, 0.0) for x in (1, 2, 4)}
    save_recording(tmp_path / "strange", {"kernel": "toy", "device": "d"}, strange, rows)
    assert "no parameter in common: it has ['x']" in message(tmp_path / "strange")
    assert "nothing found at" in message(tmp_path / "absent")
    (tmp_path / "empty.db").touch()
    assert "empty.db is empty" in message(tmp_path / "empty.db")
    assert not (tmp_path / "empty.db").stat().st_size, "a source is left as it is"
    (tmp_path / "text.db").write_text("not a journal at all, only text")
    said = message(tmp_path / "text.db")
    assert "is no journal of evotune" in said
    assert "--warm-start PATH" in said
    assert "--journal" not in said
    run(recorded(tmp_path / "elsewhere", kernel="else"), tmp_path / "else.db")
    assert "no finished trials of 'here', 'toy'; it has runs of 'elsewhere'" in message(tmp_path / "else.db")
    run(here, tmp_path / "same.db")
    assert "is the run that is to be started" in message(tmp_path / "same.db")


AS_NOBODY = """
import os, sys
from evotune.transfer import warm_start
from tests.toy import SPACE
if os.getuid() == 0:
    os.setuid(65534)
print(len(warm_start(sys.argv[1], SPACE, ["here"], "", {}).source.loss))
"""


def test_a_journal_that_cannot_be_written_warms_a_run(here):
    with tempfile.TemporaryDirectory() as name:  # pytest's own cannot be entered by others
        folder = Path(name)
        run(here, folder / "j.db")
        (folder / "j.db").chmod(0o444)
        folder.chmod(0o555)
        command = [sys.executable, "-c", AS_NOBODY, str(folder / "j.db")]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        folder.chmod(0o755)
        assert [p.name for p in folder.iterdir()] == ["j.db"]
    assert found.stdout.strip() == "8", found.stderr


def test_a_source_that_has_grown_begins_a_new_run_and_says_so(tmp_path, here):
    journal = tmp_path / "j.db"
    run(recorded(tmp_path / "there" / "here"), journal)
    warm = {"run.warm_start": str(journal)}
    first, _ = run(here, journal, **warm)
    again, _ = run(here, journal, **warm)
    assert again.run_id == first.run_id
    run(recorded(tmp_path / "yonder" / "here", device="other", factor=2.0), journal)
    anew, notes = run(here, journal, **warm)
    assert anew.run_id != first.run_id
    assert any("the source has changed" in note for note in notes)


@pytest.mark.parametrize(
    "changed", [{"search.acquisition": "ucb"}, {"search.start_points": 3}, {"measure.high_reps": 7}]
)
def test_other_settings_are_another_run(tmp_path, here, changed):
    usual, _ = run(here, tmp_path / "j.db")
    other, _ = run(here, tmp_path / "j.db", **changed)
    again, _ = run(here, tmp_path / "j.db", **changed)
    assert usual.run_id != other.run_id == again.run_id


def test_a_search_without_a_model_says_that_it_asks_none(tmp_path, here):
    _, notes = run(here, tmp_path / "j.db", **{"run.search": "random", "llm.provider": "mock"})
    assert "model none: search random asks no model" in notes


def test_a_search_that_cannot_learn_from_a_source_says_so(tmp_path, here):
    source = recorded(tmp_path / "there")
    with pytest.raises(UsageError, match="'random' takes no warm start"):
        run(here, tmp_path / "j.db", **{"run.warm_start": str(source), "run.search": "random"})


def test_a_shuffled_source_costs_a_few_evaluations_at_most(tmp_path, here):
    shuffled = recorded(tmp_path / "shuffled")
    recording = load_recording(shuffled)
    rows = list(recording.rows.values())
    shutil.rmtree(shuffled)
    moved = dict(zip(recording.rows, [*rows[17:], *rows[:17]], strict=True))
    save_recording(shuffled, {"kernel": "toy", "device": "slow"}, SPACE, moved)
    result, _ = run(here, tmp_path / "j.db", **{"run.warm_start": str(shuffled), "run.max_evaluations": 30})
    assert result.best["latency_ms"] == pytest.approx(0.5)


def test_the_content_of_a_source_is_what_tells_it_from_another(tmp_path):
    a, b, c = (recorded(tmp_path / n, factor=f) for n, f in (("a", 1.0), ("b", 1.0), ("c", 2.0)))
    hashes = [warm_start(str(p), SPACE, ["toy"], "", {}).hash for p in (a, b, c)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_comparing_a_warm_search_leaves_its_source_out(tmp_path, here):
    source = recorded(tmp_path / "there")
    found = compare([str(here), str(source)], ["evotune", f"evotune+{source}"], [0], 6)
    assert [(r.space, r.method) for r in found.runs if "+" in r.method] == [("here", f"evotune+{source}")]
    with pytest.raises(UsageError, match="warmed by the very space"):
        compare([str(source)], [f"evotune+{source}"], [0], 6)


def test_an_objective_learns_from_its_journal(tmp_path):
    values = {"block": [16, 32, 64, 128, 256], "warps": [1, 2, 4, 8]}

    def score(shape: int):
        return lambda c: 100.0 / (1 + abs(math.log2(c["block"] / 64)) + abs(math.log2(c["warps"] / 4)) + 1 / shape)

    common = {"provider": "none", "verbose": False}
    OpenEvolveTuner(values, score(1), 20, seed=1, journal=tmp_path / "j.db", **common).tune()
    warm = OpenEvolveTuner(values, score(9), 3, warm_start=tmp_path / "j.db", journal=tmp_path / "k.db", **common)
    assert warm.tune() == {"block": 64, "warps": 4}
    with Journal(tmp_path / "k.db") as journal:
        assert "warm_start" in json.loads(journal.read("SELECT description FROM run")[0][0])
