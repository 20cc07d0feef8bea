"""Disks that are full, folders that cannot be written, clocks that jump, and tuners that share a journal."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from evotune import history
from evotune.journal import Journal
from tests.reliability.killing import ROOT, open_to_all, read_trials
from tests.test_tuner import Listener
from tests.test_tuner import run as tune
from tests.toy import ToyEvaluator

COMMAND = [sys.executable, "-m", "evotune", "run", "recordings/pnpoly_3090", "--search", "random"]
COMMAND += ["--provider", "none", "--max-evaluations", "60", "--progress", "json", "--json"]
NOBODY = 65534


def start(journal: Path, *more: str, largest_file_kib: int | None = None) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVOTUNE_", "OPENAI_", "ANTHROPIC_"))}
    command = [*COMMAND, "--journal", str(journal), *more]
    if largest_file_kib is not None:  # SQLite meets the limit as it meets a full disk
        command = ["bash", "-c", f'ulimit -f {largest_file_kib} && exec "$@"', "bash", *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=kept, stdout=pipe, stderr=pipe, text=True)


def told(stderr: str) -> dict[int, dict[str, object]]:
    events = [json.loads(line) for line in stderr.splitlines() if line.startswith('{"event": "trial"')]
    return {event["number"] - 1: event["config"] for event in events}


@pytest.mark.slow
@pytest.mark.parametrize("room_kib", [128, 300])
def test_on_a_full_disk_a_run_stops_with_what_it_has_and_goes_on_when_there_is_room(
    tmp_path: Path, room_kib: int
) -> None:
    stopped = start(tmp_path / "j.db", largest_file_kib=room_kib)
    _, stderr = stopped.communicate(timeout=120)
    assert stopped.returncode == 2, stderr
    assert "journal" in stderr
    assert "Traceback" not in stderr
    acknowledged = told(stderr)
    assert len(acknowledged) < 60
    found = read_trials(tmp_path / "j.db")
    assert {n: found[n][0] for n in acknowledged} == acknowledged
    resumed = start(tmp_path / "j.db")
    stdout, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, stderr
    assert json.loads(stdout)["evaluations"] == 60
    assert not set(told(stderr)) & set(acknowledged)


# Importing comes first: the interpreter may lie where another user cannot read.
AS_NOBODY = f"""
import os, sys
from pathlib import Path
from evotune import history
from evotune.errors import UsageError
from evotune.journal import Journal
path = Path(sys.argv[1])
if os.getuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
try:
    Journal(path)
except UsageError as error:
    print("UsageError", error)
if path.exists():
    print(len(history.load(path).trials), "trials can be read")
"""


def test_a_folder_that_cannot_be_written_is_told_before_any_work_and_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    tune(folder / "j.db", 5)
    open_to_all(tmp_path)
    (folder / "j.db").chmod(0o444)
    folder.chmod(0o555)
    try:
        for name, said in (("j.db", "5 trials can be read"), ("new.db", "UsageError")):
            command = [sys.executable, "-c", AS_NOBODY, str(folder / name)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            assert f"UsageError journal {folder / name} cannot be used" in done.stdout
            assert "--journal PATH" in done.stdout
            assert said in done.stdout
    finally:
        folder.chmod(0o755)
    assert sorted(p.name for p in folder.iterdir()) == ["j.db"]


@pytest.mark.slow
def test_two_tuners_with_different_runs_share_a_journal(tmp_path: Path) -> None:
    tuners = [start(tmp_path / "j.db", "--seed", str(seed)) for seed in (0, 1)]
    for tuner in tuners:
        _, stderr = tuner.communicate(timeout=120)
        assert tuner.returncode == 0, stderr
    found = history.runs(tmp_path / "j.db")
    assert [summary.evaluations for summary in found] == [60, 60]


@pytest.mark.slow
def test_two_tuners_with_the_same_run_do_not_work_on_it_at_once(tmp_path: Path) -> None:
    holder = tmp_path / "j.db"
    first = start(holder)
    first.communicate(timeout=120)
    with Journal(holder) as journal:
        (run_id,) = journal.runs()
        # This process takes the run, as a first tuner does for as long as it works.
        journal._claim(run_id)
        second = start(holder, "--max-evaluations", "61")
        _, stderr = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"run {run_id}" in stderr
    assert f"process {os.getpid()}" in stderr


def test_a_clock_that_jumps_backwards_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = Listener()
    expected = tune(tmp_path / "straight.db", 30, listener=straight)
    backwards = itertools.count(2_000_000_000, -86_400)  # a day earlier each time that somebody looks
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    tune(tmp_path / "j.db", 12, fresh=True)
    abandoned = tune(tmp_path / "j.db", 12, fresh=True)
    evaluator = ToyEvaluator()
    result = tune(tmp_path / "j.db", 30, evaluator)
    assert result.run_id == abandoned.run_id, "the latest run is the one that was begun last"
    assert result.best == expected.best
    found = history.load(tmp_path / "j.db", result.run_id)
    assert [t.config for t in found.trials] == [t.config for t in straight.trials]
    assert history.runs(tmp_path / "j.db")


def test_a_time_limit_does_not_follow_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = itertools.count(0, 10**6)
    monkeypatch.setattr(time, "time", lambda: float(next(forwards)))
    assert tune(tmp_path / "j.db", 20, seconds=600.0).stopped == "evaluations"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="only root may mount")
def test_a_disk_without_room_for_a_journal_is_told_before_any_work(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=16k none {tmp_path}"
    inside = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    command = [*inside, *COMMAND, "--journal", f"{tmp_path}/j.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert f"journal {tmp_path}/j.db cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    assert '"trial"' not in done.stderr


def test_tuners_that_begin_in_the_same_moment_in_a_new_journal_all_get_their_run(tmp_path: Path) -> None:
    problems: list[Exception] = []

    def begin(path: Path, barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            with Journal(path) as journal:
                journal.open_run("toy", "hash", {}, fresh=True)
        except Exception as error:  # whatever it is, it belongs to the test
            problems.append(error)

    for n in range(12):
        barrier = threading.Barrier(6)
        threads = [threading.Thread(target=begin, args=(tmp_path / f"{n}.db", barrier)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    with Journal(tmp_path / "0.db") as journal:
        assert len(journal.runs()) == 6
