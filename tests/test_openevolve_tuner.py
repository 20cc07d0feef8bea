import builtins
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from evotune import ConfigSpace, OpenEvolveTuner, history
from evotune.errors import UsageError
from evotune.journal import Journal
from evotune.score import losses_of

SPACE = {"block_size": [32, 64, 128], "num_warps": [1, 2, 4, 8], "stages": [1, 2, 3, 4]}
SMALL = {"block_size": 64, "num_warps": 4, "stages": 3}
N = 48


def score(config) -> float:
    """Highest, 10.0, at 64, 4, 3."""
    distance = abs(math.log2(config["block_size"] / 64)) + abs(math.log2(config["num_warps"] / 4))
    return 10.0 / (1 + distance + 0.5 * abs(config["stages"] - 3))


def tuner(objective=score, n=30, **changes) -> OpenEvolveTuner:
    return OpenEvolveTuner(SPACE, objective, max_evaluations=n, **{"verbose": False, "provider": "mock", **changes})


def test_the_best_configuration_is_found_and_kept_with_its_history():
    made = tuner()
    assert made.tune() == {"block_size": 64, "num_warps": 4, "stages": 3}
    assert made.best_score == 10.0
    assert made.best_config == {"block_size": 64, "num_warps": 4, "stages": 3}
    assert made.evaluation_count == len(made.history) == 30
    assert all(s == score(c) for c, s in made.history)


def test_the_objective_is_called_in_this_process_and_never_twice_for_one_configuration():
    seen = []
    tuner(lambda c: seen.append((os.getpid(), tuple(c.items()))) or score(c), n=1000).tune()
    assert len(seen) == N
    assert len(set(seen)) == N
    assert {pid for pid, _ in seen} == {os.getpid()}


def test_a_second_tune_evaluates_nothing_more():
    calls = []
    made = tuner(lambda c: calls.append(c) or score(c), n=12)
    assert made.tune() == made.tune()
    assert len(calls) == 12


@pytest.mark.parametrize(
    "bad", [0.0, -math.inf, math.inf, math.nan, None, "fast", True, 10**400, np.ones(3), ValueError("boom")]
)
def test_a_failed_configuration_counts_stands_in_the_history_and_is_never_best(bad):
    def objective(config):
        if config["num_warps"] == 4:
            if isinstance(bad, Exception):
                raise bad
            return bad
        return score(config)

    made = tuner(objective, n=1000)
    assert made.tune()["num_warps"] != 4
    assert made.evaluation_count == N
    assert [s for c, s in made.history if c["num_warps"] == 4] == [None] * 12


def test_negative_scores_are_legitimate():
    made = tuner(lambda c: -1.0 / score(c), n=30)
    assert made.tune() == {"block_size": 64, "num_warps": 4, "stages": 3}
    assert made.best_score == -0.1


def test_scores_of_both_signs_are_searched_too():
    made = tuner(lambda c: score(c) - 5, n=30)
    assert made.tune() == {"block_size": 64, "num_warps": 4, "stages": 3}


def test_numpy_scalars_are_scores():
    made = tuner(lambda c: np.float32(score(c)), n=8)
    made.tune()
    assert isinstance(made.best_score, float)


def test_when_everything_fails_the_commonest_failure_is_named():
    def objective(config):
        raise MemoryError("out of shared memory" if config["stages"] > 1 else "rare")

    with pytest.raises(RuntimeError, match="out of shared memory"):
        tuner(objective, n=20).tune()


@pytest.mark.parametrize(
    ("space", "changes"),
    [
        ({}, {}),
        ({"a": []}, {}),
        ({"a": "abc"}, {}),
        ({"a": 3}, {}),
        (SPACE, {"temperature": 1.5}),
        (SPACE, {"temperature": -0.1}),
        (SPACE, {"max_evaluations": 0}),
        (SPACE, {"population_size": 0}),
        (SPACE, {"max_evaluations": 2.5}),
        (SPACE, {"temperature": "hot"}),
        (SPACE, {"constraints": "stages > 1"}),
        (SPACE, {"provider": "nobody"}),
        (SPACE, {"on_llm_error": "shrug"}),
        (SPACE, {"objective": 3}),
        (SPACE, {"constraints": ["nonsense > 1"]}),
        (SPACE, {"initial_program": "def get_kernel_config():\n    return {}"}),
        (SPACE, {"system_message": "Be fast."}),
    ],
)
def test_wrong_arguments_are_value_errors(space, changes):
    with pytest.raises(ValueError, match=r".") as caught:
        OpenEvolveTuner(space, **{"objective": score, "provider": "mock", **changes})
    assert isinstance(caught.value, UsageError)


