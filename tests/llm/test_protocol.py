"""What is sent, and how a request changes when a server does not take part of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from evotune.errors import Fatal
from evotune.llm import Policy, Provider
from evotune.llm.openai import OpenAIProvider
from evotune.llm.secret import Secret

from .conftest import make_provider
from .fake_server import ANSWER, FAULTS, FakeServer, Fault, Request, error

SCHEMA = {"type": "object", "properties": {"configs": {"type": "array"}}}


def refusing(*names: str, status: int = 400) -> Callable[[Request], Fault | None]:
    """A server that refuses the first of these parameters that a request has."""

    def refuse(request: Request) -> Fault | None:
        found = next((n for n in names if n in request.body), None)
        return error(status, f"Unsupported parameter: '{found}'") if found else None

    return refuse


def ask(provider: Provider) -> str:
    return Policy(provider, sleep=lambda seconds: None).ask("system", "user").text


def test_anthropic_is_sent_no_sampling_parameters(server: FakeServer) -> None:
    ask(make_provider("anthropic", server.url))
    request = server.requests[0]
    assert request.path == "/v1/messages"
    assert request.body.keys() == {"model", "max_tokens", "system", "messages"}
    assert request.body["max_tokens"] == 500


def test_openai_is_sent_prompt_temperature_and_limit(server: FakeServer) -> None:
    ask(make_provider("openai", server.url, temperature=0.3))
    request = server.requests[0]
    assert request.path == "/v1/chat/completions"
    assert [m["content"] for m in request.body["messages"]] == ["system", "user"]
    assert (request.body["temperature"], request.body["max_tokens"]) == (0.3, 500)


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_parameter_is_dropped_once_and_said_once(
    status: int, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuse = refusing("temperature", "response_format", status=status)
    provider = make_provider("openai", server.url, schema=SCHEMA)
    assert [ask(provider), ask(provider)] == [ANSWER, ANSWER]
    assert len(server.requests) == 4  # two refused, then two good ones
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 2, said


def test_a_schema_that_anthropic_refuses_is_left_out(server: FakeServer) -> None:
    server.refuse = refusing("output_config")
    assert ask(make_provider("anthropic", server.url, schema=SCHEMA)) == ANSWER
    assert ["output_config" in r.body for r in server.requests] == [True, False]


@pytest.mark.parametrize(("old", "new"), [("max_tokens", "max_completion_tokens")])
def test_the_token_limit_takes_its_other_name(old: str, new: str, server: FakeServer) -> None:
    server.refuse = refusing(old)
    assert ask(make_provider("openai", server.url)) == ANSWER
    assert server.requests[-1].body[new] == 500


def test_a_request_without_a_token_limit_is_never_sent(server: FakeServer) -> None:
    server.refuse = refusing("max_tokens", "max_completion_tokens")
    with pytest.raises(Fatal, match="max_completion_tokens"):
        ask(make_provider("openai", server.url))
    assert all({"max_tokens", "max_completion_tokens"} & r.body.keys() for r in server.requests)


def test_a_model_that_needs_the_responses_api_gets_it(server: FakeServer) -> None:
    text = "This model is only supported in v1/responses and not in v1/chat/completions."
    server.refuse = lambda r: error(404, text) if r.path.endswith("/chat/completions") else None
    provider = make_provider("openai", server.url, schema=SCHEMA)
    assert [ask(provider), ask(provider)] == [ANSWER, ANSWER]
    assert [r.path.rsplit("/v1/")[1] for r in server.requests] == ["chat/completions", "responses", "responses"]
    body = server.requests[-1].body
    assert (body["instructions"], body["input"], body["store"]) == ("system", "user", False)
    assert body["text"]["format"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("fault", "kind"), [("length stop", "BadOutput"), ("refusal", "refused"), ("empty choices", "nothing in it")]
)
def test_the_responses_api_fails_as_the_other_does(fault: str, kind: str, server: FakeServer) -> None:
    provider = make_provider("openai", server.url)
    server.script = [error(400, "use the Responses API")]
    ask(provider)
    server.otherwise = FAULTS[fault]
    with pytest.raises(Exception) as failure:  # noqa: PT011  (the kind is checked below)
        ask(provider)
    assert kind in f"{type(failure.value).__mro__} {failure.value}"


def test_threads_that_are_refused_together_all_get_an_answer(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuse = refusing("max_tokens", "temperature")
    provider = make_provider("openai", server.url, timeout_s=5.0)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(provider), range(8)))
    assert answers == [ANSWER] * 8
    assert [r.message for r in caplog.records] == ["openai does not take temperature; going on without it"]


def test_a_proxy_for_the_outside_is_not_used_for_this_machine(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert ask(make_provider(kind, server.url)) == ANSWER


def test_making_a_provider_connects_to_nothing() -> None:
    OpenAIProvider("m", Secret("k"), base_url="http://127.0.0.1:9/v1")
