"""What holds for every test: no network, no API key, no change of the global random generators."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import random
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent
# Real compilers, servers and processes: left out of `scripts/test quick`.
SLOW = (
    "compare/",
    "cpu/test_cpu_evaluator",
    "gpu/",
    "llm/test_faults",
    "llm/test_runs",
    "llm/test_secrets",
    "program/test_corpus",
    "program/test_jail",
    "program/test_sandbox",
    "test_cli",
    "test_process",
)
LOCAL = {"localhost", "", None}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    reasons = {"torch": _no_torch(), "gpu": _no_gpu()}
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_means_ctrl_c() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and they and their children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _no_torch() -> str | None:
    return None if importlib.util.find_spec("torch") else "torch is not installed"


def _no_gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver (nvidia-smi not found)"
    if _no_torch():
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA device"


@pytest.fixture(autouse=True)
def _no_surprises_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's keys and settings must not decide what a test does, nor be spent by it."""
    for name in list(os.environ):
        if name.startswith(("EVOTUNE_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this process only for this machine."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None  # a Unix socket's is a path
        if not _is_local(host):
            raise RuntimeError(f"a test tried to reach {host!r}; tests use no network")

    def guarded(method):
        def call(self, address, *rest):
            check(address)
            return method(self, address, *rest)

        return call

    def guarded_look_up(host, *rest, **named):
        check((host,))
        return look_up(host, *rest, **named)

    monkeypatch.setattr(socket.socket, "connect", guarded(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    try:
        return host in LOCAL or ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone() -> Iterator[None]:
    """A library that draws from or reseeds the global generators changes its caller's results."""
    before, before_numpy = random.getstate(), np.random.get_state()
    yield
    assert random.getstate() == before, "the test changed the state of `random`"
    after_numpy = np.random.get_state()
    assert after_numpy[2:] == before_numpy[2:], "the test changed the state of `numpy.random`"
    assert np.array_equal(after_numpy[1], before_numpy[1]), "the test changed the state of `numpy.random`"
