import math
from pathlib import Path

import pytest

from evotune.baselines import BASELINES
from evotune.engine import InlineEngine, LocalEngine
from evotune.errors import DeviceError
from evotune.journal import Journal
from evotune.trial import Candidate, Measurement, Trial
from evotune.tuner import Budget, Finals, Result, Tuner, feedback_of
from tests.toy import LADDER, SPACE, ULTRA, ToyEvaluator, latency_ms

BEST = {"tile": 64, "unroll": 4, "layout": "nt", "stages": 2}


class Listener:
    def __init__(self):
        self.trials, self.bests, self.notes = [], [], []

    def on_trial(self, trial, tuner, *, is_best):
        self.trials.append(trial)
        if is_best:
            self.bests.append(trial.latency_ms)

    def on_note(self, text):
        self.notes.append(text)


def run(
    path: Path, n: int, evaluator=None, *, threads=False, listener=None, fresh=False, seconds=math.inf
) -> Result:
    evaluator = evaluator or ToyEvaluator()
    with Journal(path) as journal:
        tuner = Tuner(
            BASELINES["random"](SPACE, 0),
            LocalEngine(evaluator, 2) if threads else InlineEngine(evaluator),
            evaluator,
            journal.open_run("toy", "hash", {"seed": 0}, fresh=fresh),
            budget=Budget(n, seconds),
            finals=Finals(3, ULTRA),
            names={"kernel": "toy", "target": "toy"},
            llm=lambda: {"provider": "none", "calls": 0},
            observers=[listener] if listener else [],
        )
        return tuner.tune()


@pytest.mark.parametrize("threads", [False, True])
def test_the_whole_budget_is_spent_and_the_best_of_it_is_reported(tmp_path, threads):
    listener = Listener()
    result = run(tmp_path / "j.db", 40, threads=threads, listener=listener)
    assert result.evaluations == len(listener.trials) == 40
    assert result.stopped == "evaluations"
    measured = {SPACE.key(t.config): latency_ms(t.config) for t in listener.trials}
    assert len(measured) == 40
    assert result.best["latency_ms"] == pytest.approx(1.01 * min(measured.values()))
    assert result.speedup == pytest.approx(result.default["latency_ms"] / result.best["latency_ms"])
    assert listener.bests == sorted(listener.bests, reverse=True)
    assert sum(result.proposals.values()) == 40
    assert result.proposals["default"] == 1


def test_a_space_that_is_exhausted_ends_the_run_with_its_optimum(tmp_path):
    result = run(tmp_path / "j.db", 10_000)
    assert result.stopped == "exhausted"
    assert result.evaluations == SPACE.cardinality
    assert result.best["config"] == BEST


def test_a_failed_trial_is_counted_and_is_never_the_incumbent(tmp_path):
    evaluator = ToyEvaluator(fails=lambda c: c["layout"] == "nt")
    result = run(tmp_path / "j.db", 10_000, evaluator)
    assert result.best["config"] == {**BEST, "layout": "nn"}
    assert result.failures == {"compile": SPACE.cardinality // 2}
    assert result.reasons == (("compile: too many registers", SPACE.cardinality // 2),)


def test_a_run_in_which_everything_fails_has_no_best_and_no_speedup(tmp_path):
    result = run(tmp_path / "j.db", 10, ToyEvaluator(fails=lambda c: True))
    assert result.best is None
    assert result.speedup is None
    assert result.default["latency_ms"] is None
    assert result.failures == {"compile": 10}


def test_the_same_command_again_measures_nothing_and_says_the_same(tmp_path):
    first = run(tmp_path / "j.db", 20)
    evaluator = ToyEvaluator()
    assert run(tmp_path / "j.db", 20, evaluator).to_json() == first.to_json()
    assert not evaluator.calls


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(tmp_path):
    straight = Listener()
    run(tmp_path / "straight.db", 30, listener=straight)
    run(tmp_path / "j.db", 12)
    listener = Listener()
    result = run(tmp_path / "j.db", 30, listener=listener)
    assert result.evaluations == 30
    assert len(listener.trials) == 18
    assert [t.config for t in listener.trials] == [t.config for t in straight.trials[12:]]
    assert "12 evaluations" in listener.notes[0]


def test_fresh_starts_anew(tmp_path):
    first = run(tmp_path / "j.db", 10)
    again = run(tmp_path / "j.db", 10, fresh=True)
    assert again.run_id != first.run_id


def test_an_interrupted_run_reports_what_it_found_and_resumes(tmp_path):
    evaluator = ToyEvaluator()
    evaluator.raised_on = 8
    stopped = run(tmp_path / "j.db", 20, evaluator)
    assert stopped.stopped == "interrupted"
    assert stopped.evaluations == 7
    assert stopped.best is not None
    resumed = run(tmp_path / "j.db", 20)
    assert resumed.run_id == stopped.run_id
    assert resumed.evaluations == 20


def test_trials_that_were_in_flight_are_evaluated_before_new_ones_and_within_the_budget(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run_of = journal.open_run("toy", "hash", {"seed": 0})
        cut_off = [Trial(n, Candidate(SPACE.config(n), "", "random")) for n in range(3)]
        for trial in cut_off:
            run_of.begin(trial)
        run_of.withdraw([0, 1, 2])
        run_of.release()
    listener = Listener()
    assert run(tmp_path / "j.db", 5, listener=listener).evaluations == 5
    assert [t.number for t in listener.trials] == [0, 1, 2, 3, 4]
    assert [t.config for t in listener.trials[:3]] == [t.config for t in cut_off]


def test_a_device_fault_stops_the_run_and_loses_nothing(tmp_path):
    with pytest.raises(DeviceError):
        run(tmp_path / "j.db", 20, ToyEvaluator(breaks_after=6))
    listener = Listener()
    assert run(tmp_path / "j.db", 20, listener=listener).evaluations == 20
    assert len(listener.trials) == 14


def test_a_configuration_during_which_the_tuner_died_twice_is_left_out(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run_of = journal.open_run("toy", "hash", {"seed": 0})
        killer = Trial(0, Candidate(SPACE.default, "", "default"))
        run_of.begin(killer)
        run_of.begin(killer)
        run_of.release()
    evaluator = ToyEvaluator()
    result = run(tmp_path / "j.db", 5, evaluator)
    assert result.failures == {"crash": 1}
    assert evaluator.calls["compile"] == 4


def test_time_ends_a_run_too(tmp_path):
    result = run(tmp_path / "j.db", 10_000, ToyEvaluator(delay_s=0.02), seconds=0.2)
    assert result.stopped == "seconds"
    assert 0 < result.evaluations < SPACE.cardinality


def test_the_search_learns_log_latency_and_never_a_number_for_a_failure():
    candidate = Candidate(SPACE.default, "", "random")
    good = Trial(0, candidate, (Measurement(LADDER[0], "measured", (2.0, 2.0, 2.2)),))
    bad = Trial(1, candidate, (Measurement(LADDER[0], "measured", failed_stage="run", reason="hang"),))
    assert feedback_of(good).loss == pytest.approx(math.log(2.0))
    assert feedback_of(good).fidelity_rank == 1
    assert feedback_of(good).variance > 0
    assert feedback_of(bad).loss is None
    assert feedback_of(bad).failure == "run: hang"
