"""The benchmark for GPUs, as far as it can be walked without one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evotune.gpu.detect import detect

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "on_gpu.py"


def on_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(bool(detect()), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    done = on_gpu("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "no NVIDIA GPU is here" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")
def test_a_dry_run_is_called_one_and_goes_on_where_its_time_was_up(tmp_path: Path) -> None:
    arguments = ("--out", str(tmp_path), "--dry-run", "--only", "record/softmax", "--only", "gain/softmax")
    cut = on_gpu(*arguments, "--minutes", "0")
    assert cut.returncode == 75, cut.stderr
    done = on_gpu(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads((tmp_path / "on_gpu.json").read_text())
    assert state["steps"]["record/softmax"]["result"]["n_valid"] >= 6
    page = (tmp_path / "on_gpu.md").read_text()
    assert "dry run on a CPU" in page.splitlines()[2]
    again = on_gpu(*arguments)
    assert again.returncode == 0
    assert "…" not in again.stdout, "a step that was done was taken again"
    assert on_gpu("--out", str(tmp_path), "--only", "x").returncode != 0, "a dry run was continued as a real one"


def test_a_step_whose_package_does_not_import_is_left_out_with_the_reason(tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import on_gpu as script
        from on_gpu_timing import require
    finally:
        sys.path.remove(str(SCRIPT.parent))
    bench = script.Bench(tmp_path, script.DRY, 1.0, dry=True)
    bench.take("peer", lambda: require("a_package_that_nobody_has"))
    bench.take("broken", lambda: 1 / 0)
    steps = json.loads((tmp_path / "on_gpu.json").read_text())["steps"]
    assert steps["peer"]["status"] == "skipped"
    assert "a_package_that_nobody_has does not import" in steps["peer"]["reason"]
    assert steps["broken"]["status"] == "failed"
    assert "a_package_that_nobody_has" in (tmp_path / "on_gpu.md").read_text()
