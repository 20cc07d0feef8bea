"""The entry of a worker that fails in every way a child process can; see test_process.py."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

CHANNEL = int(sys.argv[3])
"""The protocol's file descriptor, which a stray write can always reach."""


def frame(size: int, body: bytes) -> bytes:
    return struct.pack("!I", size) + body


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def write_and_hang(data: bytes) -> None:
    os.write(CHANNEL, data)
    time.sleep(60)


def fork_a_child_that_keeps_the_pipe() -> None:
    if os.fork() == 0:
        time.sleep(60)
    os._exit(1)


def fail_in_unprintable_way() -> None:
    raise Unprintable


def fault_raise() -> None:
    raise ValueError("bad config")


def reply_with_stale_id() -> None:
    body = json.dumps({"id": "0123456789abcdef", "value": 1.0}).encode()
    write_and_hang(frame(len(body), body))


def reply_twice() -> None:
    """With the right id, which code in the same process can always find."""
    caller = sys._getframe()
    while "message" not in caller.f_locals:
        assert caller.f_back
        caller = caller.f_back
    body = json.dumps({"id": caller.f_locals["message"]["id"], "value": 1.0}).encode()
    write_and_hang(frame(len(body), body) * 2)


def fork_a_child_and_go_on() -> float:
    if os.fork() == 0:
        time.sleep(60)
        os._exit(1)
    return 1.25


def drip() -> None:
    """A reply that is always on its way: a byte now and then looks like life."""
    for byte in frame(1000, b" " * 1000):
        os.write(CHANNEL, bytes([byte]))
        time.sleep(0.05)


def pickle_that_leaves_a_file() -> bytes:
    body = b"cos\nsystem\n(S'touch " + os.environ["EVOTUNE_TEST_FILE"].encode() + b"'\ntR."
    return frame(len(body), body)


def grow() -> None:
    """By 1 GiB, in a second and a half: no machine is to suffer if nobody watches."""
    kept: list[bytes] = []
    for _ in range(128):
        kept.append(b"x" * (8 << 20))
        time.sleep(0.01)


def close_the_channel() -> None:
    socket.socket(fileno=CHANNEL).close()
    time.sleep(60)


FAULTS: dict[str, Any] = {
    "ok": lambda: 1.25,
    "raise": fault_raise,
    "unprintable": fail_in_unprintable_way,
    "segv": lambda: ctypes.string_at(0),
    "exit0": lambda: os._exit(0),
    "sysexit": lambda: sys.exit(3),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "hang": lambda: time.sleep(60),
    "hang_gil": lambda: ctypes.PyDLL(None).sleep(60),
    "sigstop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "partial_then_hang": lambda: write_and_hang(frame(1000, b'{"a')),
    "garbage": lambda: write_and_hang(b"\xff" * 64),
    "not_json": lambda: write_and_hang(frame(3, b"abc")),
    "reply_twice": reply_twice,
    "stale_id": reply_with_stale_id,
    "close_channel": close_the_channel,
    "grandchild_keeps_pipe": fork_a_child_that_keeps_the_pipe,
    "not_serialisable": lambda: FAULTS["ok"],
    "not_a_number": lambda: float("nan"),
    "huge": lambda: "A" * (8 << 20),
    "fork": fork_a_child_and_go_on,
    "drip": drip,
    "pickle": lambda: write_and_hang(pickle_that_leaves_a_file()),
    "grow": grow,
    "stdout_spam": lambda: os.write(1, b"x" * (1 << 20)),
}


def measuring(setup: Any) -> Any:
    """The entry of a worker of a :class:`~evotune.supervisor.Supervisor`; a payload names the fault."""
    handle = entry(setup)
    wrong: dict[str, Any] = {
        "wrong_shape": {"runs": "none", "tainted": False},
        "too_few": {"runs": [], "tainted": False},
        "no_object": 1.25,
    }

    def measure(request: Any) -> Any:
        (fault,) = request["runs"]
        if fault in wrong:
            return wrong[fault]
        if fault == "incorrect":
            return {"runs": [{"stage": "incorrect", "reason": "3 of 4 values are wrong"}], "tainted": False}
        handle(fault)
        return {"runs": [{"samples_ms": [1.25], "context": {}}], "tainted": False}

    return measure


def entry(setup: Any) -> Any:
    if setup == "refuse":
        raise ValueError("the set-up is refused")
    if setup == "hang":
        time.sleep(60)
    if setup == "die":
        os._exit(7)

    def handle(request: Any) -> Any:
        if isinstance(request, str):
            return FAULTS[request]()
        if request["do"] == "environment":
            return dict(os.environ)
        if request["do"] == "spam_later":
            # A second reply to a request that has already been answered.
            threading.Timer(0.1, lambda: os.write(CHANNEL, b"stray")).start()
            return None
        return request

    return handle
