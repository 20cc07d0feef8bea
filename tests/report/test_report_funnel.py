"""The numbers of each stage."""

from itertools import pairwise
from random import Random

from evotune.evaluator import STATIC
from evotune.journal import Rejection
from evotune.report.course import course
from evotune.report.funnel import COULD_NOT_WIN, SCREENED, UNFINISHED, funnel
from evotune.trial import Candidate, Measurement, Trial
from tests.report.histories import HIGH, LOW, MEDIUM, ULTRA, failed, history_of, timed, trial


def steps(history):
    return {
        step.name.removeprefix("measured: ").partition(",")[0]: step for step in funnel(history, course(history))
    }


def made_up(seed):
    """A run in which anything may happen to a trial that climbs."""
    rng = Random(seed)
    trials = []
    for number in range(rng.randint(1, 60)):
        way = [timed(f, 1 + rng.random()) for f in (LOW, MEDIUM, HIGH)][: rng.randint(1, 3)]
        match rng.randint(0, 5):
            case 0:
                failure = Measurement(STATIC, "measured", failed_stage="compile", reason="too large")
                trials.append(Trial(number, Candidate({"tile": number}, "", "random"), (failure,)))
                continue
            case 1:
                way[-1] = failed(way[-1].fidelity, rng.choice(["incorrect", "timeout"]), "wrong")
            case 2 if len(way) == 3:
                way.append(timed(ULTRA, 1.0, took_s=None))
        trials.append(trial(number, {"tile": number}, *way))
    stages = rng.choices(["parse", "validate", "known"], k=rng.randint(0, 20))
    return history_of(
        *trials,
        rejections=tuple(Rejection("llm", stage, "why") for stage in stages),
        in_flight=tuple(trial(1000 + i, {"tile": -i - 1}) for i in range(rng.randint(0, 3))),
        offers=tuple({"tile": n} for n in rng.sample(range(200), 20)),
    )


def test_what_enters_a_stage_of_a_climb_is_what_passed_the_one_before():
    for seed in range(30):
        history = made_up(seed)
        found = funnel(history, course(history))
        climb = [step for step in found if step.name != "finals"]
        assert all(step.passed >= 0 for step in found)
        assert [after.entered for after in climb[1:]] == [step.passed for step in climb[:-1]], seed
        timed_at_top = sum(1 for t in history.trials if t.failure is None)
        lost = sum(step.dropped.get(COULD_NOT_WIN, 0) for step in climb)
        assert climb[-1].passed == timed_at_top - lost


def test_every_proposal_is_counted_once():
    for seed in range(30):
        history = made_up(seed)
        tried = {t.config["tile"] for t in history.trials + history.in_flight}
        unused = {config["tile"] for config in history.offers} - tried
        expected = len(tried) + len(unused) + len(history.rejections)
        assert funnel(history, course(history))[0].entered == expected


def test_each_stage_says_what_it_dropped():
    history = history_of(
        trial(0, {"tile": 1}, timed(LOW, 1), timed(MEDIUM, 1), timed(HIGH, 1), timed(ULTRA, 1, took_s=None)),
        trial(1, {"tile": 2}, timed(LOW, 9)),
        trial(2, {"tile": 3}, failed(LOW, "incorrect", "wrong")),
        Trial(3, Candidate({"tile": 4}, "", "llm"), (failed(STATIC, "compile", "spills"),)),
        rejections=tuple(Rejection("llm", stage, "no") for stage in ("parse", "parse", "validate", "known")),
        in_flight=(trial(9, {"tile": 9}),),
        offers=({"tile": 4}, {"tile": 77}),
    )
    found = steps(history)
    assert {name: (s.entered, dict(s.dropped)) for name, s in found.items()} == {
        "proposed": (10, {"parse": 2}),
        "parsed": (8, {"validate": 1}),
        "legal": (7, {"known": 1}),
        "new": (6, {SCREENED: 1}),
        "taken up": (5, {UNFINISHED: 1, "compile": 1}),
        "low": (3, {"incorrect": 1, COULD_NOT_WIN: 1}),
        "medium": (1, {}),
        "high": (1, {}),
        "finals": (1, {}),
    }


def test_promoted_trials_are_not_said_to_have_been_unable_to_win():
    history = history_of(
        trial(0, {"tile": 1}, timed(LOW, 1), rank=1), trial(1, {"tile": 1}, timed(MEDIUM, 1), rank=2)
    )
    found = steps(history)
    assert (found["low"].entered, found["medium"].entered) == (1, 1)
    assert not found["low"].dropped


def test_a_rejection_of_an_unknown_stage_is_counted_all_the_same():
    history = history_of(rejections=(Rejection("llm", "gate", "new in a later version"),))
    first, second, *_ = funnel(history, course(history))
    assert (first.entered, dict(first.dropped), second.entered) == (1, {"gate": 1}, 0)


def test_a_run_without_trials_has_a_funnel():
    history = history_of()
    assert all(step.entered == 0 for step in funnel(history, course(history)))
    assert list(pairwise(funnel(history, course(history))))
