"""What `evotune show` says: of finished runs and of others, in any width, to a person and to a script."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest

from evotune import history, showing
from evotune.cli import main
from evotune.export import find
from evotune.journal import Journal, LlmCall, Rejection
from evotune.openevolve_tuner import OpenEvolveTuner
from evotune.terminal import Output, print_result
from evotune.trial import Candidate, Measurement, Static, Trial
from tests.export.journals import MATMUL, PROBLEM, write, write_shapes
from tests.test_tuner import Noisy
from tests.test_tuner import run as tune
from tests.toy import LADDER, SPACE, ToyEvaluator

BEST = {**MATMUL, "BLOCK_M": 128, "num_warps": 8}


def command(monkeypatch, capsys, *arguments, columns=None):
    monkeypatch.setattr(sys, "argv", ["evotune", "show", *map(str, arguments)])
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def flat(text):
    """As one line, so that it does not matter where lines are wrapped."""
    return " ".join(text.split())


def test_a_run_is_told_from_the_default_to_how_to_go_on(tmp_path, monkeypatch, capsys):
    path = tmp_path / "j.db"
    write(path, [MATMUL, BEST, {**BEST, "num_warps": 4}], fails={2})
    run_id = history.load(path).summary.run_id
    code, out, err = command(monkeypatch, capsys, "--journal", path)
    assert (code, err) == (0, "")
    said = flat(out)
    for part in (
        f"run {run_id}: matmul on NVIDIA H100 80GB HBM3",
        "target h100",
        "m=4096 n=4096",
        "provenance measured",
        "triton 3.9.0",
        "default 2 ms",
        "best 1 ms, 95 % interval [0.95, 1.05] ms, trial 2 (random)",
        "speed-up 2.000x, 95 % interval [1.800, 2.200]",
        "BLOCK_M 64 -> 128",
        "BLOCK_N 64",
        "evaluations 3 (default 1, random 2)",
        "failures incorrect 1",
        "1 x incorrect: off by one",
        f"--seed 0 --journal {path}",
        f"evotune export {run_id} --format triton|json|t4",
    ):
        assert part in said, part


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 80, 200])
@pytest.mark.parametrize("trial", [(), ("--trial", 2), ("--all",)])
def test_every_width_says_the_same_and_cuts_nothing(tmp_path, monkeypatch, capsys, columns, trial):
    path = tmp_path / "j.db"
    monkeypatch.chdir(tmp_path)
    write(path, [MATMUL, BEST], problem={**PROBLEM, "long_name_of_a_size": 123456789})
    _, wide, _ = command(monkeypatch, capsys, *trial, "--journal", "j.db", columns=1000)
    _, out, _ = command(monkeypatch, capsys, *trial, "--journal", "j.db", columns=columns)
    assert flat(out) == flat(wide)
    commands = ("    evotune", "  # program")
    words = max(len(word) for word in wide.split())
    assert all(len(line) <= max(columns, 16 + words) for line in out.splitlines() if not line.startswith(commands))


def test_numbers_are_the_same_in_words_and_in_the_object(tmp_path, monkeypatch, capsys):
    path = tmp_path / "j.db"
    result = tune(path, 20, ToyEvaluator(fails=lambda c: c["stages"] == 2))
    _, out, _ = command(monkeypatch, capsys, "--journal", path)
    code, text, err = command(monkeypatch, capsys, "--journal", path, "--json")
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert found["result"] == json.loads(json.dumps(result.to_json()))
    assert found["best"] == found["result"]["best"]
    assert f"{found['best']['latency_ms']:.4g} ms" in out
    assert f"trial {found['best_trial']} (" in flat(out)
    assert found["failures"] == result.failures
    assert f"compile {result.failures['compile']}" in out
    assert found["formats"] == ["json", "t4"]
    assert [t["trial"] for t in found["trials"]] == list(range(1, 21))
    assert found["trials"][0]["config"] == SPACE.default


def test_trials_have_the_numbers_that_a_run_prints(tmp_path, monkeypatch, capsys):
    from evotune.terminal import line_of

    path = tmp_path / "j.db"
    tune(path, 5)
    third = history.load(path).trials[2]
    printed = line_of(third, None, is_best=False)
    number = printed.split()[0]
    _, text, _ = command(monkeypatch, capsys, "--trial", number, "--journal", path, "--json")
    assert json.loads(text)["config"] == third.config
    code, _, err = command(monkeypatch, capsys, "--trial", 6, "--journal", path)
    assert code == 2
    assert "has no trial 6; it has trials 1 to 5" in err


def family(path):
    """A default, a child of it that works, and a grandchild that fails."""
    measured = Measurement(
        LADDER[1], "measured", (1.0, 1.1, 1.2, 1.3, 9.0), context={"clock_mhz": 1980.0, "gpu": "A"}
    )
    broken = Measurement(LADDER[0], "measured", failed_stage="incorrect", reason="3 of 9 differ \x1b[2J\x07")
    trials = [
        Trial(
            0, Candidate(MATMUL, "first\n", "default"), (Measurement(LADDER[1], "measured", (2.4,)),), Static(0.5)
        ),
        Trial(
            1, Candidate(BEST, "def get():\n    return 2\n", "llm", 0), (measured,), Static(0.5, {"registers": 40})
        ),
        Trial(2, Candidate({**BEST, "num_stages": 4}, "third\x1b[1m\n", "mutation", 1), (broken,), Static(0.5)),
    ]
    with Journal(path) as journal:
        run = journal.open_run("matmul", "h", {"target": "h100", "device": "H100", "problem": {"m": 1}})
        for trial in trials:
            run.begin(trial)
            run.append(trial)
        run.begin(Trial(3, Candidate(BEST, "", "random")))
        run.release()
    return history.load(path)


def test_a_trial_is_told_with_its_measurements_and_where_it_comes_from(tmp_path):
    run = family(tmp_path / "j.db")
    said = showing.trial_text(run, showing.trial_of(run, 2))
    for part in (
        "origin llm",
        "outcome 1.2 ms, 2.000x the default",
        "BLOCK_M 64 -> 128 num_warps 4 -> 8",
        "in full BLOCK_M=128 BLOCK_N=64 PRECISION=ieee num_warps=8 num_stages=3 maxnreg=0",
        "median 1.2 ms, quartiles 1.1 to 1.3 ms, standard error 6.9 %, 5 samples (50 repetitions asked for)",
        "clock_mhz=1980 gpu=A",
        "registers=40",
        "trial 1 (default, 2.4 ms)",
    ):
        assert part in flat(said), part
    assert "\n  def get():\n      return 2" in said


def test_a_failure_is_told_with_its_reason_and_its_parents(tmp_path):
    run = family(tmp_path / "j.db")
    said = flat(showing.trial_text(run, showing.trial_of(run, 3)))
    assert "outcome failed: incorrect: 3 of 9 differ" in said
    chain = (
        "trial 2 (llm, 1.2 ms) changed in trial 3: num_stages 3 -> 4 trial 1 (default, 2.4 ms) changed in trial 2:"
    )
    assert chain in said
    assert showing.trial_json(run, showing.trial_of(run, 3))["parents"] == [2, 1]


def test_a_trial_in_flight_has_no_outcome(tmp_path):
    run = family(tmp_path / "j.db")
    assert "outcome none yet" in flat(showing.trial_text(run, showing.trial_of(run, 4)))
    assert "no outcome trial 4" in flat(showing.run_text(run, tmp_path / "j.db"))
    assert showing.trial_json(run, showing.trial_of(run, 4))["latency_ms"] is None


def test_texts_of_a_model_cannot_move_the_cursor(tmp_path):
    run = family(tmp_path / "j.db")
    for text in (showing.trial_text(run, showing.trial_of(run, 3)), showing.run_text(run, tmp_path / "j.db")):
        assert not re.search(r"[^\n\x20-\x7e]", text)
    assert r"\x1b[2J" in showing.trial_text(run, showing.trial_of(run, 3))


def test_an_unfinished_run_is_called_that_and_its_best_is_so_far(tmp_path):
    run = family(tmp_path / "j.db")
    said = flat(showing.run_text(run, tmp_path / "j.db"))
    assert "best 1.2 ms" in said
    assert "best so far: chosen and judged by the same timings" in said
    assert showing.run_json(run, tmp_path / "j.db")["result"] is None


def test_a_run_in_which_nothing_worked_says_so_and_why(tmp_path):
    write(tmp_path / "j.db", [MATMUL, BEST], fails={0, 1})
    said = flat(showing.run_text(history.load(tmp_path / "j.db"), tmp_path / "j.db"))
    assert "best nothing valid was found" in said
    assert "default failed: incorrect: off by one" in said
    assert "2 x incorrect: off by one" in said
    assert "evotune export" not in said


def test_where_nothing_was_faster_beyond_noise_the_default_is_what_is_told_to_paste(tmp_path, capsys):
    result = tune(tmp_path / "j.db", 20, Noisy())
    run, said = history.load(tmp_path / "j.db"), "nothing was faster than the default, as far as the measurements"
    assert f"speed-up {said}" in flat(showing.run_text(run, tmp_path / "j.db"))
    assert "so the default stays" in flat(showing.run_text(run, tmp_path / "j.db"))
    assert f"; the default: {said}" in find([run]).winners[0].comments()[1]
    print_result(result, Output())
    printed = capsys.readouterr().out
    assert said in printed
    assert "1.000x" not in printed
    assert printed.endswith(f"config to paste, the default:\n{dict(SPACE.default)}\n")


def test_a_run_without_a_trial_is_shown(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        journal.open_run("toy", "h", {}).release()
    run = history.load(tmp_path / "j.db")
    assert "evaluations 0" in flat(showing.run_text(run, tmp_path / "j.db"))
    assert json.loads(json.dumps(showing.run_json(run, tmp_path / "j.db")))["best"] is None


def test_a_replayed_run_is_called_replayed(tmp_path):
    write(tmp_path / "j.db", [MATMUL], provenance="replayed", target="replay")
    assert "provenance replayed" in flat(showing.run_text(history.load(tmp_path / "j.db"), tmp_path / "j.db"))


def test_a_run_over_shapes_is_shown_by_shape_with_its_program(tmp_path):
    write_shapes(tmp_path / "j.db")
    run = history.load(tmp_path / "j.db")
    text = showing.run_text(run, tmp_path / "j.db")
    assert "small 1 ms, 2.000x the default: tile=16" in flat(text)
    assert "\n      if problem['n'] <= 181:\n" in text
    out = json.loads(json.dumps(showing.run_json(run, tmp_path / "j.db")))
    assert set(out["best_by_shape"]) == {"small", "large"}
    assert out["best_by_shape"]["large"]["shape"] == "large"
    trial = flat(showing.trial_text(run, showing.trial_of(run, 2)))
    assert "shape=large tile=64" in trial


def test_the_best_score_of_a_search_in_python_is_shown(tmp_path):
    space = {"block_size": [32, 64, 128], "num_warps": [1, 2, 4, 8]}
    tuner = OpenEvolveTuner(
        config_space=space,
        objective=lambda c: 1000.0 / (abs(c["block_size"] - 64) + c["num_warps"]),
        max_evaluations=6,
        provider="none",
        verbose=False,
        journal=tmp_path / "j.db",
    )
    tuner.tune()
    run = history.load(tmp_path / "j.db")
    said = flat(showing.run_text(run, tmp_path / "j.db"))
    assert f"best score {tuner.best_score:.6g}, trial" in said
    assert "state the evaluations were used up" in said
    assert "the same call in Python" in said
    assert "evotune run" not in said
    listed = flat(showing.runs_text(history.runs(tmp_path / "j.db"), tmp_path / "j.db"))
    assert f"objective on python, target python: best score {tuner.best_score:.6g}" in listed
    assert f"outcome score {tuner.history[0][1]:.6g}" in flat(showing.trial_text(run, run.trials[0]))


def test_what_models_cost_and_what_a_person_was_told_is_shown(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("toy", "h", {})
        run.record_call(LlmCall("openai", "m", 10, 20, 0.125, 1.5))
        run.record_call(LlmCall("openai", "m", None, None, None, 1.5, "timeout"))
        run.reject([Rejection("llm", "parse", "no program")])
        run.note("model left out", "its share was at the floor")
        run.note("given", '{"kernel": "toy.py"}')
    said = flat(showing.run_text(history.load(tmp_path / "j.db"), tmp_path / "j.db"))
    assert "model openai m: 2 calls, 1 failed, 30 tokens, $0.1250" in said
    assert "model left out its share was at the floor" in said
    assert "failures parse 1" in said
    assert '{"kernel"' not in said
    assert "evotune run toy.py --seed 0" in said


def test_all_runs_are_listed_the_latest_first(tmp_path, monkeypatch, capsys):
    path = tmp_path / "j.db"
    ids = [write(path, [MATMUL]), write(path, [MATMUL, BEST], result=False)]
    code, out, _ = command(monkeypatch, capsys, "--all", "--journal", path)
    assert code == 0
    first, second = (out.index(i) for i in reversed(ids))
    assert first < second
    assert "1 evaluation; the evaluations were used up " in flat(out)
    assert "target h100: best 1.005 ms" in out
    _, text, _ = command(monkeypatch, capsys, "--all", "--journal", path, "--json")
    assert [r["run_id"] for r in json.loads(text)["runs"]] == ids[::-1]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("evaluations", "the evaluations were used up"),
        ("seconds", "the time was used up"),
        ("exhausted", "every legal configuration was evaluated"),
        ("target", "the latency that was asked for was reached"),
        ("roofline", "the share of the roofline that was asked for was reached"),
        ("no progress", "there was no new best for as many evaluations as were asked for"),
        ("interrupted", "it was interrupted"),
        ("let go", "its process ended without a result"),
        ("cut off", "it was cut off"),
        ("running", "it goes on"),
    ],
)
def test_why_a_run_ended_is_told_in_words(tmp_path, state, said):
    run = family(tmp_path / "j.db")
    run = replace(run, summary=replace(run.summary, state=state))
    assert f"3 evaluations; {said}" in flat(showing.runs_text([run.summary], tmp_path / "j.db"))
    assert f"state {said}" in flat(showing.run_text(run, tmp_path / "j.db"))
    assert f"best so far: {said}" in find([run]).winners[0].comments()[1]


def test_wrong_use_is_told_and_ends_with_2(tmp_path, monkeypatch, capsys):
    path = tmp_path / "j.db"
    code, out, err = command(monkeypatch, capsys, "--journal", path)
    assert (code, out) == (2, "")
    assert f"no journal at {path}" in err
    assert not path.exists()
    write(path, [MATMUL])
    for arguments, message in [(("r-none",), "has no run 'r-none'"), (("r-x", "--all"), "lists all runs")]:
        code, out, err = command(monkeypatch, capsys, *arguments, "--journal", path)
        assert (code, out) == (2, "")
        assert message in err


def test_a_value_with_a_line_break_is_shown_as_what_it_is(tmp_path, monkeypatch, capsys):
    write(tmp_path / "j.db", [MATMUL, {**BEST, "PRECISION": "tf32\nx3"}])
    _, run, _ = command(monkeypatch, capsys, "--journal", tmp_path / "j.db")
    _, trial, _ = command(monkeypatch, capsys, "--trial", 2, "--journal", tmp_path / "j.db")
    assert r"PRECISION ieee -> 'tf32\nx3'" in run
    assert r"PRECISION='tf32\nx3'" in trial


@pytest.mark.parametrize(
    "arguments", [["show"], ["export", "--format", "json"], ["report", "--out", "page.html"]], ids=lambda a: a[0]
)
def test_whoever_reads_a_journal_finds_it_where_a_run_would_record_it(tmp_path, monkeypatch, capsys, arguments):
    for name, where in {"environment": "e.db", "file": "f.db", "flag": "g.db"}.items():
        write(tmp_path / where, [MATMUL, BEST], kernel=f"from_the_{name}")
    (tmp_path / "c.yaml").write_text("run:\n  journal: f.db\n")
    monkeypatch.chdir(tmp_path)

    def kernel_of(*options):
        monkeypatch.setattr(sys, "argv", ["evotune", *arguments, *options])
        with pytest.raises(SystemExit):
            main()
        out, err = capsys.readouterr()
        text = (tmp_path / "page.html").read_text() if arguments[0] == "report" else out + err
        return set(re.findall("from_the_[a-z]+", text))

    assert kernel_of("--config", "c.yaml") == {"from_the_file"}
    monkeypatch.setenv("EVOTUNE_RUN_JOURNAL", "e.db")
    assert kernel_of("--config", "c.yaml") == {"from_the_environment"}
    assert kernel_of("--config", "c.yaml", "--journal", "g.db") == {"from_the_flag"}
