import math
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from evotune import MultiFidelityBayesianSearch, history
from evotune.baselines import BASELINES
from evotune.budget import Budget
from evotune.engine import InlineEngine, LocalEngine
from evotune.errors import DeviceError
from evotune.journal import Journal
from evotune.space import ConfigSpace
from evotune.trial import Candidate, Fidelity, Measurement, Static, Trial
from evotune.tuner import Finals, Result, Tuner, feedback_of
from tests.toy import LADDER, SPACE, ULTRA, ToyEvaluator, latency_ms

BEST = {"tile": 64, "unroll": 4, "layout": "nt", "stages": 2}


class Listener:
    def __init__(self):
        self.trials, self.best_trials, self.notes = [], [], []

    @property
    def bests(self):
        return [t.latency_ms for t in self.best_trials]

    def on_trial(self, trial, tuner, *, is_best):
        self.trials.append(trial)
        if is_best:
            self.best_trials.append(trial)

    def on_note(self, text):
        self.notes.append(text)


class Ladder(ToyEvaluator):
    """Four fidelities, the last of which is that of the finals."""

    fidelities = (LADDER[0], Fidelity(2, "medium", 15), LADDER[1], ULTRA)


def run(
    path: Path,
    n: int,
    evaluator=None,
    *,
    search=BASELINES["random"],
    threads=False,
    listener=None,
    fresh=False,
    seconds=math.inf,
) -> Result:
    evaluator = evaluator or ToyEvaluator()
    with Journal(path) as journal:
        tuner = Tuner(
            search(SPACE, 0),
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


def test_seconds_are_of_search_and_finals_of_the_call_that_ended_a_run_and_are_told_again(tmp_path, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr("evotune.budget.time", SimpleNamespace(monotonic=lambda: now_s[0]))

    class Slow(ToyEvaluator):
        def __init__(self):
            super().__init__()
            now_s[0] += 100.0

        def measure(self, config, fidelity):
            now_s[0] += 1.0
            return super().measure(config, fidelity)

        def interleave(self, configs, fidelity):
            now_s[0] += 10.0
            return super().interleave(configs, fidelity)

    journal, first, second = tmp_path / "j.db", Slow(), Slow()
    result = run(journal, 5, first)
    assert result.seconds == first.calls["measure"] + 10 * first.calls["interleave"]
    assert run(journal, 5, Slow()).to_json() == result.to_json()
    more = run(journal, 8, second)
    assert more.seconds == second.calls["measure"] + 10 * second.calls["interleave"]


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
    listener = Listener()
    result = run(tmp_path / "j.db", 10_000, listener=listener)
    assert result.stopped == "exhausted"
    assert result.evaluations == SPACE.cardinality
    assert result.best["config"] == BEST
    assert listener.notes == ["end of the search: every legal configuration was evaluated; finals"]


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
    assert stopped.speedup is not None
    assert stopped.speedup_ci95 is None  # of which only finals tell
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


@pytest.mark.parametrize("threads", [False, True])
def test_promotions_are_evaluations_and_the_incumbent_rises_with_them(tmp_path, threads):
    listener = Listener()
    found = run(
        tmp_path / "j.db", 54, Ladder(), search=MultiFidelityBayesianSearch, threads=threads, listener=listener
    )
    assert found.evaluations == len(listener.trials) == 54
    assert all([m.fidelity.rank for m in t.measurements] == [t.candidate.fidelity_rank] for t in listener.trials)
    ranks = [t.candidate.fidelity_rank for t in listener.best_trials]
    assert ranks == sorted(ranks)
    assert set(ranks) == {1, 2, 3, 4}
    fastest = min(t.latency_ms for t in listener.trials if t.candidate.fidelity_rank == 4)
    assert listener.best_trials[-1].latency_ms == fastest
    assert found.best["config"] == BEST
    assert found.proposals["default"] == 1


@pytest.mark.parametrize("fails_at", [2, 4])
def test_a_configuration_that_fails_when_it_is_promoted_loses_its_place(tmp_path, fails_at):
    class Fragile(Ladder):
        def measure(self, config, fidelity):
            if config == BEST and fidelity.rank == fails_at:
                return Measurement(fidelity, "measured", failed_stage="incorrect", reason="overflows now and then")
            return super().measure(config, fidelity)

    class Watcher(Listener):
        def on_trial(self, trial, tuner, *, is_best):
            super().on_trial(trial, tuner, is_best=is_best)
            self.incumbents = [*getattr(self, "incumbents", []), tuner.incumbent.config]

    watcher = Watcher()
    result = run(tmp_path / "j.db", 54, Fragile(), search=MultiFidelityBayesianSearch, listener=watcher)
    failed = next(n for n, trial in enumerate(watcher.trials) if trial.failure)
    assert watcher.incumbents[failed - 1] == BEST
    assert BEST not in watcher.incumbents[failed:]
    assert result.best["config"] != BEST
    assert result.failures == {"incorrect": 1}


def test_the_finals_see_each_configuration_once_and_the_default_however_often_it_was_promoted(tmp_path):
    evaluator = Ladder()
    entered = []
    evaluator.interleave = lambda configs, fidelity: (
        entered.append(configs) or ToyEvaluator.interleave(evaluator, configs, fidelity)
    )
    space = ConfigSpace(SPACE.parameters, [c.text for c in SPACE.constraints], default=BEST)
    result = run(tmp_path / "j.db", 54, evaluator, search=lambda _, seed: MultiFidelityBayesianSearch(space, seed))
    assert len(entered) == 1
    assert len({SPACE.key(c) for c in entered[0]}) == len(entered[0]) == 3
    assert result.best["config"] == result.default["config"] == BEST
    assert result.speedup == 1.0


def test_a_winner_that_loses_against_the_default_at_last_is_not_the_best(tmp_path):
    class Luck(ToyEvaluator):
        """All others look good for as long as they do not meet the default alone."""

        def interleave(self, configs, fidelity):
            found = super().interleave(configs, fidelity)
            slow = [0] if len(configs) == 2 else []
            return [replace(m, samples_ms=(900.0,) * 20) if i in slow else m for i, m in enumerate(found)]

    result = run(tmp_path / "j.db", 30, Luck())
    assert result.best["config"] == result.default["config"] == dict(SPACE.default)
    assert (result.speedup, result.speedup_ci95) == (1.0, (1.0, 1.0))


def test_a_winner_that_fails_when_it_meets_the_default_is_not_the_best_and_the_next_one_is(tmp_path):
    class FailsAlone(ToyEvaluator):
        failed = None

        def interleave(self, configs, fidelity):
            found = super().interleave(configs, fidelity)
            if len(configs) == 2 and self.failed in (None, configs[0]):
                self.failed = configs[0]
                found[0] = Measurement(fidelity, "measured", failed_stage="incorrect", reason="3 values are wrong")
            return found

    listener, evaluator = Listener(), FailsAlone()
    result = run(tmp_path / "j.db", 30, evaluator, listener=listener)
    assert evaluator.failed not in (None, result.best["config"], result.default["config"])
    assert result.best["config"] != result.default["config"]
    assert result.speedup == pytest.approx(result.default["latency_ms"] / result.best["latency_ms"])
    told = [note for note in listener.notes if "fails in the finals and is left out: incorrect: 3 values" in note]
    assert len(told) == 1
    assert told[0] in [note.text for note in history.load(tmp_path / "j.db").notes]


class Noisy(ToyEvaluator):
    """In the finals the default is 2 % slower than the others, and all vary by a fifth from round to round."""

    def interleave(self, configs, fidelity):
        rng = random.Random(0)
        medians_ms = [1.02 if c == SPACE.default else 1.0 for c in configs]
        samples_ms = [tuple(ms * math.exp(rng.gauss(0, 0.2)) for _ in range(64)) for ms in medians_ms]
        return [Measurement(fidelity, "measured", samples) for samples in samples_ms]


def test_one_that_is_not_faster_than_the_default_beyond_noise_is_not_the_best_and_is_told(tmp_path):
    listener = Listener()
    result = run(tmp_path / "j.db", 20, Noisy(), listener=listener)
    assert result.best["config"] == result.default["config"] == dict(SPACE.default)
    assert result.best["latency_ms"] == result.default["latency_ms"]
    assert (result.speedup, result.speedup_ci95) == (1.0, (1.0, 1.0))
    (note,) = history.load(tmp_path / "j.db").notes
    assert listener.notes[-1] == note.text
    assert re.fullmatch(
        r"trial \d+ is \d\.\d{4} times as fast as the default, 95 % interval \[0\.\d{4}, 1\.\d{4}\]: "
        "not faster beyond noise, so the default stays",
        note.text,
    )


@pytest.mark.parametrize("stops", [[9], [33], [20, 31, 44], [52]])
def test_an_interrupted_multi_fidelity_run_goes_on_as_if_it_had_not_been(tmp_path, stops):
    straight, resumed = Listener(), Listener()
    run(tmp_path / "straight.db", 54, Ladder(), search=MultiFidelityBayesianSearch, listener=straight)
    for at in [*stops, None]:
        evaluator = Ladder()
        evaluator.raised_on = at and at - len(resumed.trials)
        run(tmp_path / "j.db", 54, evaluator, search=MultiFidelityBayesianSearch, listener=resumed)
    assert [t.candidate for t in resumed.trials] == [t.candidate for t in straight.trials]


def test_time_ends_a_run_too(tmp_path):
    result = run(tmp_path / "j.db", 10_000, ToyEvaluator(delay_s=0.02), seconds=0.2)
    assert result.stopped == "seconds"
    assert 0 < result.evaluations < SPACE.cardinality


def test_the_search_learns_log_latency_and_never_a_number_for_a_failure():
    candidate = Candidate(SPACE.default, "", "random")
    told = Static(0.5, {"registers": 64.0})
    good = Trial(0, candidate, (Measurement(LADDER[0], "measured", (2.0, 2.0, 2.2)),), told)
    bad = Trial(1, candidate, (Measurement(LADDER[0], "measured", failed_stage="run", reason="hang"),))
    assert feedback_of(good).loss == pytest.approx(math.log(2.0))
    assert feedback_of(good).fidelity_rank == 1
    assert feedback_of(good).variance > 0
    assert feedback_of(good).facts == {"registers": 64.0}
    assert feedback_of(bad).loss is None
    assert feedback_of(bad).failure == "run: hang"
