"""Which provider is chosen, and what is refused before any work."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path

import pytest

from evotune.errors import Fatal, UsageError
from evotune.llm import Choice, HumanProvider, MockProvider, NoProvider, Options, ReplayProvider, Usage, resolve
from evotune.llm.anthropic import AnthropicProvider
from evotune.llm.openai import OpenAIProvider
from evotune.llm.prices import FREE, Price, is_loopback, price_of
from evotune.llm.secret import Secret, printable

from .fake_server import ANSWER, FakeServer

MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
OPENAI, ANTHROPIC = {"OPENAI_API_KEY": "sk-openai-key-1"}, {"ANTHROPIC_API_KEY": "sk-ant-key-1"}


def choose(provider: str = "auto", environ: dict[str, str] | None = None, **more: object) -> Choice:
    return resolve(Options(provider=provider, default_models=MODELS, **more), environ or {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({**OPENAI, **ANTHROPIC}, OpenAIProvider),
        (ANTHROPIC, AnthropicProvider),
        ({"OPENAI_API_KEY": "  ", **ANTHROPIC}, AnthropicProvider),
        ({}, MockProvider),
    ],
)
def test_auto_takes_openai_then_anthropic_then_the_mock(environ: dict[str, str], kind: type) -> None:
    choice = choose(environ=environ)
    assert isinstance(choice.provider, kind)
    assert choice.provider.name in choice.reason
    assert choice.origin == ("mock" if kind is MockProvider else "llm")


def test_the_reason_names_the_model_and_never_the_key() -> None:
    choice = choose(environ=OPENAI)
    assert choice.provider.model == "gpt-4o-mini"
    assert "gpt-4o-mini" in choice.reason
    assert "sk-openai" not in f"{choice!r} {choice.reason} {vars(choice.provider)}"


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_an_explicit_provider_without_its_key_is_a_mistake_that_names_the_variable(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name.upper()}_API_KEY"):
        choose(name)
    fallback = choose(name, on_error="fallback")
    assert isinstance(fallback.provider, NoProvider)
    assert f"{name.upper()}_API_KEY" in fallback.reason
    with pytest.raises(Fatal, match="no model is asked"):
        fallback.provider.complete("s", "u", n=1)


def test_a_server_on_this_machine_needs_no_key_and_costs_nothing(server: FakeServer) -> None:
    choice = choose(base_url=f"{server.url}/v1", model="local", max_usd=1.0)
    assert choice.price is FREE
    assert choice.provider.complete("s", "u", n=1).text == ANSWER
    assert server.url in choice.reason


def test_a_key_is_not_invented_for_other_peoples_servers() -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        choose(base_url="https://gateway.example/v1", model="m")


def test_a_base_url_from_the_environment_is_used_and_said(server: FakeServer) -> None:
    choice = choose("anthropic", {**ANTHROPIC, "ANTHROPIC_BASE_URL": server.url})
    assert server.url in choice.reason
    assert choice.provider.complete("s", "u", n=1).text == ANSWER


def test_a_money_limit_needs_a_known_price() -> None:
    with pytest.raises(UsageError, match="'somebodys-model' is not known"):
        choose("openai", OPENAI, model="somebodys-model", max_usd=1.0)
    assert choose("openai", OPENAI, model="somebodys-model").price is None
    named = {**OPENAI, "OPENAI_BASE_URL": "https://api.openai.com/v1/"}
    assert choose("openai", named).price == Price(0.15, 0.075, 0.60)
    assert choose("openai", OPENAI, max_usd=1.0).price == Price(0.15, 0.075, 0.60)


def test_a_server_without_a_model_name_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="--model"):
        choose(base_url="http://localhost:8000/v1")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x"])
def test_a_base_url_has_a_scheme(url: str) -> None:
    with pytest.raises(UsageError, match="http://"):
        choose(base_url=url, model="m")


def test_an_unknown_provider_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'openai'"):
        choose("opnai")


def test_a_key_file_is_read_and_its_content_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-from-file-123456\n", encoding="utf-8")
    path.chmod(0o600)
    assert isinstance(choose("openai", key_file=path).provider, OpenAIProvider)
    path.write_text("two words", encoding="utf-8")
    with pytest.raises(UsageError) as error:
        choose("openai", key_file=path)
    assert "words" not in str(error.value)
    with pytest.raises(UsageError, match="cannot read"):
        choose("openai", key_file=tmp_path / "missing")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_file_that_others_can_read_is_refused_with_what_to_do(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-from-file-123456\n", encoding="utf-8")
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600") as error:
        choose("openai", key_file=path)
    assert "sk-from" not in str(error.value)


def test_names_with_a_path(tmp_path: Path) -> None:
    recording = tmp_path / "answers.jsonl"
    recording.write_text('{"prompt": "x", "text": "y"}\n', encoding="utf-8")
    assert isinstance(choose(f"replay:{recording}").provider, ReplayProvider)
    assert isinstance(choose(f"human:{tmp_path}").provider, HumanProvider)
    assert isinstance(choose("none").provider, NoProvider)
    with pytest.raises(UsageError, match="needs a path"):
        choose("replay")


def _plug_in(options: Options) -> MockProvider:
    if options.temperature > 0.9:
        raise RuntimeError("cannot start")
    return MockProvider(options.seed)


def test_a_plug_in_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("mine", f"{__name__}:_plug_in", "evotune.providers")
    monkeypatch.setattr("evotune.llm.choose.entry_points", lambda group: [entry])
    choice = choose("mine", seed=3)
    assert isinstance(choice.provider, MockProvider)
    assert "plug-in" in choice.reason
    with pytest.raises(UsageError, match="RuntimeError: cannot start"):
        choose("mine", temperature=1.0)
    with pytest.raises(UsageError, match="is not known"):
        choose("mine", max_usd=1.0)


def test_prices_are_known_or_unknown_but_never_guessed() -> None:
    assert price_of("gpt-4o-mini-2024-07-18") == price_of("gpt-4o-mini") == Price(0.15, 0.075, 0.60)
    assert price_of("claude-haiku-4-5-20251001") == Price(1.0, 0.1, 5.0)
    assert price_of("gpt-4o-mini-fine-tuned") is None
    assert price_of("gpt-4o-mini", "https://gateway.example/v1") is None, "a gateway has its own prices"
    # 1000 tokens in, 400 of them cached, and 500 out.
    price = price_of("gpt-4o-mini")
    assert price is not None
    assert price.usd(Usage(1000, 500, 400)) == pytest.approx((600 * 0.15 + 400 * 0.075 + 500 * 0.6) / 1e6)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.2/v1", True),
        ("http://[::1]:11434/v1", True),
        ("http://localhost.example.com/v1", False),
        ("http://10.0.0.1/v1", False),
        ("https://api.openai.com/v1", False),
        ("https://127.0.0.1@evil.example/v1", False),
    ],
)
def test_loopback_is_this_machine_only(url: str, local: bool) -> None:
    assert is_loopback(url) == local


def test_a_secret_shows_in_no_form(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret("very-secret-value")
    logging.getLogger("evotune.test").warning("%s %r", secret, secret)
    assert "very-secret" not in f"{secret} {secret!r} {[secret]} {caplog.text}"
    assert secret.redact("a very-secret-value b sk-proj-abcdefgh12 Bearer abcdefgh1") == "a *** b *** ***"


def test_shown_text_is_one_line_of_printable_ascii() -> None:
    assert printable("a\n\x1b[31mb\u202ec\0  d") == "a [31mb c d"
    assert len(printable("x" * 10_000)) == 300
