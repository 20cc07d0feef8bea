"""Runs for several models of GPUs at once. No GPU is here: the runs are of the CPU, or of a GPU that is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from evotune import content, per_model
from evotune.cli.app import gravest
from evotune.errors import DeviceError, UsageError
from evotune.gpu.detect import Gpu
from evotune.per_model import Ended, find_models, tune_each
from evotune.settings import Settings, load
from tests.test_cli import evotune, needs_compiler

H100, B200 = "NVIDIA H100 80GB HBM3", "NVIDIA B200"
SMI = f"""#!/bin/sh
echo "0, GPU-a, {H100}, 9.0, 81559, 580.1"
echo "1, GPU-b, {B200}, 10.0, 183359, 580.1"
"""


def settings(tmp_path: Path, **run: Any) -> Settings:
    flags = {"run.journal": str(tmp_path / "journal.db"), "llm.provider": "none", "run.shape": "small"}
    return load(None, {**flags, **{f"run.{name}": value for name, value in run.items()}}, {})


def some(*names: str) -> Callable[[Settings], Sequence[Gpu]]:
    return lambda settings: [Gpu(i, f"GPU-{i}", name) for i, name in enumerate(names)]


def test_each_model_is_found_once(tmp_path: Path) -> None:
    assert find_models(settings(tmp_path), some(H100, B200, H100)) == [H100, B200]
    with pytest.raises(DeviceError, match="finds no GPU"):
        find_models(settings(tmp_path), some())


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"target": "cpu"}, "--target cpu is no GPU's"),
        ({"gpu_model": "H100"}, "--gpu-model H100 chooses one"),
        ({"engine": "ray"}, "give --ray-address"),
        ({"shapes": "small,default", "shape": None}, "--shapes runs on one GPU"),
    ],
)
def test_what_leaves_no_choice_is_refused(tmp_path: Path, run: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_models(settings(tmp_path, **run), some(H100))


@pytest.fixture
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs take the CPU instead of the model that they were started for. As that is the same for all, they must
    be told to be different runs."""
    chosen = "lambda wanted, kernel, count, gpus, model: s.Chosen('cpu', f'in place of {model}')"
    boot = f"import evotune.subject as s; s.choose_target = {chosen}; "
    monkeypatch.setattr(per_model, "_BOOT", per_model._BOOT.replace("runpy.run", f"{boot}runpy.run"))


@needs_compiler
@pytest.mark.usefixtures("_on_the_cpu")
def test_each_model_has_a_run_and_an_incumbent_of_its_own(tmp_path: Path) -> None:
    heard: list[tuple[str, Mapping[str, Any]]] = []
    chosen = settings(tmp_path, max_evaluations=4, seed=3)
    ended = tune_each("vector_add", chosen, [H100, B200], lambda *told: heard.append(told), ["--fresh"])
    assert [(e.gpu, e.exit_code, e.why) for e in ended] == [(H100, 0, None), (B200, 0, None)]
    results = [e.result for e in ended if e.result]
    assert len({r["run_id"] for r in results}) == 2
    assert all(r["best"] and r["evaluations"] == 4 for r in results)
    for gpu in (H100, B200):
        mine = [event for name, event in heard if name == gpu]
        assert len([e for e in mine if e["event"] == "trial"]) == 4
        assert f"target cpu: in place of {gpu}" in [e.get("text") for e in mine]


@needs_compiler
@pytest.mark.usefixtures("_on_the_cpu")
def test_ctrl_c_lets_each_run_report_what_it_has_found(tmp_path: Path) -> None:
    counted = {H100: 0, B200: 0}

    def interrupt(gpu: str, event: Mapping[str, Any]) -> None:
        counted[gpu] += event["event"] == "trial"
        if event["event"] == "trial" and min(counted.values()) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    chosen = settings(tmp_path, max_evaluations=100_000, search="random", shape="default")
    ended = tune_each("vector_add", chosen, [H100, B200], interrupt, ["--fresh"])
    assert [e.exit_code for e in ended] == [130, 130]
    assert all(e.result and e.result["stopped"] == "interrupted" and e.result["best"] for e in ended)


def test_a_run_ends_with_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from evotune import per_model, settings\n"
        "boot, last = per_model._BOOT.rsplit(';', 1)\n"
        "per_model._BOOT = boot + '; import os, time; print(os.getpid(), file=sys.stderr); time.sleep(60)'\n"
        "child = per_model._Child('x', settings.load(None, {}, {}), 'H100', Path(sys.argv[1]), [])\n"
        "print(child._process.stderr.readline(), flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "child")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline_s = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_the_command_says_why_each_run_did_not_come_to_a_result(tmp_path: Path, monkeypatch: Any) -> None:
    """With a driver's tool that tells of two GPUs, and no torch or device that could use them."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = evotune("run", "vector_add", "--per-model", "--target", "h100", "--json", cwd=tmp_path, PATH=path)
    told = json.loads(done.stdout)["gpus"]
    assert [one["gpu"] for one in told] == [H100, B200]
    assert all(one["result"] is None and one["exit_code"] in (2, 3) for one in told)
    assert "target h100 was asked for and NVIDIA B200 is here" in told[1]["why"]
    assert done.returncode == max(one["exit_code"] for one in told)
    plain = evotune("run", "vector_add", "--per-model", "--target", "h100", cwd=tmp_path, PATH=path)
    assert f"{B200}: target h100 was asked for and NVIDIA B200 is here" in " ".join(plain.stdout.split())


@needs_compiler
@pytest.mark.usefixtures("_on_the_cpu")
def test_what_a_kernel_prints_is_no_event_and_no_result(tmp_path: Path) -> None:
    kernel = tmp_path / "noisy.py"
    shipped = content.find("vector_add", content.KERNELS).read_text()
    noise = "import os, sys\nos.system('echo COMPILER 12')\nprint(128, file=sys.stderr)\nname = "
    kernel.write_text(shipped.replace("\nname = ", f"\n{noise}", 1))
    (ended,) = tune_each(str(kernel), settings(tmp_path, max_evaluations=2), [H100], lambda *told: None)
    assert ended.result
    assert ended.result["best"]


def test_the_gravest_exit_code_is_that_of_all() -> None:
    assert gravest([0, 1, 0]) == 1
    assert gravest([2, 3, 1]) == 3
    assert gravest([130, -9]) == 130
    assert gravest([0, -9]) == 3


def test_an_end_says_what_a_script_needs() -> None:
    assert Ended(H100, 3, None, "no driver").to_json() == {
        "gpu": H100,
        "exit_code": 3,
        "why": "no driver",
        "result": None,
    }
