"""What the page says of failures, ancestors, cost, the roofline and the run as a whole."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from evotune import cli, settings
from evotune.cli.app import read_settings
from evotune.facts import GIVEN, ROOFLINE, SPACE, keep_given, space_to_json
from evotune.history import Note
from evotune.journal import Journal, LlmCall, Rejection
from evotune.llm import Roofline
from evotune.report.ancestry import ancestry
from evotune.report.belief import belief
from evotune.report.cost import costs, origins
from evotune.report.course import course
from evotune.report.failures import failures
from evotune.report.kept import load, space_of
from evotune.report.roofline import roof, si
from evotune.report.summary import command, summary
from evotune.space import ConfigSpace
from tests.report.histories import HIGH, LOW, failed, history_of, timed, trial

JOURNAL = Path("some where/j.db")


def note(kind, value):
    return Note(kind, json.dumps(value), 0.0)


def test_reasons_that_differ_in_numbers_are_one_and_the_first_is_shown():
    history = history_of(
        *(trial(i, {"tile": i}, failed(LOW, "incorrect", f"off by {i}.5 at {i}")) for i in range(4)),
        trial(4, {"tile": 9}, failed(LOW, "incorrect", "all zero")),
        rejections=(Rejection("llm", "parse", "no program"),),
    )
    first, second = failures(history)
    assert (first.stage, first.count, first.kinds) == ("incorrect", 5, 2)
    assert [(e.reason, e.count, e.trial) for e in first.examples] == [("off by 0.5 at 0", 4, 0), ("all zero", 1, 4)]
    assert (second.stage, second.examples[0].trial) == ("parse", None)


def test_a_long_reason_is_cut_visibly():
    history = history_of(trial(0, {"tile": 0}, failed(LOW, "compile", "x" * 5000)))
    (example,) = failures(history)[0].examples
    assert len(example.reason) == 600
    assert example.reason.endswith("…")


def test_the_genealogy_goes_from_the_first_ancestor_to_the_best():
    history = history_of(
        trial(0, {"tile": 1, "stages": 1}, timed(HIGH, 9), origin="default"),
        trial(1, {"tile": 2, "stages": 1}, timed(HIGH, 5)),
        trial(2, {"tile": 4, "stages": 1}, timed(HIGH, 4), origin="mutation", parent=1),
        trial(3, {"tile": 2, "stages": 3}, failed(LOW, "run", "no"), origin="llm", parent=1),
        trial(4, {"tile": 4, "stages": 2}, timed(HIGH, 3), origin="crossover", parent=2),
    )
    line = ancestry(history)
    assert [a.trial.number for a in line] == [1, 2, 4]
    assert [a.changed for a in line] == [{}, {"tile": (2, 4)}, {"stages": (1, 2)}]
    assert [[t.number for t in a.siblings] for a in line] == [[], [3], []]
    assert (line[0].nearest.number, line[0].apart) == (0, {"tile": (1, 2)})


def test_parents_in_a_circle_or_out_of_sight_end_the_genealogy():
    history = history_of(
        trial(0, {"tile": 1}, timed(HIGH, 2), parent=1), trial(1, {"tile": 2}, timed(HIGH, 1), parent=0)
    )
    assert [a.trial.number for a in ancestry(history)] == [0, 1]
    assert [a.trial.number for a in ancestry(history_of(trial(5, {"tile": 1}, timed(HIGH, 2), parent=3)))] == [5]
    assert ancestry(history_of()) == []


def test_a_cost_that_nobody_told_is_not_known():
    calls = (
        LlmCall("openai", "a", 10, 5, 0.25, 1.0),
        LlmCall("openai", "a", None, None, None, 2.0, error="timeout"),
        LlmCall("openai", "b", 1, 1, None, 1.0),
    )
    known, unknown = costs(history_of(llm_calls=calls))
    assert (known.calls, known.failed, known.input_tokens, known.usd, known.seconds) == (2, 1, 10, 0.25, 3.0)
    assert unknown.usd is None


def test_each_origin_is_told_with_its_new_bests():
    history = history_of(
        trial(0, {"tile": 1}, timed(HIGH, 3), origin="default"),
        trial(1, {"tile": 2}, timed(HIGH, 2), origin="mutation"),
        trial(2, {"tile": 3}, failed(LOW, "run", "no"), origin="mutation"),
    )
    found = {o.name: (o.trials, o.failed, o.new_bests, o.best_ms) for o in origins(history, course(history))}
    assert found == {"default": (1, 0, 1, 3), "mutation": (2, 1, 1, 2)}


def test_the_share_of_the_roof_is_bound_over_latency():
    # 2e9 operations at 1e12 a second take 2 ms, 1e9 bytes at 1e12 a second 1 ms.
    work = {"flops": 2e9, "bytes_moved": 1e9, "peak_flops_per_s": 1e12, "peak_bytes_per_s": 1e12}
    found = roof(history_of(notes=(note(ROOFLINE, work),)), 4.0, 8.0)
    assert [(r.name, r.share) for r in found.reached] == [("default", 0.25), ("best", 0.5)]
    assert found.reached[1].flops_per_s == pytest.approx(5e11)
    assert found.svg.startswith("<svg")


def test_without_peaks_there_is_no_roof_and_without_work_nothing_is_said():
    work = {"flops": 2e9, "bytes_moved": 1e9, "peak_flops_per_s": None, "peak_bytes_per_s": None}
    found = roof(history_of(notes=(note(ROOFLINE, work),)), 4.0, None)
    assert (found.svg, found.reached[0].share) == (None, None)
    assert roof(history_of(), 4.0, 8.0) is None


def test_numbers_get_a_prefix():
    assert [si(x) for x in (4.028e10, 1.5e3, 12.0)] == ["40.28 G", "1.5 k", "12 "]


def test_the_ratio_of_an_unfinished_run_is_not_called_final():
    history = history_of(
        trial(0, {"tile": 1}, timed(HIGH, 6), origin="default"), trial(1, {"tile": 2}, timed(HIGH, 3))
    )
    head = summary(history)
    assert (head.speedup, head.default_ms, head.is_final) == (2.0, 6.0, False)


def test_a_failed_default_is_said_and_no_ratio_is_made_up():
    history = history_of(
        trial(0, {"tile": 1}, failed(LOW, "incorrect", "nan"), origin="default"),
        trial(1, {"tile": 2}, timed(HIGH, 3)),
    )
    head = summary(history)
    assert (head.speedup, head.verdict, head.default_failure) == (None, None, "incorrect: nan")


def test_the_roof_of_a_copy_is_the_memorys():
    found = roof(history_of(notes=(note(ROOFLINE, vars(Roofline(0.0, 1e9, 1e15, 2e12))),)), 1.0, 2.0)
    assert [r.share for r in found.reached] == [0.25, 0.5]
    assert (found.peaks, found.svg) == ("2 TB/s", None)


def test_the_command_has_what_the_user_asked_for():
    given = {
        "kernel": "my kernels/k.py",
        "run": {"shape": "long", "max_evaluations": 20},
        "llm": {"provider": "none"},
    }
    described = {"seed": 7, "search": "mfbo", "settings": {"measure": {"low_reps": 3}}}
    history = history_of(notes=(note(GIVEN, given),), description=described)
    assert command(history, JOURNAL) == (
        "EVOTUNE_MEASURE_LOW_REPS=3 evotune run 'my kernels/k.py' --target cpu --shape long --max-evaluations 20 "
        "--provider none --search mfbo --seed 7 --journal 'some where/j.db'"
    )


def test_the_command_asks_for_the_same_settings_again(tmp_path, monkeypatch):
    flags = {
        "run.engine": "ray",
        "run.ray_address": "auto",
        "run.gpus": 2,
        "run.isolation": "strict",
        "run.roofline_share": 0.5,
        "run.journal": "j.db",
        "llm.base_url": "http://localhost:1/v1",
        "llm.on_error": "fallback",
        "llm.max_usd": 0.25,
        "llm.openai_model": "gpt-5",
        "llm.structured_output": False,
        "llm.concurrency": 1,
        "prompt.folder": "my prompts",
        "prompt.device": False,
        "measure.low_reps": 3,
    }
    wanted = settings.load(None, flags, {})
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("toy", "cafe", {"target": "cpu", "settings": wanted.changed()})
        keep_given(run, "toy", wanted)
        run.release()
    words = shlex.split(command(load(tmp_path / "j.db", None), Path("j.db")))
    for name, value in (w.split("=", 1) for w in words[: words.index("evotune")]):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", words[words.index("evotune") :])
    monkeypatch.setattr(settings, "default_path", lambda: None)
    asked = []
    monkeypatch.setattr(cli.run, "read_settings", lambda *given: asked.append(read_settings(*given)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()
    target = wanted.run.model_copy(update={"target": "cpu"})  # what was found here
    assert asked == [wanted.model_copy(update={"run": target})]


def test_the_command_of_a_run_over_shapes_names_them_in_the_order_given():
    described = {"shapes": {"long": {}, "small": {}}}
    history = history_of(kernel="toy (small, long)", description=described)
    assert command(history, JOURNAL).startswith("evotune run toy --shapes small,long --target cpu --seed 0")


def test_the_space_is_the_one_that_was_kept_or_what_was_tried():
    space = ConfigSpace.from_dict({"tile": [1, 2, 4], "fast": [False, True]}, ["tile > 1 or fast"])
    kept = space_of(history_of(notes=(note(SPACE, space_to_json(space)),)))
    assert kept.keys.tolist() == space.keys.tolist()
    tried = [trial(0, {"tile": 4, "fast": True, "how": "b"}), trial(1, {"tile": 1, "fast": 1, "how": "a"})]
    seen = space_of(history_of(*tried))
    assert {name: p.values for name, p in seen.parameters.items()} == {
        "tile": (1, 4),
        "fast": (True, 1),
        "how": ("a", "b"),
    }


def test_what_matters_is_found_and_predicted_where_it_was_not_measured():
    space = ConfigSpace.from_dict({"a": range(8), "b": range(8), "c": range(3)})
    true_ms = {key: 1.0 + (key[0] - 5) ** 2 + 0.1 * key[1] for key in map(tuple, space.keys.tolist())}
    keys = list(true_ms)[::4]
    trials = [trial(i, space.from_key(key), timed(HIGH, true_ms[key])) for i, key in enumerate(keys)]
    found = belief(history_of(*trials, notes=(note(SPACE, space_to_json(space)),)), space)
    assert next(iter(found.influence)) == "a"
    assert found.influence["a"] > 0.8
    assert found.influence["c"] < 0.05
    assert found.skill > 0.8
    pair = next(p for p in found.pairs if {p.down, p.across} == {"a", "b"})
    assert len(pair.latency_ms) == 64
    low = min(range(64), key=lambda i: pair.latency_ms[i])
    assert (low // 8 if pair.down == "a" else low % 8) == 5


def test_of_three_timed_trials_nothing_is_believed():
    trials = [trial(i, {"tile": i, "stages": i}, timed(HIGH, 1 + i)) for i in range(3)]
    history = history_of(*trials)
    assert belief(history, space_of(history)) is None
