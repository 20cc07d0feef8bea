"""Where stdout or stderr is closed or full, a command does what it would have done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = "run recordings/pnpoly_3090 --search random --provider none --max-evaluations 5 --json --journal {journal}"
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def evotune(tmp_path: Path, command: str) -> subprocess.CompletedProcess[str]:
    line = f'"{sys.executable}" -m evotune {command.format(journal=tmp_path / "j.db")}'
    return subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("unheard", ["2>&-", "2>/dev/full"])
def test_a_run_ends_as_it_should_when_nobody_can_hear_its_progress(tmp_path: Path, unheard: str) -> None:
    done = evotune(tmp_path, f"{RUN} {unheard}")
    assert done.returncode == 0
    assert json.loads(done.stdout)["evaluations"] == 5


@pytest.mark.parametrize("unheard", ["2>/dev/full", "0<&- 1>&- 2>&-"])
def test_an_error_that_cannot_be_told_keeps_its_exit_code(tmp_path: Path, unheard: str) -> None:
    assert evotune(tmp_path, f"show nothing --journal {{journal}} {unheard}").returncode == 2


def test_a_result_that_cannot_be_written_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    done = evotune(tmp_path, f"{RUN} >/dev/full")
    assert done.returncode == 3
    assert "free some space" in done.stderr
