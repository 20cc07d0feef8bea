"""Several GPUs, whose places this machine's CPU takes: one worker each, and one for the finals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cpu_evaluator import FACTS, CpuEvaluator, FakeCompiler

from evotune import subject
from evotune.errors import DeviceError
from evotune.gpu import cuda_compiler
from evotune.gpu import evaluator as module
from evotune.gpu.detect import Gpu
from evotune.gpu.target import load_target
from evotune.journal import Journal
from evotune.kernel import load_kernel
from evotune.session import tune
from evotune.settings import load
from evotune.trial import Fidelity, Trial
from evotune.tuner import Result

pytestmark = pytest.mark.torch

HERE = Path(__file__).parent
GPUS = [Gpu(i, f"GPU-{i}", "NVIDIA H100 80GB HBM3", 90, 80 << 30, 132) for i in range(2)]
LOW, FINAL = Fidelity(1, "low", 4), Fidelity(4, "ultra", 8)
RECIPE = """
backend: cuda
arch: sm_90a
multiprocessors: 132
ladder: [{fidelity: low}, {fidelity: high, limit_s: 0.1}]
finals: {fidelity: ultra, limit_s: 0.1}
"""


@pytest.fixture(autouse=True)
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subject, "detect", lambda: GPUS)
    monkeypatch.setattr(cuda_compiler, "CrossCompiler", FakeCompiler)
    monkeypatch.setattr(cuda_compiler, "compiler_versions", dict)
    monkeypatch.setattr(module, "CudaEvaluator", CpuEvaluator)


@pytest.fixture
def make() -> Iterator[Callable[..., CpuEvaluator]]:
    made: list[CpuEvaluator] = []

    def make_one(kernel: str) -> CpuEvaluator:
        loaded = load_kernel(HERE / kernel)
        options: dict[str, Any] = {"target": load_target("h100"), "fidelities": [LOW], "run_timeout_s": 3.0}
        made.append(CpuEvaluator(loaded, loaded.problem(None, "cuda"), gpus=GPUS, **options))
        return made[-1]

    yield make_one
    for evaluator in made:
        evaluator.close()


class Quiet:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_trial(self, trial: Trial, tuner: Any, *, is_best: bool) -> None:
        pass

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def run(
    folder: Path, evaluations: int, gpus: int | str, observer: Quiet | None = None, provider: str = "none"
) -> Result:
    recipe = folder / "mine.yaml"
    recipe.write_text(RECIPE)
    flags = {
        "run.target": str(recipe),
        "run.gpus": gpus,
        "run.max_evaluations": evaluations,
        "run.journal": str(folder / "journal.db"),
        "llm.provider": provider,
    }
    return tune(str(HERE / "torch_naps.py"), load(None, flags, {}), observer=observer or Quiet())


def contexts(folder: Path, run_id: str) -> list[tuple[int, str]]:
    with Journal(folder / "journal.db") as journal:
        rows = journal.read("SELECT rank, context FROM measurement WHERE run=?", run_id)
    return [(rank, json.loads(context)["gpu"]) for rank, context in rows]


def test_two_gpus_share_the_trials_and_the_finals_are_on_one(tmp_path: Path) -> None:
    observer = Quiet()
    result = run(tmp_path, 10, "all", observer)
    assert result.evaluations == 10
    assert not result.failures
    assert "2 NVIDIA H100 80GB HBM3 (GPU 0, 1) are here" in observer.notes[0]
    assert result.best
    assert result.best["config"] == {"NAP_US": 132, "EVEN": False}
    searched, finals = set[str](), set[str]()
    for rank, gpu in contexts(tmp_path, result.run_id):
        (finals if rank == FINAL.rank else searched).add(gpu)
    assert searched == {"GPU-0", "GPU-1"}
    assert finals == {"GPU-0"}


def test_what_compiling_told_is_recorded_for_every_trial_and_shown_to_a_model(tmp_path: Path) -> None:
    class Answering(Quiet):
        """Answers what was asked whenever a trial ends, so that more is asked."""

        def on_trial(self, trial: Trial, tuner: Any, *, is_best: bool) -> None:
            for prompt in (tmp_path / "mail").glob("*.prompt.md"):
                answer = prompt.with_name(prompt.name.replace(".prompt.", ".answer."))
                answer.write_text(json.dumps([{"NAP_US": 132, "EVEN": True}]))
            time.sleep(0.3)

    result = run(tmp_path, 8, 1, Answering(), provider=f"human:{tmp_path / 'mail'}")
    with Journal(tmp_path / "journal.db") as journal:
        rows = journal.read("SELECT compile_s, facts FROM trial WHERE run=?", result.run_id)
    assert len(rows) == 8
    for compile_s, facts in rows:
        assert compile_s == 1.5
        assert json.loads(facts) == {**FACTS, "occupancy": 0.5, "blocks_per_sm": 8, "limited_by": "registers"}
    asked = [path.read_text() for path in (tmp_path / "mail").glob("*.prompt.md")]
    assert any("occupancy = 0.5, blocks_per_sm = 8, limited_by = registers" in text for text in asked)
    assert all("shared_bytes_per_block = 232448" in text and "capability = 90" in text for text in asked)


def test_a_run_goes_on_with_another_number_of_gpus(tmp_path: Path) -> None:
    first, second = run(tmp_path, 4, 1), run(tmp_path, 8, 2)
    assert first.run_id == second.run_id
    assert (first.evaluations, second.evaluations) == (4, 8)
    with Journal(tmp_path / "journal.db") as journal:
        configs = journal.read("SELECT config FROM trial WHERE run=?", first.run_id)
    assert len({c for (c,) in configs}) == 8  # none was measured again
    assert run(tmp_path, 8, 1).speedup == second.speedup  # and what is known is not measured again


def test_each_gpu_has_a_process_of_its_own_that_sees_no_other(make: Callable[..., CpuEvaluator]) -> None:
    evaluator = make("torch_naps.py")
    config = {"NAP_US": 332, "EVEN": False}
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: evaluator.measure(config, LOW), range(4)))
    assert {m.context["gpu"] for m in found} == {"GPU-0", "GPU-1"}
    seen = [w._environment["CUDA_VISIBLE_DEVICES"] for w in evaluator._supervisor._workers]
    assert seen == ["GPU-0", "GPU-1"]
    together = evaluator.interleave([config, {**config, "EVEN": True}], FINAL)
    assert [m.context["gpu"] for m in together] == ["GPU-0", "GPU-0"]
    assert len(together[0].samples_ms) == len(together[1].samples_ms) == 8


def test_what_killed_one_gpus_process_twice_is_not_run_on_another(make: Callable[..., CpuEvaluator]) -> None:
    evaluator = make("torch_saxpy.py")
    workers = evaluator._supervisor._workers
    assert evaluator.measure({"variant": "exit"}, LOW).failed_stage == "crash"
    starts = [w.starts for w in workers]
    assert "quarantined" in str(evaluator.measure({"variant": "exit"}, LOW).reason)
    assert [w.starts for w in workers] == starts


def test_a_gpu_that_does_not_start_ends_the_run_and_leaves_no_process(
    make: Callable[..., CpuEvaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_FAULT", "no_gpu")
    with pytest.raises(DeviceError, match=r"cannot be measured on NVIDIA H100.*no device"):
        make("torch_naps.py")
