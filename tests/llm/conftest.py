"""One fake server for all tests here, reset before each; no test finds a key or leaves this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from evotune.llm import Provider
from evotune.llm.anthropic import AnthropicProvider
from evotune.llm.openai import OpenAIProvider
from evotune.llm.secret import Secret

from .fake_server import GOOD, FakeServer

PLANTED_KEY = "planted-7f3e9c51d2-do-not-show"
Make = Callable[..., Provider]


@pytest.fixture(autouse=True)
def _nothing_but_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_BASE_URL")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert isinstance(address, tuple)
            assert address[0] in ("127.0.0.1", "::1"), f"a test called {address}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def _server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def server(_server: FakeServer) -> FakeServer:
    _server.script, _server.otherwise, _server.requests = [], GOOD, []
    _server.refuse = lambda request: None
    return _server


def make_provider(kind: str, url: str, **more: object) -> Provider:
    """A provider of a kind (``openai``, ``anthropic``) at a URL, with a short timeout."""
    settings: dict[str, object] = {"timeout_s": 1.5, "max_output_tokens": 500, **more}
    if kind == "anthropic":
        settings.pop("temperature", None)
        return AnthropicProvider("model-x", Secret(PLANTED_KEY), base_url=url, **settings)  # type: ignore[arg-type]
    return OpenAIProvider("model-x", Secret(PLANTED_KEY), base_url=f"{url}/v1", **settings)  # type: ignore[arg-type]


@pytest.fixture(params=["openai", "anthropic"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def provider(kind: str, server: FakeServer) -> Provider:
    return make_provider(kind, server.url)
