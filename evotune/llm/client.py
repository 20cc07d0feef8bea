"""Asks a model in the background, so that measuring never waits for one."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from evotune.errors import DeviceError, Fatal, ProviderError
from evotune.llm.policy import Policy
from evotune.llm.provider import Completion
from evotune.llm.secret import NO_SECRET, printable

Tag = TypeVar("Tag")
Read = Callable[[Completion], Any]

# A wrong key is refused within a second; a server that takes longer may be slow, and nobody waits for it.
PREFLIGHT_S = 4.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """One question; ``n`` is the number of configurations that it asks for."""

    system: str
    user: str
    n: int = 8


def preflight(policy: Policy, wait_s: float = PREFLIGHT_S) -> None:
    """:meth:`Policy.preflight`, for as long as anyone is willing to wait for it.

    Raises:
        Fatal: The model refuses, and did so in time.
    """
    refused: list[Fatal] = []

    def check() -> None:
        try:
            policy.preflight()
        except Fatal as fatal:
            refused.append(fatal)

    # A daemon, like those below.
    thread = threading.Thread(target=check, name="evotune-llm-preflight", daemon=True)
    thread.start()
    thread.join(wait_s)
    if refused:
        raise refused[0]
    if thread.is_alive():
        _log.warning("the model does not answer yet: nothing came within %.0f s", wait_s)


class LlmClient(Generic[Tag]):
    """A few threads that ask; replies are collected when it suits the caller, however late.

    Args:
        policy: Every call goes through it.
        concurrency: Calls at once. 0 asks within :meth:`submit`: for models that answer at once,
            such as the mock, whose runs are then the same every time.
    """

    def __init__(self, policy: Policy, *, concurrency: int = 2) -> None:
        self.policy = policy
        self._asked: queue.SimpleQueue[tuple[Prompt, Tag, Read] | None] = queue.SimpleQueue()
        self._replied: queue.SimpleQueue[tuple[Tag, Any]] = queue.SimpleQueue()
        self._outstanding = 0
        self._is_closed = False
        # Daemons: a call to a server that hangs must not hold up the end of the process.
        self._threads = [
            threading.Thread(target=self._work, name=f"evotune-llm-{i}", daemon=True) for i in range(concurrency)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def outstanding(self) -> int:
        """Prompts submitted whose replies :meth:`finished` has not returned yet."""
        return self._outstanding

    @property
    def state(self) -> str:
        """``ready``, ``asked``, or why nobody is asked for now; for a person."""
        if (state := self.policy.state) != "ok":
            return state.replace("open for", "silent, asked again in")
        return "asked" if self._outstanding else "ready"

    def submit(self, prompt: Prompt, tag: Tag, read: Read = lambda reply: reply) -> None:
        """Have a prompt asked; ``tag`` comes back with what ``read`` makes of the reply, in the thread that
        asked: to read an answer may take a second, too."""
        if self._is_closed:
            raise RuntimeError("the client is closed")
        self._outstanding += 1
        if self._threads:
            self._asked.put((prompt, tag, read))
        else:
            self._replied.put((tag, self._ask(prompt, read)))

    def finished(self) -> list[tuple[Tag, Any]]:
        """Replies since the last call, as they were read, or a ``ProviderError`` for each that did not come.

        Raises:
            DeviceError: Reading an answer found the machine at fault.
        """
        replies: list[tuple[Tag, Any]] = []
        while True:
            try:
                tag, reply = self._replied.get_nowait()
            except queue.Empty:
                break
            if isinstance(reply, DeviceError):
                raise reply
            replies.append((tag, reply))
        self._outstanding -= len(replies)
        return replies

    def close(self) -> None:
        """Ask nothing more; calls under way are abandoned with their threads. Returns at once."""
        self._is_closed = True
        for _ in self._threads:
            self._asked.put(None)

    def _work(self) -> None:
        while (job := self._asked.get()) is not None and not self._is_closed:
            prompt, tag, read = job
            self._replied.put((tag, self._ask(prompt, read)))

    def _ask(self, prompt: Prompt, read: Read) -> Any:
        try:
            return read(self.policy.ask(prompt.system, prompt.user, n=prompt.n))
        except (ProviderError, DeviceError) as error:
            return error
        except Exception as error:  # a thread that dies silently would leave its prompt outstanding for ever
            return Fatal(
                "asking the model failed: " + printable(NO_SECRET.redact(f"{type(error).__name__}: {error}"))
            )
