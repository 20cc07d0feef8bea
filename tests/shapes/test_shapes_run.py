import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from evotune import history
from evotune.errors import Rejected
from evotune.program import Sandbox
from evotune.report.summary import command
from evotune.settings import load
from evotune.shapes import ShapesResult, tune_shapes
from evotune.shapes.synthetic import PROBLEMS, FormulaEvaluator, latency_ms, space, subjects
from evotune.shapes.table import ident, split

pytestmark = pytest.mark.slow

THREE = {name: PROBLEMS[name] for name in ("token", "tiny", "square")}
START = 1 + 8  # programs of the opening


class Listener:
    def __init__(self):
        self.trials, self.notes = [], []

    def on_trial(self, trial, tuner, *, is_best):
        self.trials.append(trial)

    def on_note(self, text):
        self.notes.append(text)


class Flawed(FormulaEvaluator):
    """Rejects or interrupts what it is told to."""

    def __init__(self, problem, seed, rejects=lambda config: False, interrupts=lambda: False):
        super().__init__(problem, seed)
        self._rejects, self._interrupts = rejects, interrupts

    def compile(self, config):
        if self._interrupts():
            raise KeyboardInterrupt
        if self._rejects(config):
            raise Rejected("compile", "too many registers")
        return super().compile(config)


def run(path, n, *, listener=None, provider="none", seed=0, family=None, **more) -> ShapesResult:
    flags = {"run.max_evaluations": n, "run.journal": str(path), "run.seed": seed, "llm.provider": provider, **more}
    family, settings = family or subjects(seed, THREE), load(None, flags, {})
    return tune_shapes("my/kernel.py", family, settings, observer=listener or Listener())


def flawed(**flaws):
    """The family, with flaws at the shape ``tiny``."""
    family = subjects(0, THREE)
    tiny = replace(family["tiny"], open_evaluator=lambda: Flawed(THREE["tiny"], 0, **flaws))
    return {**family, "tiny": tiny}


def executed(text):
    namespace = {}
    exec(text, namespace)
    return namespace["get_kernel_config"]


def score(configs):
    """Geometric mean of optimum / true latency, from the formula itself."""
    logs = []
    for name, config in configs.items():
        legal = space(THREE[name])
        best = min(latency_ms(THREE[name], legal.config(row)) for row in range(0, legal.cardinality))
        logs.append(math.log(best / latency_ms(THREE[name], config)))
    return math.exp(sum(logs) / len(logs))


def test_with_the_mock_a_program_beats_every_single_configuration(tmp_path):
    result = run(tmp_path / "j.db", 90, provider="mock")
    legal = [space(p) for p in THREE.values()]
    tables = [{ident(s.config(r)): latency_ms(p, s.config(r)) for r in range(s.cardinality)}
              for s, p in zip(legal, THREE.values(), strict=True)]  # fmt: skip
    shared = set.intersection(*map(set, tables))
    best_single_ms = min(math.prod(t[c] for t in tables) ** (1 / 3) for c in shared)
    program_ms = math.prod(latency_ms(p, result.best["config"][n]) for n, p in THREE.items()) ** (1 / 3)
    assert program_ms < 0.8 * best_single_ms
    assert score(result.best["config"]) > 0.85
    assert result.llm["calls"] > 0
    assert result.speedup > 1
    assert result.single["speedup_ci95"][0] > 1


def test_the_exported_program_says_what_was_measured_and_is_legal_everywhere(tmp_path):
    result = run(tmp_path / "j.db", 60)
    heuristic = executed(result.program)
    with Sandbox() as sandbox:
        for row in result.shapes:
            legal = space(row["problem"])
            assert heuristic(row["problem"]) == row["config"] == result.best["config"][row["shape"]]
            assert sandbox.run(result.program, legal, row["problem"]) == row["config"]
            assert legal.violations(row["config"]) == []
    square = {"m": 5000, "n": 5000, "k": 5000, "dtype": "float16"}
    assert heuristic(square) == result.best["config"]["square"]


