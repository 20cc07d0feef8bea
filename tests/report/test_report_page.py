"""The page as a file: it needs nothing else, says what is known, and lets nothing of a journal become code."""

import json
import re
from pathlib import Path

import pytest

from evotune import OpenEvolveTuner
from evotune.errors import UsageError
from evotune.history import Note
from evotune.journal import Journal, LlmCall, Rejection
from evotune.report import View, text_of, write_report
from evotune.session import tune
from evotune.settings import load
from tests.report.histories import HIGH, LOW, MEDIUM, ULTRA, failed, history_of, timed, trial
from tests.test_tuner import Listener

JOURNAL = Path("j.db")
NASTY = "</script><script>alert(1)</script>\"'`&amp;<!-- \u2028 ünïcödé 内核 {{ 7 * 7 }} ${x}"


def data_of(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def part(text, name):
    """A section without its mark-up."""
    found = re.search(rf'<section id="{name}".*?</section>', text, re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[0]))


def ordinary(count=12, **rest):
    """A run on a sloping plane, with a failure and finals."""
    trials = []
    for i in range(count):
        config = {"tile": 2 ** (i % 4), "stages": i % 3, "layout": "nt" if i % 2 else "nn"}
        ms = 1 + config["tile"] / 4 + config["stages"]
        way = [failed(LOW, "incorrect", "nan")] if i == 5 else [timed(f, ms) for f in (LOW, MEDIUM, HIGH)]
        end = [timed(ULTRA, ms, took_s=None)] if i in (0, 4) else []
        origin = "default" if i == 0 else ("surrogate", "mutation", "mock")[i % 3]
        trials.append(trial(i, config, *way, *end, origin=origin, parent=i - 1 if origin == "mutation" else None))
    return history_of(*trials, **rest)


SHAPES = {"shapes": {"small": {"n": 8}, "long": {"n": 4096}}}
KINDS = {
    "ordinary": ordinary(),
    "running": ordinary(9, state="running", in_flight=(trial(99, {"tile": 1, "stages": 0, "layout": "nn"}),)),
    "no trial": history_of(state="running"),
    "one trial": history_of(trial(0, {"tile": 1}, timed(HIGH, 2), origin="default")),
    "one failure": history_of(trial(0, {"tile": 1}, failed(LOW, "run", "no"), origin="default")),
    "only failures": history_of(*(trial(i, {"tile": i}, failed(LOW, "run", f"no {i}")) for i in range(5))),
    "one parameter": history_of(*(trial(i, {"tile": i}, timed(HIGH, 2 + i)) for i in range(8))),
    "replayed": history_of(
        *(trial(i, {"tile": i, "b": i % 2}, timed(HIGH, 9 - i, "replayed")) for i in range(8)),
        description={"target": "replay"},
    ),
    "shapes": history_of(
        *(trial(i, {"@shape": s, "tile": i + 1}, timed(HIGH, 2 + i)) for i, s in enumerate(("small", "long") * 3)),
        description=SHAPES,
    ),
    "of models": ordinary(
        llm_calls=(LlmCall("openai", "m", 10, 5, None, 1.0),), rejections=(Rejection("llm", "parse", "none"),)
    ),
}


