"""What a dry run says is what the run then does, and saying it does nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evotune import asking, cpu
from evotune import plan as module
from evotune.errors import DeviceError, UsageError
from evotune.journal import Journal
from evotune.plan import plan, plan_shapes
from evotune.session import tune
from evotune.settings import Settings, load
from evotune.shapes import describe, find_shapes, known_as
from evotune.terminal import Output, print_plan
from evotune.tuner import Result

KEY = {"OPENAI_API_KEY": "planted-1b2c3d"}


class Silent:
    def on_trial(self, trial: object, tuner: object, *, is_best: bool) -> None: ...

    def on_note(self, text: str) -> None: ...


def settings(folder: Path, **flags: object) -> Settings:
    given = {key.replace("__", "."): value for key, value in flags.items()}
    fixed = {"run.journal": str(folder / "j.db"), "run.max_evaluations": 12, "run.search": "random"}
    return load(None, {**fixed, **given}, {})


def replayed(folder: Path, **flags: object) -> Result:
    return tune("recordings/attention_cpu", settings(folder, **flags), observer=Silent())


@pytest.fixture(autouse=True)
def _nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever compiles, or asks a model on a network, fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run does nothing")

    monkeypatch.setattr(cpu, "CpuEvaluator", refuse)
    monkeypatch.setattr(asking, "preflight", refuse)


def test_a_dry_run_leaves_nothing_behind(tmp_path: Path) -> None:
    found = plan("kernels/attention.py", settings(tmp_path, run__target="cpu"), {})
    assert list(tmp_path.iterdir()) == []
    assert (found.kernel, found.target, found.evaluations_left) == ("attention", "cpu", 12)
    assert [f["name"] for f in found.fidelities] == ["low", "medium", "high"]
    assert found.resumes is None
    assert found.seconds is None
    json.dumps(found.to_json(), allow_nan=False)


def test_it_names_the_run_that_is_resumed_and_what_is_left_of_it(tmp_path: Path) -> None:
    assert plan("recordings/attention_cpu", settings(tmp_path), {}).resumes is None
    first = replayed(tmp_path, run__max_evaluations=5)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    found = plan("recordings/attention_cpu", settings(tmp_path), {})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert found.resumes is not None
    assert (found.resumes.run_id, found.resumes.evaluations, found.evaluations_left) == (first.run_id, 5, 7)
    assert replayed(tmp_path).run_id == first.run_id
    assert plan("recordings/attention_cpu", settings(tmp_path), {}).evaluations_left == 0
    assert plan("recordings/attention_cpu", settings(tmp_path), {}, fresh=True).resumes is None
    assert plan("recordings/attention_cpu", settings(tmp_path, run__seed=1), {}).resumes is None
    assert plan("recordings/attention_cpu", settings(tmp_path, measure__finalists=2), {}).resumes is None


@pytest.mark.slow
def test_a_dry_run_of_the_command_prints_one_object_and_has_the_exit_codes_of_the_run(tmp_path: Path) -> None:
    def evotune(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "evotune", "run", *arguments, "--dry-run", "--json"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = evotune("recordings/attention_cpu", "--no-progress", "9")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["dry_run"] is True
    assert found["budget"]["no_progress"] == 9
    assert list(tmp_path.iterdir()) == []
    assert evotune("recordings/attention_cpu", "--roofline-share", "0.5").returncode == 2
    assert evotune("kernels/matmul.py", "--target", "h100").returncode == 3


@pytest.mark.slow
def test_a_warm_start_is_part_of_which_run_is_resumed(tmp_path: Path) -> None:
    quick = {"run__search": "evotune", "llm__provider": "none"}
    flags = {**quick, "run__warm_start": str(tmp_path / "j.db")}
    cold = replayed(tmp_path, **quick, run__seed=9)
    warm = replayed(tmp_path, **flags)
    found = plan("recordings/attention_cpu", settings(tmp_path, **flags), {})
    assert found.resumes is not None
    assert found.resumes.run_id == warm.run_id != cold.run_id
    assert plan("recordings/attention_cpu", settings(tmp_path, **quick), {}).resumes is None


def test_time_comes_from_the_pace_of_the_run_or_a_limit_and_from_nothing_else(tmp_path: Path) -> None:
    replayed(tmp_path, run__max_evaluations=5)
    found = plan("recordings/attention_cpu", settings(tmp_path, run__max_evaluations=25), {})
    assert found.resumes is not None
    assert found.resumes.seconds_per_evaluation is not None
    assert found.seconds == pytest.approx(20 * found.resumes.seconds_per_evaluation)
    limited = plan("recordings/attention_cpu", settings(tmp_path, run__max_seconds=1e-6), {})
    assert limited.seconds == 1e-6
    assert plan("recordings/attention_cpu", settings(tmp_path, run__seed=5), {}).seconds is None


def test_a_run_costs_no_more_than_was_said(tmp_path: Path) -> None:
    flags = {"run__search": "evotune", "run__max_evaluations": 30, "llm__provider": "mock"}
    said = plan("recordings/attention_cpu", settings(tmp_path, **flags), {}).llm
    did = replayed(tmp_path, **flags).llm
    assert 0 < did["calls"] <= said.calls
    assert did["input_tokens"] + did["output_tokens"] <= said.tokens
    assert did["usd"] == said.usd == 0


def test_the_cost_of_a_model_is_bounded_by_its_price_and_by_every_limit(tmp_path: Path) -> None:
    def cost(**flags: object) -> module.Asking:
        asked = {"run__search": "evotune", "llm__provider": "openai", **flags}
        return plan("recordings/attention_cpu", settings(tmp_path, **asked), KEY).llm

    free = cost()
    assert free.questions == 24
    assert free.calls == 241
    # gpt-4o-mini at $0.15 and $0.60 a million, the longest answer of 8192 tokens each time
    assert free.usd == pytest.approx(((free.tokens - 241 * 8192) * 0.15 + 241 * 8192 * 0.60) / 1e6)
    assert cost(llm__max_calls=10).calls == 10
    assert cost(llm__max_calls=10).questions == 10
    assert cost(llm__max_tokens=5000).tokens == 5000
    assert cost(llm__max_usd=0.01).usd == 0.01
    assert cost(llm__model="nobody-knows").usd is None
    assert cost(run__search="random").calls == 0
    assert cost(llm__provider="none").calls == 0


@pytest.mark.parametrize(("shape", "n"), [("small", 4096), (None, 131072)])
def test_the_problem_is_told_to_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str | None, n: int
) -> None:
    found = plan("kernels/vector_add.py", settings(tmp_path, run__target="cpu", run__shape=shape), {})
    (space,) = found.to_json()["spaces"]
    assert (space["shape"], space["problem"]) == (shape, {"n": n, "dtype": "float32"})
    print_plan(found, Output())
    assert f"problem      n={n} dtype=float32\n" in capsys.readouterr().out


def test_several_shapes_are_planned_together(tmp_path: Path) -> None:
    chosen = settings(tmp_path, run__search="evotune", run__shapes="small,default", run__target="cpu")
    subjects = find_shapes("kernels/attention.py", chosen)
    found = plan_shapes(subjects, known_as(subjects), describe(subjects, chosen), chosen, {})
    assert [space.shape for space in found.spaces] == ["small", "default"]
    assert found.spaces[0].problem["seq"] < found.spaces[1].problem["seq"]
    assert found.resumes is None
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "flags", "error", "words"),
    [
        ("kernels/atention.py", {}, UsageError, "did you mean"),
        ("kernels/matmul.py", {"run__target": "h100"}, DeviceError, "evotune check"),
        ("kernels/matmul.py", {"run__shape": "smal", "run__target": "cpu"}, UsageError, "'small'"),
        (
            "recordings/conv_A100",
            {"run__search": "evotune", "llm__provider": "openai"},
            UsageError,
            "OPENAI_API_KEY",
        ),
        ("recordings/conv_A100", {"run__journal": "/proc/nowhere/j.db"}, UsageError, "--journal"),
        ("recordings/conv_A100", {"run__journal": __file__}, UsageError, "journal"),
        (
            "recordings/conv_A100",
            {"run__search": "evotune", "run__warm_start": "conv_A10"},
            UsageError,
            "conv_A100",
        ),
        ("recordings/conv_A100", {"run__roofline_share": 0.5}, UsageError, "--target-latency-ms"),
        ("recordings/conv_A100", {"prompt__folder": "/nowhere"}, UsageError, "no folder /nowhere"),
    ],
)
def test_what_the_run_would_refuse_is_refused(tmp_path: Path, name, flags, error, words) -> None:
    for refusing in (
        lambda: plan(name, settings(tmp_path, **flags), {}),
        lambda: tune(name, settings(tmp_path, **flags), observer=Silent()),
    ):
        with pytest.raises(error) as raised:
            refusing()
        assert words in str(raised.value), raised.value


def test_a_run_that_another_process_works_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = replayed(tmp_path, run__max_evaluations=5).run_id
    with Journal(tmp_path / "j.db") as journal:
        journal.write("UPDATE run SET owner=? WHERE id=?", [("here 4321 99", run_id)])
    monkeypatch.setattr(module, "is_alive", lambda owner: owner == "here 4321 99")
    with pytest.raises(UsageError, match=r"process 4321.*--fresh"):
        plan("recordings/attention_cpu", settings(tmp_path), {})
    assert plan("recordings/attention_cpu", settings(tmp_path), {}, fresh=True).resumes is None