def test_the_result_adds_up_and_survives_the_journal(tmp_path):
    listener = Listener()
    result = run(tmp_path / "j.db", 40, listener=listener)
    assert result.evaluations == len(listener.trials) == 40
    assert json.loads(json.dumps(result.to_json())) == result.to_json()
    speedups = [row["speedup"] for row in result.shapes]
    assert result.speedup == pytest.approx(math.prod(speedups) ** (1 / 3))
    shares = [row["best"]["latency_ms"] / row["latency_ms"] for row in result.shapes]
    assert result.score == pytest.approx(math.prod(shares) ** (1 / 3))
    assert all(share <= 1 for share in shares)
    assert result.single["tried"] >= START - 3
    assert all(low < row["speedup"] < high for row in result.shapes for low, high in [row["speedup_ci95"]])
    again = run(tmp_path / "j.db", 40, listener=listener)
    assert again.to_json() == result.to_json()
    assert len(listener.trials) == 40


def test_each_pair_is_measured_once_and_shapes_get_as_many(tmp_path):
    listener = Listener()
    run(tmp_path / "j.db", 75, listener=listener)
    pairs = [ident(t.config) for t in listener.trials]
    assert len(set(pairs)) == len(pairs)
    counts = [sum(split(t.config)[0] == name for t in listener.trials) for name in THREE]
    assert max(counts) - min(counts) <= 12


@pytest.mark.parametrize("stops", [[0], [13], [28, 29, 41]])
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, stops):
    straight, resumed = Listener(), Listener()
    run(tmp_path / "straight.db", 50, listener=straight)
    for at in [*stops, None]:
        # A fresh process would know no more than this: the journal.
        class Stops(Flawed):
            def compile(self, config, at=at):
                if at is not None and len(resumed.trials) >= at:
                    raise KeyboardInterrupt
                return super().compile(config)

        family = {
            name: replace(s, open_evaluator=lambda problem=s.story.problem, kind=Stops: kind(problem, 0))
            for name, s in subjects(0, THREE).items()
        }
        result = run(tmp_path / "j.db", 50, listener=resumed, family=family)
        assert (result.stopped == "interrupted") == (at is not None)
    assert [t.candidate for t in resumed.trials] == [t.candidate for t in straight.trials]


def test_the_same_seed_gives_the_same_trials_under_another_hash_seed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.shapes.test_shapes_run import Listener, run\n"
        "seen = Listener(); run(Path(sys.argv[1]), 45, listener=seen, provider='mock')\n"
        "print([(t.candidate.origin, sorted(t.config.items())) for t in seen.trials])"
    )
    found = []
    for hash_seed in ("0", "1"):
        command = [sys.executable, "-c", code, str(tmp_path / f"{hash_seed}.db")]
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        found.append(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1]
    assert found[0].count("@shape") == 45


def test_a_configuration_that_fails_at_one_shape_is_not_used_there(tmp_path):
    result = run(tmp_path / "j.db", 60, family=flawed(rejects=lambda config: config["BLOCK_M"] < 64))
    assert result.best["config"]["tiny"]["BLOCK_M"] >= 64
    assert result.best["config"]["token"]["BLOCK_M"] < 64
    assert set(result.failures) == {"compile"}


def test_without_a_valid_configuration_at_one_shape_there_is_no_program(tmp_path):
    result = run(tmp_path / "j.db", 40, family=flawed(rejects=lambda config: True))
    assert result.best is None
    assert result.program is None
    assert result.speedup is None
    assert result.failures["compile"] > 0
    assert [row["latency_ms"] is None for row in result.shapes] == [True] * 3


def test_a_run_of_other_shapes_is_another_run(tmp_path):
    first = run(tmp_path / "j.db", 20)
    two = {name: THREE[name] for name in ("token", "tiny")}
    assert run(tmp_path / "j.db", 20, family=subjects(0, two)).run_id != first.run_id


def test_what_is_fast_for_its_shape_is_measured_carefully_and_what_is_slow_is_not(tmp_path):
    listener = Listener()
    run(tmp_path / "j.db", 60, listener=listener)
    for name in THREE:
        mine = sorted((t for t in listener.trials if split(t.config)[0] == name), key=lambda t: t.latency_ms)
        assert mine[0].best.fidelity.name == "high"
        assert mine[-1].best.fidelity.name == "low"


def test_a_run_is_shown_with_the_command_that_makes_it_again(tmp_path):
    journal = tmp_path / "j.db"
    run(journal, 20)
    again = command(history.load(journal, None), journal)
    assert again.startswith("evotune run my/kernel.py --shapes token,tiny,square ")
    assert "--provider none" in again
    assert "--max-evaluations 20" in again
