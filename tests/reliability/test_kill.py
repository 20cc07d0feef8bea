"""A tuner that is killed with no warning; `benchmarks/reliability.py kill` does it 200 times."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.reliability.killing import Ballistic, Toll

REPLAY = ["recordings/pnpoly_3090", "--search", "random", "--provider", "none", "--max-evaluations", "40"]
KERNEL = ["kernels/vector_add.py", "--target", "cpu", "--search", "random", "--provider", "none"]

# Long enough a delay for a run to be still there when it is struck, however fast the machine.
DELAY_S = 0.15

pytestmark = pytest.mark.slow


def assert_nothing_lost(toll: Toll, workers: int) -> None:
    kills = sum(toll.kills.values())
    assert toll.lost == []
    assert toll.left == []
    assert toll.repeated <= kills * workers
    assert toll.is_monotone
    assert len(toll.resume_s) >= 1
    assert kills >= 1


def test_a_run_that_is_killed_again_and_again_loses_nothing_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    straight = Ballistic(undisturbed, REPLAY, seed=0, delay_s=0.0).run(kills=0)
    toll = Ballistic(tmp_path, REPLAY, seed=1, delay_s=DELAY_S).run(kills=5)
    assert_nothing_lost(toll, workers=1)
    assert set(toll.trials) == set(range(40))
    assert toll.trials == straight.trials or toll.quarantined


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")
def test_a_run_that_compiles_and_measures_leaves_no_process_when_it_is_killed(tmp_path: Path) -> None:
    toll = Ballistic(tmp_path, [*KERNEL, "--max-evaluations", "24"], seed=1, delay_s=DELAY_S).run(kills=2)
    assert_nothing_lost(toll, workers=3)
