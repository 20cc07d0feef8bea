"""One machine needs no Ray, and nobody gets it who did not ask for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evotune import subject
from evotune.errors import UsageError
from evotune.gpu.detect import Gpu
from evotune.session import record_space
from evotune.settings import load
from evotune.shapes import find_shapes
from evotune.subject import find_subject

ROOT = Path(__file__).parents[2]
RUN = "import sys; {before}; from evotune.cli import main; sys.argv[1:] = sys.argv[2:]; main()"


def evotune(before: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", RUN.format(before=before), "", *arguments]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_a_run_on_this_machine_imports_no_ray(tmp_path: Path) -> None:
    tell = "import atexit; atexit.register(lambda: print('ray' in sys.modules, file=sys.stderr))"
    done = evotune(
        tell, "run", "recordings/gemm_3090", "--max-evaluations", "3", "--search", "random", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"


def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path) -> None:
    done = evotune("sys.modules['ray'] = None", "run", "vector_add", "--engine", "ray", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'evotune[ray]'" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ray-address", "auto"], "--engine ray"),
        (["--engine", "ray", "--dry-run"], "--dry-run asks no cluster"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(flags: list[str], says: str, tmp_path: Path) -> None:
    done = evotune("pass", "run", "vector_add", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr


def test_what_is_made_on_one_machine_refuses_a_cluster(tmp_path: Path) -> None:
    settings = load(None, {"run.engine": "ray"}, {})
    options = {"samples": None, "passes": 1, "on_note": print, "on_progress": print}
    with pytest.raises(UsageError, match="a recording is made on one machine"):
        record_space("vector_add", settings, tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--engine ray is for one shape"):
        find_shapes("matmul", load(None, {"run.engine": "ray", "run.shapes": "small,default"}, {}))


def test_a_kernel_is_tuned_for_gpus_that_are_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "detect", list)
    gpu = Gpu(0, "GPU-0", "NVIDIA H100 80GB HBM3", 90, 80 << 30, 132)
    found = find_subject(
        "vector_add", load(None, {"run.target": "h100", "run.gpus": "all"}, {}), gpus=lambda: [gpu] * 3
    )
    assert (found.target, found.devices) == ("h100", 3)
    assert found.story.problem["multiprocessors"] == 132