def test_a_missing_openevolve_is_an_import_error_with_the_pip_line(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.startswith("openevolve."):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    for name in [n for n in sys.modules if n.startswith("openevolve")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="pip install"):
        tuner()


def test_verbose_prints_one_line_per_evaluation(capsys):
    tuner(lambda c: None if c["stages"] == 2 else score(c), n=10, verbose=True).tune()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[0] == "model mock: as given; it knows nothing about speed"
    assert lines[1].startswith("Evaluation 1/10: config={'block_size': 64, 'num_warps': 2, 'stages': 2}, score=")
    assert "failed" in lines[1]


@pytest.mark.parametrize(("variable", "argument"), [(None, 2), ("2", None), ("5", 2)])
def test_calls_of_a_model_are_limited_by_argument_or_environment(tmp_path, monkeypatch, variable, argument):
    if variable is not None:
        monkeypatch.setenv("EVOTUNE_LLM_MAX_CALLS", variable)
    for n in (24, 32):  # the second call goes on with the same run, whose calls count
        tuner(n=n, journal=tmp_path / "j.db", max_calls=argument).tune()
        assert len(history.load(tmp_path / "j.db").llm_calls) == 2


@pytest.mark.parametrize(("variables", "changes"), [({}, {"max_usd": 0.5}), ({"EVOTUNE_LLM_MAX_USD": "0.5"}, {})])
def test_a_limit_on_money_that_cannot_be_kept_is_refused(monkeypatch, variables, changes):
    for name, value in {"OPENAI_API_KEY": "sk-none", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"0\.5 cannot be kept: the price of 'no such model' is not known"):
        tuner(provider="openai", model="no such model", **changes)


def test_a_variable_may_say_what_auto_is_and_the_commands_own_do_not_hold(monkeypatch, capsys):
    monkeypatch.setenv("EVOTUNE_LLM_PROVIDER", "none")
    monkeypatch.setenv("EVOTUNE_RUN_SEARCH", "random")
    tuner(n=2, provider="auto", verbose=True).tune()
    assert capsys.readouterr().out.startswith("model none: as given")


def test_a_model_that_nobody_named_is_announced_with_a_warning(monkeypatch, caplog):
    made = tuner(n=1, provider="auto")
    paid = replace(made._choice, provider=SimpleNamespace(name="openai"), reason="openai: OPENAI_API_KEY is set")
    monkeypatch.setattr(made, "_choice", paid)
    monkeypatch.setattr(made, "_open_search", lambda *_: pytest.fail("said too late"))
    with pytest.raises(pytest.fail.Exception), caplog.at_level("WARNING"):
        made.tune()
    assert caplog.messages == ["model openai: OPENAI_API_KEY is set"]


def test_a_config_space_with_constraints_is_obeyed():
    space = ConfigSpace.from_dict(SPACE, ["block_size * stages <= 128"])
    made = OpenEvolveTuner(space, score, max_evaluations=100, verbose=False, provider="mock")
    made.tune()
    assert made.evaluation_count == space.cardinality
    assert not any(space.violations(c) for c, _ in made.history)


def test_the_initial_program_is_evaluated_first():
    program = "def get_kernel_config():\n    return {'block_size': 64 * 2, 'num_warps': 8, 'stages': 4}"
    made = tuner(initial_program=program, n=3)
    made.tune()
    assert made.history[0][0] == {"block_size": 128, "num_warps": 8, "stages": 4}


def test_a_journal_carries_scores_and_failures_into_the_next_process(tmp_path):
    calls = []

    def objective(config):
        calls.append(config)
        return score(config) if config["stages"] > 1 else None

    tuner(objective, n=10, journal=tmp_path / "j.db").tune()
    other = tuner(lambda c: -score(c), n=4, journal=tmp_path / "j.db")
    other.tune()
    assert [s for _, s in other.history] == [-score(c) for c, _ in other.history]
    again = tuner(objective, n=16, journal=tmp_path / "j.db")
    again.tune()
    assert len(calls) == 16
    assert again.evaluation_count == 16
    assert [c for c, _ in again.history] == calls


def stopping_at(number):
    """An objective that the user stops at its call of a number, once."""
    calls = []

    def objective(config):
        calls.append(config)
        if len(calls) == number:
            raise KeyboardInterrupt
        return score(config)

    return objective, calls


def test_a_trial_that_was_cut_off_is_run_again_and_keeps_its_number(tmp_path):
    objective, calls = stopping_at(5)
    cut_off = tuner(objective, n=9, journal=tmp_path / "j.db")
    with pytest.raises(KeyboardInterrupt):
        cut_off.tune()
    # Not what the search would propose again: that depends on more than what is recorded.
    other = {"block_size": 128, "num_warps": 1, "stages": 1}
    with Journal(tmp_path / "j.db") as journal:
        journal.write("UPDATE trial SET config=? WHERE done_order IS NULL", [(json.dumps(other),)])
    resumed = tuner(objective, n=9, journal=tmp_path / "j.db")
    resumed.tune()
    assert calls[5] == other
    assert resumed.history[:4] == cut_off.history
    assert resumed.evaluation_count == 9
    run = history.load(tmp_path / "j.db")
    assert [t.number for t in run.trials] == list(range(9))
    assert [(t.config, t.facts["score"]) for t in run.trials] == [(c, score(c)) for c, _ in resumed.history]
    assert run.in_flight == ()


def test_what_the_process_died_of_twice_is_not_tried_a_third_time(tmp_path):
    objective, calls = stopping_at(3)
    with pytest.raises(KeyboardInterrupt):
        tuner(objective, n=6, journal=tmp_path / "j.db").tune()
    with Journal(tmp_path / "j.db") as journal:
        (run_id,) = journal.runs()
        journal.write("INSERT INTO attempt VALUES (?, 2, 1, 1.0)", [(run_id,)] * 2)
    resumed = tuner(objective, n=6, journal=tmp_path / "j.db")
    resumed.tune()
    assert calls.count(calls[2]) == 1
    assert (calls[2], None) in resumed.history
    failed = next(t.failure for t in history.load(tmp_path / "j.db").trials if t.failure)
    assert failed.reason == "the process died 2 times while this was evaluated"


@pytest.mark.parametrize("is_kept", [True, False])
def test_tuning_again_learns_nothing_twice(tmp_path, is_kept):
    space = {"a": [1, 2, 3, 4]}
    journal = tmp_path / "j.db" if is_kept else None
    objective, calls = stopping_at(2)
    made = OpenEvolveTuner(
        space, lambda c: objective({**c, **SMALL}), 50, verbose=False, provider="none", journal=journal
    )
    with pytest.raises(KeyboardInterrupt):
        made.tune()
    for _ in range(3):
        made.tune()
        assert sorted(c["a"] for c, _ in made.history) == [1, 2, 3, 4]
        assert made.evaluation_count == 4
    assert len(calls) == 5


def trace(seed: int) -> str:
    made = tuner(n=25, seed=seed)
    made.tune()
    return repr(made.history)


def test_the_same_seed_gives_the_same_evaluations_under_another_hash_seed():
    code = "from tests.test_openevolve_tuner import trace; print(trace(3))"
    found = {trace(3)}
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout.rstrip("\n"))
    assert len(found) == 1
    assert trace(4) not in found


def test_losses_are_logarithms_while_all_scores_are_positive_and_order_alike_otherwise():
    assert losses_of([1.0, math.e]) == [0.0, -1.0]
    scores = [3.0, -1.0, 7.0, -1.0, 0.5]
    losses = losses_of(scores)
    assert sorted(range(5), key=lambda i: -scores[i]) == sorted(range(5), key=lambda i: losses[i])
    assert losses[1] == losses[3]
    assert abs(sum(losses)) < 0.5
