"""Where a run has to work: in threads, event loops and children, without rights, home or shared memory."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from evotune.session import tune
from evotune.settings import Settings
from tests.reliability.killing import ROOT, open_to_all
from tests.test_tuner import Listener

pytestmark = pytest.mark.slow
REPLAY = "recordings/pnpoly_3090"
NOBODY = 65534
NO_SHARED_MEMORY = 'mount -t tmpfs -o ro none /dev/shm && ! touch /dev/shm/x 2>/dev/null && exec "$@"'


def evaluations(folder: Path) -> int:
    """Those of a small run with all parts: islands, surrogate, the mock model and the jail for its programs."""
    settings = Settings.model_validate(
        {"run": {"max_evaluations": 24, "journal": str(folder / "j.db")}, "llm": {"provider": "mock"}}
    )
    return tune(REPLAY, settings, observer=Listener()).evaluations


def test_a_run_works_in_a_thread(tmp_path: Path) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(evaluations(tmp_path)))
    thread.start()
    thread.join(120)
    assert found == [24]


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_run_works_inside_an_event_loop(tmp_path: Path, in_thread: bool) -> None:
    async def both() -> int:
        return await asyncio.to_thread(evaluations, tmp_path) if in_thread else evaluations(tmp_path)

    assert asyncio.run(both()) == 24


def _report(folder: Path, queue: multiprocessing.SimpleQueue[int]) -> None:
    queue.put(evaluations(folder))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_run_works_in_a_child_process(tmp_path: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=_report, args=(tmp_path, queue))
    child.start()
    try:
        child.join(120)
        assert child.exitcode == 0
        assert queue.get() == 24
    finally:
        child.kill()
        child.join()


def run_kernel(folder: Path, before: list[str], python: str = sys.executable, **environment: str) -> None:
    """Compile, measure and record a kernel in a process of its own, with programs behind all walls."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVOTUNE_", "OPENAI_", "ANTHROPIC_", "COV_"))}
    command = [*before, python, "-m", "evotune", "run", "kernels/vector_add.py", "--target", "cpu"]
    command += ["--max-evaluations", "5", "--provider", "mock", "--journal", str(folder / "j.db"), "--json"]
    few = {"EVOTUNE_MEASURE_ULTRA_REPS": "30"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**kept, **few, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evaluations"] == 5
    assert "fewer walls" not in done.stderr


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")


@needs_compiler
def test_a_home_that_cannot_be_written_is_not_missed(tmp_path: Path) -> None:
    run_kernel(tmp_path, [], HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere", XDG_CONFIG_HOME="/proc/nowhere")


@needs_compiler
@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="only root may mount")
def test_shared_memory_is_not_missed(tmp_path: Path) -> None:
    before = ["unshare", "-m", "sh", "-c", NO_SHARED_MEMORY, "sh"]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    run_kernel(tmp_path, before)


@needs_compiler
@pytest.mark.skipif(
    shutil.which("setpriv") is None or os.getuid() != 0, reason="this is not root: all tests show it"
)
def test_a_user_without_rights_can_tune(tmp_path: Path) -> None:
    # Rights are lost when a program is started: the first one after setpriv is found with those of root.
    before = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--no-new-privs", "env"]
    # The interpreter of a virtual environment may lie in root's home; any of this version will do.
    version = f"python3.{sys.version_info.minor}"
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p.endswith("-packages"))])
    os.chown(tmp_path, NOBODY, NOBODY)
    open_to_all(tmp_path)
    for python in filter(None, (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin"))):
        trial = [*before, python, "-c", "import numpy, pydantic_core, evotune"]
        variables = {"PYTHONPATH": path, "HOME": "/nonexistent"}
        if subprocess.run(trial, env=variables, cwd=ROOT, capture_output=True, check=False).returncode == 0:
            run_kernel(tmp_path, before, python, **variables)
            return
    pytest.skip("no interpreter that another user may start")
