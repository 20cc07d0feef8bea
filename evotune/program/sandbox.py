"""From the text of a model to a legal configuration."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from evotune.errors import DeviceError, Rejected, UsageError
from evotune.program.answers import Proposal, parse_object
from evotune.program.checking import check, clip
from evotune.program.rendering import read_back
from evotune.space import Config, ConfigSpace, Value

if TYPE_CHECKING:
    from evotune.program.interpreter import Interpreter, Isolation, Protection

Problem = Mapping[str, Value]
T = TypeVar("T")

PROGRAM_BYTES = 32 << 10
# The pool has deadlines of its own; this one is for the day on which they fail.
ANSWER_S = 60.0

_DEFINITION = re.compile(r"^def[ \t]+get_kernel_config[ \t]*\([ \t]*(\)?)", re.MULTILINE)
# Characters that make a program look different from what it is: controls, zero-width, direction, tags.
_DECEPTIVE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f\u0085\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

_log = logging.getLogger(__name__)


class Sandbox:
    """Runs programs that nobody has read.

    Nothing is started before the first program that needs it: JSON and unchanged texts of
    :func:`~evotune.program.render` do not. Safe to use from several threads; programs take turns.

    Args:
        isolation: ``strict`` refuses to run programs unless every layer of the jail withstands live
            attacks on this system; ``standard`` does with what there is, and says so once in the log.
    """

    def __init__(self, isolation: Isolation = "standard") -> None:
        if isolation not in ("strict", "standard"):
            raise UsageError(f"isolation {isolation!r} is not known; use 'strict' or 'standard'")
        self._isolation: Isolation = isolation
        self._lock = Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._interpreter: Interpreter | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, source: str, space: ConfigSpace, problem: Problem | None = None) -> dict[str, Value]:
        """The configuration that a program or a JSON object stands for.

        ``problem`` (sizes, dtype, device facts) is handed to a ``get_kernel_config`` that takes an
        argument.

        Raises:
            Rejected: Stage ``parse``: not a program or it failed; ``validate``: an illegal configuration.
            UsageError: ``problem`` is not flat, strict isolation is not possible here, or this is a fork
                of a process that has run programs.
            DeviceError: The interpreter does not start or has lost a limit.
        """
        call = _call(source, problem)
        if (known := read_back(source, space)) is not None:
            return known
        if source.lstrip().startswith("{"):
            return check(parse_object(source), space)
        _require_one(source)
        return check(self._on_thread(lambda: self._started().call(source, call)), space)

    def run_each(
        self, source: str, spaces: Sequence[ConfigSpace], problems: Sequence[Problem]
    ) -> list[dict[str, Value]]:
        """The configuration that a program stands for at each of several problems; one process runs it for
        all of them, within the limits of one run.

        Raises:
            Rejected: As :meth:`run` does, for whichever problem it is.
        """
        calls = ", ".join(_call(source, problem) for problem in problems)
        _require_one(source)
        found = self._on_thread(lambda: self._started().call(source, f"[{calls}]"))
        return [check(value, space) for value, space in zip(found, spaces, strict=True)]

    def resolve(
        self, proposal: Proposal, space: ConfigSpace, problem: Problem | None = None, base: Config | None = None
    ) -> dict[str, Value]:
        """The configuration of one proposal of an answer; see :meth:`run`.

        A JSON object may name only what it changes with respect to ``base``.
        """
        if proposal.config is not None:
            return check(dict(proposal.config), space, base)
        return self.run(proposal.text, space, problem)

    def protection(self) -> Protection:
        """What stands between a program and this machine; starts and attacks it if need be."""
        return self._on_thread(lambda: self._started().protection)

    def close(self) -> None:
        """End all processes; the next program starts them again."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            thread.submit(self._stop).result(ANSWER_S)
            thread.shutdown()

    def _on_thread(self, work: Callable[[], T]) -> T:
        with self._lock:
            if self._pid != os.getpid():  # a fork copied neither the thread nor the workers
                self._thread, self._interpreter, self._pid = None, None, os.getpid()
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "evotune-sandbox")
            answer = self._thread.submit(work)
            # Queued behind, so that the next program finds its process ready.
            self._thread.submit(self._prepare)
        try:
            return answer.result(ANSWER_S)
        except FutureTimeoutError:
            raise DeviceError(f"the interpreter for programs has not answered for {ANSWER_S:.0f} s") from None

    def _started(self) -> Interpreter:
        if self._interpreter is None:
            try:
                # Monty is optional, and a run without programs need not spend the time.
                from evotune.program.interpreter import Interpreter

                self._interpreter = Interpreter(self._isolation)
            except ImportError as error:
                reason = f"programs need pydantic-monty==1.4.0 ({error}); without it only JSON is accepted"
                raise Rejected("parse", clip(reason)) from None
        return self._interpreter

    def _prepare(self) -> None:
        if self._interpreter is not None:
            try:
                self._interpreter.prepare()
            except DeviceError as error:  # the next program meets it and reports it
                _log.debug("%s", error)

    def _stop(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.close()


def _gate(source: object) -> None:
    """What can be refused at sight. The text is not parsed here: CPython's parser has crashed on less."""
    if type(source) is not str or not source.strip():
        raise Rejected("parse", "the program is empty" if type(source) is str else "the program is not text")
    if (size_bytes := len(source.encode("utf-8", "replace"))) > PROGRAM_BYTES:
        raise Rejected("parse", f"the program has {size_bytes} bytes; {PROGRAM_BYTES} are allowed")
    if found := _DECEPTIVE.search(source):
        line = source.count("\n", 0, found.start()) + 1
        raise Rejected("parse", f"line {line}: invisible character U+{ord(found.group()):04X}; remove it")


def _require_one(source: str) -> None:
    if (found := len(_DEFINITION.findall(source))) != 1:
        raise Rejected("parse", f"expected one top-level def get_kernel_config(), found {found}")


def _call(source: str, problem: Problem | None) -> str:
    """How a program is asked for its configuration."""
    argument = _literal(problem)
    _gate(source)
    takes_none = _DEFINITION.findall(source)[:1] == [")"] or problem is None
    return "get_kernel_config()" if takes_none else f"get_kernel_config({argument})"


def _literal(problem: Problem | None) -> str:
    """A problem as the text of a dict."""
    for name, value in (problem or {}).items():
        finite = type(value) is not float or math.isfinite(value)
        if type(name) is not str or type(value) not in (bool, int, float, str) or not finite:
            raise UsageError(
                f"problem[{name!r}] = {value!r} is a {type(value).__name__}; use bool, int, finite float or str"
            )
    return ascii(dict(problem or {}))