@pytest.fixture(scope="module")
def pages():
    return {kind: text_of(View(history), JOURNAL) for kind, history in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_a_page_that_needs_nothing_else(pages, kind):
    text = pages[kind]
    assert not re.search(r"""(src|href)=["'](?!#|data:)|@import|url\(|https?://(?!www\.w3\.org)""", text)
    assert text.count("<section") == text.count("</section>") == 13
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert len(data_of(text)["trials"]["number"]) == len(KINDS[kind].trials)
    assert "None" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_a_default_that_stayed_is_called_that_and_no_ratio_to_itself_is_told():
    told = {"config": {"tile": 1}, "latency_ms": 2.0}
    result = {"best": {**told, "ci95_ms": [1.9, 2.1]}, "default": told, "speedup": 1.0, "speedup_ci95": [1.0, 1.0]}
    history = history_of(
        trial(0, {"tile": 1}, timed(HIGH, 2), origin="default"),
        trial(1, {"tile": 2}, timed(HIGH, 2)),
        result={**result, "stopped": "evaluations", "seconds": 1.0},
    )
    said = part(text_of(View(history), JOURNAL), "summary")
    assert "2 ms, the default" in said
    assert "The best is the default: nothing was faster than the default, as far as" in said
    assert "times as fast" not in said
    assert "interval" not in said


def test_nothing_is_said_that_is_not_known(pages):
    assert "Nothing valid was found yet" in part(pages["no trial"], "summary")
    assert "every trial failed" in part(pages["only failures"], "best")
    assert "5 × no 0" in part(pages["only failures"], "failures")
    assert "Too few trials" in part(pages["one trial"], "importance")
    assert "Not known" in part(pages["ordinary"], "roofline")
    assert "No model was asked" in part(pages["ordinary"], "model")
    assert "not known" in part(pages["of models"], "model")
    assert "nothing was timed" in part(pages["replayed"], "summary")
    assert "so far" in part(pages["running"], "summary")
    assert "too few timed trials, or parameters" in part(pages["one parameter"], "heat")
    assert "was not kept with this run" in part(pages["ordinary"], "reproduce")


def test_what_is_compared_has_one_unit():
    history = history_of(
        trial(0, {"tile": 1}, timed(HIGH, 0.0012), origin="default"), trial(1, {"tile": 2}, timed(HIGH, 0.0008))
    )
    text = text_of(View(history), JOURNAL)
    assert "1.2 µs → 0.8 µs" in part(text, "summary")
    assert "0.0012 ms" not in part(text, "best")


@pytest.mark.parametrize(("state", "said"), [("running", "the finals come last"), ("cut off", "were not held")])
def test_of_a_run_that_goes_on_nobody_says_that_finals_were_not_held(state, said):
    history = history_of(
        trial(0, {"tile": 1}, timed(HIGH, 2), origin="default"), trial(1, {"tile": 2}, timed(HIGH, 1)), state=state
    )
    assert said in part(text_of(View(history), JOURNAL), "summary")


def test_a_run_over_shapes_has_its_table(pages):
    found = part(pages["shapes"], "best")
    assert re.search(r"small n=8 .* 2 ms", found)
    assert re.search(r"long n=4096 .* 3 ms", found)
    assert data_of(pages["shapes"])["has_shapes"]


def test_no_text_of_a_journal_becomes_code():
    hostile = {"tile": NASTY, "n": 1}
    described = {
        "device": NASTY,
        "problem": {"dtype": NASTY},
        "versions": {"cc": NASTY},
        "settings": {"a": {"b": NASTY}},
    }
    trials = [trial(i, {"tile": f"{NASTY}{i}", "n": i % 3}, timed(HIGH, 1 + i)) for i in range(8)]
    history = history_of(
        *trials,
        trial(8, hostile, failed(LOW, NASTY, NASTY)),
        description=described,
        rejections=(Rejection("llm", NASTY, NASTY),),
        llm_calls=(LlmCall(NASTY, NASTY, 1, 1, 0.0, 1.0, error=NASTY),),
        notes=(Note("said", NASTY, 0.0),),
    )
    text = text_of(View(history), JOURNAL)
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert "49" not in part(text, "summary").split("said:")[1][:120]
    data = data_of(text)
    assert data["reasons"][0].startswith(NASTY)
    assert data["parameters"][0]["values"][-1] == f"{NASTY}7"


def test_the_data_says_of_each_trial_what_the_journal_does():
    history = KINDS["ordinary"]
    data = data_of(text_of(View(history), JOURNAL))
    columns, names = data["trials"], [p["name"] for p in data["parameters"]]
    for i, known in enumerate(history.trials):
        config = {
            n: p["values"][k] for n, p, k in zip(names, data["parameters"], columns["config"][i], strict=True)
        }
        assert config == known.config
        assert columns["number"][i] == known.number
        assert data["origins"][columns["origin"][i]] == known.candidate.origin
        assert columns["ms"][i] == (None if known.failure else known.latency_ms)
        assert (columns["stage"][i] is None) == (known.failure is None)
        assert (columns["final_ms"][i] is not None) == (i in (0, 4))


@pytest.mark.slow
def test_thousands_of_trials_stay_below_two_megabytes():
    trials = [
        trial(
            i,
            {f"parameter_{j}": 2 ** ((i * (j + 3) + i // 7) % 8) for j in range(10)},
            failed(LOW, "incorrect", f"element {i} of the output is off by {i}.25: {'x' * 200}")
            if i % 3 == 1
            else timed(HIGH, 1.0 + (i * 7919 % 1000) / 1000),
        )
        for i in range(5000)
    ]
    assert len(text_of(View(history_of(*trials)), JOURNAL).encode()) < 2e6


def test_a_real_run_keeps_what_its_page_tells(tmp_path):
    settings = load(
        None, {"run.journal": str(tmp_path / "j.db"), "run.max_evaluations": 12, "llm.provider": "none"}, {}
    )
    tune("recordings/conv_A100", settings, observer=Listener())
    out = tmp_path / "out.html"
    run_id = write_report(tmp_path / "j.db", None, out)
    text = out.read_text(encoding="utf-8")
    assert run_id in part(text, "summary")
    assert "evotune run recordings/conv_A100 --max-evaluations 12 --provider none --seed 0" in part(
        text, "reproduce"
    )
    assert "legal configurations drawn" in part(text, "importance")
    # The space was kept with its constraints: values that nobody tried are known.
    assert len(data_of(text)["parameters"][0]["values"]) > 12


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    with Journal(tmp_path / "j.db") as journal:
        journal.open_run("toy", "cafe", {})
    out = tmp_path / "out.html"
    out.write_text("before")

    def fails(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(UsageError, match="disk full"):
        write_report(tmp_path / "j.db", None, out)
    assert out.read_text() == "before"
    assert {p.name for p in tmp_path.iterdir()} <= {"j.db", "out.html", "j.db-wal", "j.db-shm"}


def test_scores_of_a_function_are_not_taken_for_timings(tmp_path):
    tuner = OpenEvolveTuner(
        {"a": [1, 2, 3]}, lambda c: c["a"], 3, provider="none", journal=tmp_path / "j.db", verbose=False
    )
    tuner.tune()
    with pytest.raises(UsageError, match="scores of a Python function"):
        write_report(tmp_path / "j.db", None, tmp_path / "out.html")


def test_a_file_that_cannot_be_written_is_found_before_any_work(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        write_report(tmp_path / "no journal.db", None, tmp_path / "nowhere" / "out.html")
    with pytest.raises(UsageError, match="not a file"):
        write_report(tmp_path / "no journal.db", None, tmp_path)
