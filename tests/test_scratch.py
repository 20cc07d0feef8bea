"""Temporary folders of processes that live, that died, and of others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from evotune.process import Scratch
from evotune.process.scratch import LEAST_AGE_S, LOCK

HOLD = """
import sys, time
from evotune.process import Scratch
scratch = Scratch("test")
(scratch.path / "big").write_text("x")
print(scratch.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A process that holds a scratch folder, and the folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()
    process.stdout.close()
    tempfile.tempdir = None


def aged(folder: Path) -> Path:
    lock = folder / LOCK
    then_s = lock.stat().st_mtime - 2 * LEAST_AGE_S
    os.utime(lock, (then_s, then_s))
    return folder


def test_what_a_killed_process_leaves_is_removed_by_the_next_one_and_what_a_live_one_has_is_not(held) -> None:
    process, folder = held
    aged(folder)
    Scratch("test").cleanup()
    assert (folder / "big").exists(), "it lives"
    process.kill()
    process.wait()
    Scratch("other").cleanup()
    assert (folder / "big").exists(), "of another kind"
    Scratch("test").cleanup()
    assert not folder.exists()


def test_what_was_just_made_or_is_not_its_own_is_left_alone(held, tmp_path: Path) -> None:
    process, folder = held
    process.kill()
    process.wait()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    aged(elsewhere)
    (tmp_path / "evotune-test-link").symlink_to(elsewhere)
    (tmp_path / "evotune-test-unlocked").mkdir()
    Scratch("test").cleanup()
    assert folder.exists(), "its lock may not have been taken yet"
    assert elsewhere.exists()
    assert (tmp_path / "evotune-test-unlocked").exists()


def test_it_is_gone_after_cleanup_and_cleanup_may_be_called_twice(held) -> None:
    scratch = Scratch("mine")
    (scratch.path / "file").write_text("x")
    scratch.cleanup()
    scratch.cleanup()
    assert not scratch.path.exists()
