"""Asking in the background: nothing is lost, nothing waits, and the end is never held up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from evotune.errors import DeviceError, Fatal, ProviderError
from evotune.llm import Completion, LlmClient, MockProvider, Policy, Prompt, Usage, preflight

from .test_mock import prompt


class Gate:
    """A provider that answers when it is let."""

    name = model = "gate"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.active = self.most = 0
        self._lock = threading.Lock()

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        with self._lock:
            self.active += 1
            self.most = max(self.most, self.active)
        self.entered.release()
        assert self.open.wait(20)
        with self._lock:
            self.active -= 1
        return Completion(user, Usage())


Reply = Completion | ProviderError


def collect(client: LlmClient[int], n: int) -> dict[int, Any]:
    found: dict[int, Any] = {}
    deadline_s = time.monotonic() + 20.0
    while len(found) < n:
        assert time.monotonic() < deadline_s, "a reply was lost"
        found.update(client.finished())
        time.sleep(0.001)
    return found


def test_submitting_does_not_wait_and_late_replies_are_kept() -> None:
    gate = Gate()
    client: LlmClient[int] = LlmClient(Policy(gate), concurrency=2)
    for i in range(6):
        client.submit(Prompt("s", f"question {i}"), i)
    assert client.finished() == []
    assert client.outstanding == 6
    assert all(gate.entered.acquire(timeout=10) for _ in range(2)), "both threads ask"
    gate.open.set()
    found = collect(client, 6)
    assert {i: r.text for i, r in found.items() if isinstance(r, Completion)} == {
        i: f"question {i}" for i in range(6)
    }
    assert gate.most == 2
    assert client.outstanding == 0
    assert client.finished() == []
    client.close()


def test_a_check_of_the_key_waits_only_so_long_and_what_it_may_cost_is_known() -> None:
    gate = Gate()
    policy = Policy(gate)
    preflight(policy, wait_s=0.05)
    (call,) = policy.abandon()
    assert (call.usage, call.spent.calls) == (None, 1)
    assert call.spent.tokens > 8192
    gate.open.set()
    assert policy.abandon() == []


def test_a_refusal_of_the_key_in_time_is_raised() -> None:
    class Wrong(Gate):
        def complete(self, system: str, user: str, *, n: int) -> Completion:
            raise Fatal("no such key")

    with pytest.raises(Fatal, match="no such key"):
        preflight(Policy(Wrong()), wait_s=20.0)


def test_a_failure_comes_back_with_its_tag() -> None:
    class Broken(Gate):
        def complete(self, system: str, user: str, *, n: int) -> Completion:
            raise ZeroDivisionError

    client: LlmClient[int] = LlmClient(Policy(Broken()))
    client.submit(Prompt("s", "u"), 7)
    assert isinstance(collect(client, 1)[7], Fatal)
    client.close()


def test_answers_are_read_beside_everything_else_and_a_fault_of_the_machine_reaches_whoever_collects() -> None:
    reading, main = threading.Event(), threading.get_ident()

    def read(reply: Completion) -> str:
        assert threading.get_ident() != main
        reading.set()
        return reply.text * 2

    def fail(reply: Completion) -> str:
        raise DeviceError("the interpreter does not start")

    gate = Gate()
    gate.open.set()
    client: LlmClient[int] = LlmClient(Policy(gate), concurrency=1)
    client.submit(Prompt("s", "ab"), 0, read)
    assert reading.wait(20)
    assert collect(client, 1) == {0: "abab"}
    client.submit(Prompt("s", "ab"), 1, fail)
    with pytest.raises(DeviceError, match="interpreter"):
        collect(client, 1)
    client.close()


def test_without_concurrency_the_reply_is_there_at_once_and_always_the_same() -> None:
    runs: list[list[Reply]] = []
    for _ in range(2):
        client: LlmClient[int] = LlmClient(Policy(MockProvider(1), clock=lambda: 0.0), concurrency=0)
        for i in range(3):
            client.submit(prompt(i), i)
        replies = client.finished()
        assert [tag for tag, _ in replies] == [0, 1, 2]
        runs.append([r for _, r in replies])
        client.close()
    assert runs[0] == runs[1]


def test_closing_does_not_wait_for_a_call_that_hangs() -> None:
    gate = Gate()
    client: LlmClient[int] = LlmClient(Policy(gate))
    client.submit(Prompt("s", "u"), 0)
    closed = threading.Thread(target=client.close)
    closed.start()
    closed.join(5)
    assert not closed.is_alive()
    gate.open.set()


def test_a_process_ends_while_a_call_hangs() -> None:
    code = """
import time
from evotune.llm import LlmClient, Policy, Prompt
class Hang:
    name = model = "hang"
    def complete(self, system, user, *, n):
        print("called", flush=True)
        time.sleep(600)
client = LlmClient(Policy(Hang()))
client.submit(Prompt("s", "u"), 0)
time.sleep(0.2)
client.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "called\n"


def test_importing_brings_in_no_sdk() -> None:
    heavy = ["openai", "anthropic", "httpx2", "jinja2", "openevolve", "sklearn", "torch"]
    code = f"import sys, evotune.llm; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
