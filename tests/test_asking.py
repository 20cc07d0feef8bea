"""Whom a run asks, what is remembered of it, and what a person sees of it."""

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from evotune.asking import LEFT_OUT, choose_model, open_model, open_prompts, usage
from evotune.budget import Budget, Meter
from evotune.errors import UsageError
from evotune.journal import Journal, LlmCall
from evotune.llm import Choice, Completion, MockProvider, Price, Usage
from evotune.llm.prompt import BUDGET_TOKENS, INGREDIENTS
from evotune.proposers.islands import Islands
from evotune.proposers.model import Story
from evotune.settings import Llm, Prompt, load
from evotune.terminal import Terminal, usage_of
from tests.toy import SPACE


class Counting(MockProvider):
    """The mock, under a name of its own."""

    name = "replay"

    def __init__(self):
        super().__init__()
        self.asked = 0

    def complete(self, system, user, *, n):
        self.asked += 1
        answer = super().complete(system, user, n=n)
        return Completion(answer.text, Usage(100, 20, usd=0.01))


@pytest.fixture
def run(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        yield journal.open_run("toy", "hash", {})


def opened(run, provider, notes=None, **settings):
    stack = ExitStack()
    given = load(None, settings, {})
    choice = Choice(provider, Price(1.0, 1.0, 1.0), "as given")
    model = open_model(
        given,
        choice,
        Story("toy"),
        Islands(SPACE, 0),
        space=SPACE,
        prompts=open_prompts(given),
        run=run,
        stack=stack,
        on_note=(notes if notes is not None else []).append,
    )
    return model, choice, stack


def test_a_model_that_had_stopped_earning_is_not_asked_again_by_a_later_call_of_the_run(run):
    model, _, stack = opened(run, provider := Counting())
    assert model.ask(4)
    model.retire("it has earned nothing")
    model.retire("it has earned nothing, still")
    stack.close()
    assert run.notes(LEFT_OUT) == ["it has earned nothing"]
    notes = []
    later, _, stack = opened(run, provider, notes)
    assert later.ask(4) == []
    stack.close()
    assert provider.asked == 1
    assert notes == ["earlier in this run: it has earned nothing"]


def test_calls_and_offers_are_on_record_before_they_are_used(run):
    model, choice, stack = opened(run, Counting())
    offered = model.ask(4)
    assert {tuple(c.config.items()) for c in offered} <= {tuple(c.items()) for c, _ in run.offers()}
    assert usage(run, choice) == {
        "provider": "replay", "model": "mock", "calls": 1, "input_tokens": 100, "output_tokens": 20, "usd": 0.01
    }  # fmt: skip
    stack.close()


@pytest.mark.parametrize(
    "cap", [{"llm.max_calls": 2}, {"llm.max_tokens": 5000}, {"llm.max_seconds": 60.0}, {"llm.max_usd": 0.5}]
)
def test_what_earlier_calls_of_a_run_spent_is_taken_off_its_limits(run, cap):
    spent = LlmCall("replay", "mock", None, None, None, 30.0, "lost", 2500, 0.25)
    for _ in range(2):
        model, _, stack = opened(run, Counting(), **cap)
        assert model is not None
        stack.close()
        run.record_call(spent)
    model, _, stack = opened(run, Counting(), **cap)
    assert model is None
    stack.close()


def test_every_ingredient_of_a_prompt_has_a_switch_that_works(monkeypatch):
    switches = {n for n, f in Prompt.model_fields.items() if f.annotation is bool} - {"programs"}
    assert switches == set(INGREDIENTS)
    assert Prompt().budget_tokens == BUDGET_TOKENS
    made = {}
    monkeypatch.setattr("evotune.asking.PromptBuilder", lambda folder, **given: made.update(given))
    for name in INGREDIENTS:
        open_prompts(load(None, {}, {f"EVOTUNE_PROMPT_{name.upper()}": "false"}))
        assert made["without"] == [name]
    open_prompts(load(None, {"prompt.budget_tokens": 900, "prompt.programs": False}, {}))
    assert (made["budget_tokens"], made["programs"]) == (900, False)


def test_a_key_file_of_the_settings_is_used_and_must_be_private(tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-of-the-file-1234")
    path.chmod(0o644)
    local = {"llm.provider": "openai", "llm.key_file": str(path), "llm.base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(UsageError, match="chmod 600"):
        choose_model(load(None, {**local, "llm.model": "m"}, {}), {})


def test_what_a_model_costs_is_shown_while_a_run_goes_on(capsys):
    spent = {"calls": 3, "input_tokens": 900, "output_tokens": 100, "usd": 0.0125}
    tuner = SimpleNamespace(
        best_ms=None,
        speedup=None,
        model_state="asked",
        trials=[],
        meter=Meter(Budget(5), top_rank=1),
        default_ms=None,
        llm=lambda: spent,
    )
    terminal = Terminal()
    terminal._shown_s = float("-inf")
    terminal.on_trial(SimpleNamespace(failure=None, measurements=()), tuner, is_best=False)
    assert "model asked, 3 calls, 1000 tokens, $0.0125" in capsys.readouterr().err
    assert usage_of({**spent, "usd": None}) == "3 calls, 1000 tokens, cost unknown"
    assert usage_of({**spent, "calls": 0}) == ""
    assert usage_of({**spent, "calls": 1}).startswith("1 call, ")


def test_settings_limit_calls_tokens_seconds_and_money():
    assert {"max_calls", "max_tokens", "max_seconds", "max_usd"} <= set(Llm.model_fields)
