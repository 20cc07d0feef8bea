"""Every fault that a server can have, against both SDKs as installed."""

from __future__ import annotations

import logging
import pickle
import socket
import traceback

import pytest

from evotune.errors import BadOutput, Fatal, ProviderError, Transient
from evotune.llm import Completion, Provider, Refused

from .conftest import PLANTED_KEY, make_provider
from .fake_server import ANSWER, FAULTS, FakeServer, Fault, error

EXPECTED: dict[str, type] = {
    "slow": Completion,
    "no usage": Completion,
    "hang": Transient,
    "reset": Transient,
    "short body": Transient,
    "408": Transient,
    "504": Transient,
    "HTML 200": Transient,
    "{}": Transient,
    "error in a 200": Transient,
    "truncated JSON": Transient,
    "not UTF-8": Transient,
    "empty choices": Transient,
    "409": Refused,
    "429": Refused,
    "429 with Retry-After": Refused,
    "429 with retry-after-ms": Refused,
    "500": Refused,
    "503": Refused,
    "529": Refused,
    "400": Fatal,
    "401": Fatal,
    "402": Fatal,
    "403": Fatal,
    "404": Fatal,
    "413": Fatal,
    "422": Fatal,
    "quota": Fatal,
    "length stop": BadOutput,
    "refusal": BadOutput,
    "empty text": BadOutput,
}


def outcome(provider: Provider) -> Completion | ProviderError:
    try:
        return provider.complete("system", "user", n=4)
    except ProviderError as failure:
        return failure


def test_every_fault_has_an_expectation() -> None:
    assert EXPECTED.keys() == FAULTS.keys()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_classified(name: str, provider: Provider, server: FakeServer) -> None:
    server.script = [FAULTS[name]]
    found = outcome(provider)
    expected = EXPECTED[name]
    assert isinstance(found, expected), repr(found)
    # What may have been charged is told from what was turned away.
    assert isinstance(found, Refused) == (expected is Refused)
    assert len(server.requests) == 1, "the SDK retried by itself"


def test_a_refused_connection_costs_nothing(kind: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert isinstance(outcome(make_provider(kind, f"http://127.0.0.1:{port}")), Refused)


def test_retry_after_is_read(provider: Provider, server: FakeServer) -> None:
    dated = error(429, "slow down", **{"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"})
    past = error(429, "slow down", **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    nonsense = error(429, "slow down", **{"Retry-After": "soon"})
    server.script = [FAULTS["429 with Retry-After"], FAULTS["429 with retry-after-ms"], dated, past, nonsense]
    found = [outcome(provider) for _ in range(5)]
    delays = [f.retry_after_s for f in found if isinstance(f, Transient)]
    assert delays == [7.0, 2.5, None, None, None]


def test_an_answer_keeps_the_servers_count_of_tokens(provider: Provider, server: FakeServer) -> None:
    found = outcome(provider)
    assert isinstance(found, Completion)
    assert found.text == ANSWER
    assert (found.usage.input_tokens, found.usage.cached_input_tokens, found.usage.output_tokens) == (100, 10, 20)


def test_tokens_are_estimated_where_a_server_does_not_count(provider: Provider, server: FakeServer) -> None:
    server.script = [FAULTS["no usage"]]
    found = outcome(provider)
    assert isinstance(found, Completion)
    assert found.usage.output_tokens == len(ANSWER) // 4


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_names_the_variable_to_set(status: int, provider: Provider, server: FakeServer) -> None:
    server.script = [FAULTS[str(status)]]
    assert f"{provider.name.upper()}_API_KEY" in str(outcome(provider))


def test_an_unknown_model_is_named(provider: Provider, server: FakeServer) -> None:
    server.script = [FAULTS["404"]]
    assert "'model-x'" in str(outcome(provider))


@pytest.mark.parametrize(
    "fault",
    [
        error(401, f"Incorrect API key provided: {PLANTED_KEY}"),
        error(400, f"header Authorization: Bearer {PLANTED_KEY} is bad"),
        error(500, f"crashed on {PLANTED_KEY}"),
        error(429, f"insufficient_quota for {PLANTED_KEY}"),
        Fault(body=f'{{"note": "{PLANTED_KEY}"}}'),
        Fault(body=f"<html>{PLANTED_KEY}</html>", headers={"Content-Type": "text/html"}),
    ],
    ids=["401", "400", "500", "quota", "200", "HTML"],
)
def test_a_key_that_a_server_echoes_is_not_shown(
    fault: Fault, provider: Provider, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="evotune")
    server.script = [fault]
    found = outcome(provider)
    assert isinstance(found, ProviderError)
    shown = [str(found), repr(found), *traceback.format_exception(found), caplog.text, repr(provider)]
    assert not [s for s in shown if PLANTED_KEY in s]
    # Not even held, where a debugger or an error reporter would find it.
    assert found.__context__ is None
    assert found.__cause__ is None
    sent = server.requests[0].headers
    assert f"Bearer {PLANTED_KEY}" in sent.values(), "the key was not sent, so nothing was tested"


def test_a_provider_cannot_be_sent_to_another_process(provider: Provider) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(provider)
