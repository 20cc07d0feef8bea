"""The parent's side of a long-lived child process."""

from __future__ import annotations

import json
import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from evotune.errors import DeviceError
from evotune.process.child import HEADER, MAX_FRAME_BYTES, frame
from evotune.process.command import POLL_S, child_environment, exit_info, kill_group
from evotune.process.memory import memory_bytes, resident_bytes

_log = logging.getLogger(__name__)

STDERR_TAIL_BYTES = 4096
MEMORY_SHARE = 0.8
LAST_WORDS_CHARS = 300
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from evotune.process.child import serve; serve()"


@dataclass(frozen=True)
class Reply:
    """How one request ended.

    ``value``: the child answered, with JSON. ``error``: it raised the exception class named in
    ``error``. Otherwise the child is gone: it passed the deadline (``timeout``), died (``crash``), or
    wrote what is not a reply (``protocol``). ``message`` says more in all cases but the first.
    """

    kind: Literal["value", "error", "timeout", "crash", "protocol"]
    value: Any = None
    error: str = ""
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.kind == "value"

    @property
    def killed(self) -> bool:
        """Whether the request cost the child its life."""
        return self.kind not in ("value", "error")


class Worker:
    """One long-lived child process that answers requests, one at a time.

    Args:
        entry: ``"package.module:function"``. The child imports it and calls it with ``setup``; it
            returns the function that answers requests. Both speak JSON, at most 1 MiB a frame.
        setup: Sent to every child, also to one that replaces a killed one.
        setup_timeout_s: For starting Python, importing, and ``entry``.
        max_resident_bytes: A child that takes more memory is killed, before the machine runs out of it; most
            of what there is if None.
        environment: Added to what :func:`child_environment` lets through.
    """

    def __init__(
        self,
        entry: str,
        setup: object = None,
        *,
        setup_timeout_s: float = 60.0,
        max_resident_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.starts = 0
        """Children so far."""
        self._entry = entry
        self._setup = setup
        self._setup_timeout_s = setup_timeout_s
        self._max_resident_bytes = max_resident_bytes or int(MEMORY_SHARE * memory_bytes())
        self._environment = dict(environment or {})
        self._child: _Child | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The running child, which also names its process group; None if there is none."""
        return self._child.process.pid if self._child else None

    def start(self) -> Reply:
        """Start a child and set it up, unless one is running; no child is left if that fails."""
        if self._child is not None:
            if not self._child.is_stale():
                return Reply("value")
            _log.warning("worker %d died while idle; starting another", self._child.process.pid)
            self.stop()
        self._child = _Child(self._entry, child_environment(self._environment))
        self.starts += 1
        reply = self._exchange(self._child, self._setup, self._setup_timeout_s)
        if not reply.ok:
            self.stop()
        return reply

    def call(self, request: object, timeout_s: float) -> Reply:
        """Answer to a request, starting a child first if none is running.

        Raises:
            DeviceError: No child could be started and set up.
        """
        started = self.start()
        if not started.ok or self._child is None:
            raise DeviceError(f"the worker {self._entry} does not start: {started.message}")
        return self._exchange(self._child, request, timeout_s)

    def stop(self) -> None:
        """Kill the child and all that it started in its group; safe to call twice."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def interrupt(self) -> None:
        """Kill the child from another thread: who waits for its reply hears of a crash."""
        if pid := self.pid:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _exchange(self, child: _Child, body: object, timeout_s: float) -> Reply:
        nonce = secrets.token_hex(8)
        request = frame({"id": nonce, "body": body})
        deadline = time.monotonic() + timeout_s
        try:
            child.send(request, deadline)
            return _parse(child.receive(deadline, self._max_resident_bytes), nonce)
        except _Broken as broken:
            self.stop()
            message = str(broken) or f"no reply within {timeout_s:g} s"
            return Reply(broken.kind, message=f"{message}{child.last_words()}")
        except BaseException:  # Ctrl-C between request and reply: the reply would go to the next request
            self.stop()
            raise


class _Broken(Exception):
    """The child can no longer be talked to; without a message, it ran out of time."""

    def __init__(self, kind: Literal["timeout", "crash", "protocol"], message: str = "") -> None:
        super().__init__(message)
        self.kind: Literal["timeout", "crash", "protocol"] = kind


class _Child:
    """The parent's end of one child process."""

    def __init__(self, entry: str, environment: Mapping[str, str]) -> None:
        self.socket, theirs = socket.socketpair()
        self.stderr, stderr = os.pipe()
        self._tail = b""
        fd = theirs.fileno()
        # The child sees the parent's import path, as with multiprocessing's spawn, and nothing else
        # of it (-I): no PYTHON* variables and no modules picked up from the current directory.
        path = [str(Path(p).absolute()) for p in sys.path]
        argv = [sys.executable, "-I", "-c", _BOOT, json.dumps(path), entry, str(fd), str(os.getpid())]
        try:
            self.process = (
                _spawner(os.getpid())
                .submit(
                    subprocess.Popen[bytes],
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=(fd,),
                    env=environment,
                    start_new_session=True,
                )
                .result()
            )
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()
            os.close(stderr)
        os.set_blocking(self.stderr, False)

    def is_stale(self) -> bool:
        """Whether it died, or wrote without having been asked, since its last reply."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            return bool(selector.select(0)) or exit_info(self.process.pid) is not None

    def send(self, request: bytes, deadline: float) -> None:
        self.socket.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            self.socket.sendall(request)
        except TimeoutError:
            raise _Broken("timeout") from None
        except OSError:
            raise _Broken("crash", self._death()) from None

    def receive(self, deadline: float, max_resident_bytes: int) -> bytes:
        """The body of exactly one frame."""
        buffer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self.stderr, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                ready = [key.fileobj for key, _ in selector.select(min(left, POLL_S))]
                if self.stderr in ready and not self._drain():
                    selector.unregister(self.stderr)
                if self.socket in ready:
                    buffer += self._receive_some()
                    if (body := _unframe(buffer)) is not None:
                        return body
                elif exit_info(self.process.pid):
                    raise _Broken("crash", self._death())
                elif resident_bytes(self.process.pid) > max_resident_bytes:
                    raise _Broken("crash", f"took more than {max_resident_bytes >> 20} MiB of memory")
        raise _Broken("timeout")

    def last_words(self) -> str:
        """The end of what it wrote to stdout and stderr, ready to append to a message."""
        text = " ".join(self._tail.decode(errors="replace").split())
        return f"; it wrote: {text[-LAST_WORDS_CHARS:]}" if text else ""

    def kill(self) -> None:
        kill_group(self.process)
        with suppress(OSError):
            self._drain()
        self._close()

    def _close(self) -> None:
        self.socket.close()
        os.close(self.stderr)

    def _receive_some(self) -> bytes:
        try:
            chunk = self.socket.recv(1 << 16)
        except OSError:  # reset: it died with our request unread
            chunk = b""
        if not chunk:
            raise _Broken("crash", self._death())
        return chunk

    def _drain(self) -> bool:
        """Read what there is of its output, bounded; False at end of file."""
        try:
            chunk = os.read(self.stderr, 1 << 16)
        except BlockingIOError:
            return True
        self._tail = (self._tail + chunk)[-STDERR_TAIL_BYTES:]
        return bool(chunk)

    def _death(self) -> str:
        """How it ended, asked without reaping it: its number must stay taken until ``killpg``."""
        info = None
        for _ in range(100):  # its pipe closes a moment before it can be waited for
            if info := exit_info(self.process.pid):
                break
            time.sleep(0.01)
        if info is None:
            return "closed its channel"
        if info.si_code == os.CLD_EXITED:
            return f"exited with status {info.si_status}"
        with suppress(ValueError):  # real-time signals have no name
            return f"died of {signal.Signals(info.si_status).name}"
        return f"died of signal {info.si_status}"


# The signal that PR_SET_PDEATHSIG asks for comes when the *thread* that started the child ends, so
# all children are started from one thread that lives as long as this process (and a fork's from its own).
@lru_cache(maxsize=1)
def _spawner(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=f"evotune-spawner-{pid}")


def _unframe(buffer: bytearray) -> bytes | None:
    """The body once it is complete. Only one reply is outstanding, so nothing may follow it."""
    if len(buffer) < HEADER.size:
        return None
    (size,) = HEADER.unpack_from(buffer)
    if size > MAX_FRAME_BYTES:
        raise _Broken("protocol", f"announced a reply of {size} bytes; the limit is {MAX_FRAME_BYTES}")
    if len(buffer) > HEADER.size + size:
        raise _Broken("protocol", "wrote more than one reply")
    return bytes(buffer[HEADER.size :]) if len(buffer) == HEADER.size + size else None


def _parse(body: bytes, nonce: str) -> Reply:
    try:
        message = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _Broken("protocol", "wrote a reply that is not JSON") from None
    fields = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    if fields.get("id") != nonce:
        raise _Broken("protocol", "answered a request that was not asked")
    if set(fields) == {"id", "value"}:
        return Reply("value", fields["value"])
    if set(fields) == {"id", "error", "message"} and all(isinstance(v, str) for v in fields.values()):
        return Reply("error", error=fields["error"], message=fields["message"])
    raise _Broken("protocol", f"wrote a reply with the fields {sorted(fields)}")


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
