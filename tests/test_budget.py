"""What ends a run, told trial by trial, and whole runs on a toy that end so."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from evotune import budget as module
from evotune.baselines import BASELINES
from evotune.budget import Budget, Meter
from evotune.engine import InlineEngine, LocalEngine
from evotune.errors import UsageError
from evotune.journal import Journal
from evotune.settings import load
from evotune.trial import Candidate, Fidelity, Measurement, Provenance, Trial
from evotune.tuner import Finals, Result, Tuner

from .toy import LADDER, SPACE, ULTRA, ToyEvaluator, latency_ms

TOP = LADDER[-1]
OPTIMUM_MS = min(latency_ms(SPACE.config(i)) for i in range(SPACE.cardinality))


def timed(ms: float, *fidelities: Fidelity, row: int = 0, provenance: Provenance = "measured") -> Trial:
    candidate = Candidate(SPACE.config(row), "", "random")
    return Trial(0, candidate, tuple(Measurement(f, provenance, (ms,)) for f in fidelities or (TOP,)))


def failed(row: int) -> Trial:
    failure = Measurement(TOP, "measured", failed_stage="incorrect", reason="overflows now and then")
    return Trial(0, Candidate(SPACE.config(row), "", "random"), (failure,))


def after(meter: Meter, *latencies_ms: float) -> str | None:
    for ms in latencies_ms:
        meter.tell(timed(ms))
    return meter.why_stop(0)


def test_small_steps_count_as_progress_together_and_noise_does_not() -> None:
    assert after(Meter(Budget(100, no_progress=3), TOP.rank), 1.0, 0.995, 0.995, 0.99) == "no progress"
    creeping = Meter(Budget(100, no_progress=3), TOP.rank)
    assert after(creeping, *(0.99**i for i in range(50))) is None


def test_a_replay_has_no_noise_between_runs_so_any_gain_is_progress() -> None:
    meter = Meter(Budget(100, no_progress=2), TOP.rank)
    for i in range(20):
        meter.tell(timed(1.0 - i / 1000, provenance="replayed"))
        assert meter.why_stop(0) is None


def test_trials_in_flight_count_so_that_no_more_than_n_go_without_progress() -> None:
    meter = Meter(Budget(100, no_progress=3), TOP.rank)
    assert after(meter, 1.0, 1.0) is None
    assert meter.why_stop(1) is None
    assert meter.why_stop(2) == "no progress"


def test_a_best_that_fails_later_is_no_reference_any_more() -> None:
    meter = Meter(Budget(100, no_progress=3), TOP.rank)
    meter.tell(timed(0.1, row=1))
    meter.tell(timed(1.0, row=2))
    meter.tell(failed(1))
    assert meter.why_stop(0) is None
    assert after(meter, 0.5, 0.5, 0.5) is None  # against the 1.0 that is left
    assert after(meter, 0.5) == "no progress"


def test_a_target_is_reached_at_the_most_careful_fidelity_only() -> None:
    meter = Meter(Budget(100, target_ms=0.5), TOP.rank)
    meter.tell(timed(0.4, LADDER[0]))
    assert meter.why_stop(0) is None
    assert after(meter, 0.5) == "target"


def test_finals_change_nothing_of_why_a_run_stopped() -> None:
    """A resumed run finds them among the measurements of a trial; a little slower, here."""
    meter = Meter(Budget(100, target_ms=0.5), TOP.rank)
    finals = Measurement(ULTRA, "measured", (0.51,))
    trial = timed(0.5, *LADDER)
    meter.tell(Trial(0, trial.candidate, (*trial.measurements, finals)))
    assert meter.why_stop(0) == "target"


def test_what_is_reached_is_said_before_what_is_spent() -> None:
    assert after(Meter(Budget(1, target_ms=0.5), TOP.rank), 0.4) == "target"
    assert after(Meter(Budget(1, roofline_ms=0.5), TOP.rank), 0.4) == "roofline"
    assert after(Meter(Budget(1, target_ms=0.5), TOP.rank), 0.6) == "evaluations"


def test_the_time_that_is_left_is_that_of_the_budget_that_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    meter = Meter(Budget(100, max_seconds=1000.0, no_progress=20), TOP.rank)
    meter.tell(timed(1.0))
    meter.restored()
    assert meter.eta() is None
    clock[0] = 10.0
    meter.tell(timed(1.0))
    assert meter.eta() == module.Eta(190.0, "no progress")
    clock[0] = 900.0
    assert meter.eta() == module.Eta(100.0, "seconds")


@pytest.mark.parametrize(
    ("flags", "bound_ms", "words"),
    [
        ({"run.roofline_share": 0.5}, None, ["--roofline-share 0.5", "of cpu has no peaks", "--target-latency-ms"]),
        ({"run.roofline_share": 0.0}, 1.0, ["--roofline-share"]),
        ({"run.roofline_share": 1.5}, 1.0, ["--roofline-share"]),
        ({"run.target_latency_ms": 0.0}, 1.0, ["--target-latency-ms"]),
        ({"run.no_progress": 0}, 1.0, ["--no-progress"]),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(flags, bound_ms, words) -> None:
    with pytest.raises(UsageError) as error:
        Budget.of(load(None, flags, {}).run, bound_ms, "cpu")
    for word in words:
        assert word in str(error.value)


def test_a_share_of_the_roofline_is_the_bound_divided_by_it() -> None:
    run = load(None, {"run.roofline_share": 0.8, "run.max_evaluations": 7}, {}).run
    assert Budget.of(run, 2.0, "h100") == Budget(7, math.inf, None, 2.5, None)


def tuned(path: Path, budget: Budget, *, threads: bool = False, evaluator: ToyEvaluator | None = None) -> Result:
    evaluator = evaluator or ToyEvaluator()
    with Journal(path) as journal:
        return Tuner(
            BASELINES["random"](SPACE, 0),
            LocalEngine(evaluator, 2) if threads else InlineEngine(evaluator),
            evaluator,
            journal.open_run("toy", "hash", {"seed": 0}),
            budget=budget,
            finals=Finals(3, ULTRA),
            names={"kernel": "toy", "target": "toy"},
            llm=lambda: {"provider": "none", "calls": 0},
        ).tune()


@pytest.mark.parametrize("threads", [False, True])
def test_a_run_ends_at_its_target_with_finals_and_is_not_run_again(tmp_path: Path, threads: bool) -> None:
    wanted = Budget(SPACE.cardinality, target_ms=1.3 * OPTIMUM_MS)
    result = tuned(tmp_path / "j.db", wanted, threads=threads)
    assert result.stopped == "target"
    assert result.evaluations < SPACE.cardinality
    assert result.best is not None
    assert result.best["latency_ms"] <= 1.3 * 1.01 * OPTIMUM_MS
    assert result.speedup is not None
    again = ToyEvaluator()
    assert tuned(tmp_path / "j.db", wanted, evaluator=again).to_json() == result.to_json()
    assert not again.calls


def test_a_harder_target_goes_on_where_the_easier_one_ended(tmp_path: Path) -> None:
    easy = tuned(tmp_path / "j.db", Budget(SPACE.cardinality, target_ms=3 * OPTIMUM_MS))
    hard = tuned(tmp_path / "j.db", Budget(SPACE.cardinality, target_ms=OPTIMUM_MS))
    assert (easy.stopped, hard.stopped) == ("target", "target")
    assert hard.run_id == easy.run_id
    assert hard.evaluations > easy.evaluations


def test_a_run_without_progress_ends_and_so_does_one_that_finds_nothing(tmp_path: Path) -> None:
    result = tuned(tmp_path / "a.db", Budget(SPACE.cardinality, no_progress=12))
    assert result.stopped == "no progress"
    assert 12 < result.evaluations < SPACE.cardinality
    resumed = tuned(tmp_path / "a.db", Budget(SPACE.cardinality, no_progress=12))
    assert resumed.to_json() == result.to_json()
    nothing = tuned(tmp_path / "b.db", Budget(99, no_progress=5), evaluator=ToyEvaluator(fails=lambda c: True))
    assert (nothing.stopped, nothing.evaluations, nothing.best) == ("no progress", 5, None)
