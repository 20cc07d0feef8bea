"""One fake server for all tests here, reset before each; no test finds a key or leaves this machine."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evotune import asking, cli, terminal
from evotune.llm import LlmClient, Policy, Provider, Retry
from evotune.llm.anthropic import AnthropicProvider
from evotune.llm.openai import OpenAIProvider
from evotune.llm.secret import Secret
from evotune.replay import load_recording

from .fake_server import ANSWER, GOOD, FakeServer

PLANTED_KEY = "planted-7f3e9c51d2-do-not-show"
ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "recordings" / "pnpoly_3090"
EVALUATIONS = 10
MAX_CALLS = 6
# Rich draws from the global generator when it is imported, which no test here may seem to do.
assert terminal


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
    _server.answer = ANSWER
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


@dataclass
class Ran:
    """How a run ended; ``result`` is None where nothing was printed on stdout."""

    code: int
    out: str
    err: str
    result: dict[str, Any] | None


Run = Callable[..., Ran]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("evotune")
    before = logger.handlers, logger.propagate
    yield logger
    logger.handlers, logger.propagate = before


def waiting(finished: Callable[[LlmClient[Any]], list[Any]]) -> Callable[[LlmClient[Any]], list[Any]]:
    """``LlmClient.finished`` that waits for the first reply."""

    def wait(client: LlmClient[Any]) -> list[Any]:
        deadline_s = time.monotonic() + 20.0
        while not (replies := finished(client)) and client.outstanding and time.monotonic() < deadline_s:
            time.sleep(0.001)
        return replies

    return wait


@pytest.fixture
def run(
    kind: str,
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    logger: logging.Logger,
) -> Run:
    """``evotune run`` in this process, without waits between attempts, and waiting for each reply."""
    quick = partial(Policy, sleep=lambda seconds: None, retry=Retry(attempts=2))
    monkeypatch.setattr(asking, "Policy", quick)
    # A replay is over before a server can answer; here what comes of an answer is of interest.
    monkeypatch.setattr(LlmClient, "finished", waiting(LlmClient.finished))
    monkeypatch.setenv(f"{kind.upper()}_API_KEY", PLANTED_KEY)
    recording = load_recording(RECORDING)
    timed = sorted((row.time_ms, key) for key, row in recording.rows.items() if row.time_ms)
    good = [recording.space.from_key(key) for _, key in timed[:4]]
    server.answer = json.dumps({"configs": good})

    def run(*more: str, url: str = server.url, journal: str = "j.db", **llm: Any) -> Ran:
        given = {"max_calls": MAX_CALLS, "timeout_s": 0.4, "model": "model-x", **llm}
        (tmp_path / "given.yaml").write_text(json.dumps({"llm": given}), encoding="utf-8")
        address = url if kind == "anthropic" else f"{url}/v1"
        arguments = ["run", str(RECORDING), "--max-evaluations", str(EVALUATIONS), "--json", "--provider", kind]
        arguments += ["--base-url", address, "--config", str(tmp_path / "given.yaml")]
        monkeypatch.setattr(sys, "argv", ["evotune", *arguments, "--journal", str(tmp_path / journal), *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Ran(int(str(ended.value.code)), out, err, json.loads(out) if out else None)

    return run
