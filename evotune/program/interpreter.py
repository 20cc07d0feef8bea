"""Runs a program of unknown origin in Monty, in a jail, one process per program.

Two independent walls: Monty has no way to reach files, network, processes or the environment, and
the jail takes them from Monty's process. Both are attacked before they are trusted.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Literal

from pydantic_monty import (
    CollectString,
    Monty,
    MontyError,
    MontyRuntimeError,
    MontySession,
    MontySyntaxError,
    OSPolicy,
    ResourceLimits,
)

from evotune.errors import DeviceError, Rejected, UsageError
from evotune.program import jail
from evotune.program.checking import clip

Isolation = Literal["strict", "standard"]

FEED_S = 0.25
# How long past FEED_S a worker may be deaf (arithmetic on huge integers) before it is killed: a
# program has two feeds, the second runs only if the first kept to its time, so one second in all.
GRACE_S = 0.2
START_S = 5.0
PRINTED_BYTES = 4096
LIMITS: ResourceLimits = {
    "max_feed_duration_secs": FEED_S,
    "max_turn_duration_secs": FEED_S,
    "max_memory": 16 << 20,
    "max_recursion_depth": 200,
    "max_suspensions": 8,
    "max_total_sleep_secs": 0.0,
}
# The same program gives the same configuration whenever and wherever it runs; sleeping takes no time.
POLICY: OSPolicy = {
    "sleep": "zero",
    "process_time": "zero",
    "random_start": {"seed": 0},
    "datetime": datetime.datetime(2026, 1, 1),
}
# What each wall of the language must do, attacked with the limits above: version 0.0.21 had lost
# its memory limit without a word (everruns/bashkit#2298). The messages are those of the language:
# a worker that the jail's limits ended says something else.
ATTACKS: Mapping[str, tuple[str, str]] = {
    "time": ("while True: pass", "time limit exceeded"),
    "memory": ("x = 'a' * 10**7\nx = x + x", "memory limit exceeded"),
    "recursion": ("def f(): return f()\nf()", "RecursionError"),
    "files": ("open('/etc/passwd').read()", "PermissionError"),
    "environment": ("import os\nos.environ['HOME']", "not supported"),
    "sockets": ("import socket", "ModuleNotFoundError"),
}
# Of an attack, before its limit counts as lost.
ATTEMPTS = 3

_started_in: dict[str, int] = {}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protection:
    """What stands between a program and this machine.

    ``proven`` layers withstood live attacks; ``unproven`` says of each other layer why it did not.
    """

    proven: tuple[str, ...]
    unproven: Mapping[str, str]


class Interpreter:
    """Starts a process per program, one ahead of its use. For one thread.

    Raises:
        ImportError: Monty's program is not installed.
        UsageError: ``strict``, and a layer of the jail is not proven on this system; or this
            process is a fork of one that has run programs.
        DeviceError: Monty does not withstand its attacks, or does not start.
    """

    def __init__(self, isolation: Isolation) -> None:
        _refuse_after_fork()
        program = _monty_program()
        self._jail, self.protection = _jail_for(program, isolation)
        self._session: MontySession | None = None
        self._pool: Monty = Monty(
            binary_path=self._jail.script.path if self._jail else program,
            min_processes=1,
            max_processes=1,
            max_checkouts_per_worker=1,
            checkout_timeout=START_S,
            request_timeout=FEED_S + GRACE_S,
            feed_duration_limit_grace=GRACE_S,
            turn_duration_limit_grace=GRACE_S,
        ).__enter__()
        try:
            self._attack()
        except BaseException:
            self.close()
            raise

    def call(self, program: str, expression: str) -> Any:
        """The value of an expression after a program, in a process of their own.

        The value is of the model's making: scalars, containers or proxies of any size up to the
        memory limit.

        Raises:
            Rejected: Stage ``parse``: the text is not a program, raises, or exceeds a limit.
            DeviceError: No worker starts.
        """
        self.prepare()
        session, self._session = self._session, None
        assert session is not None
        printed = CollectString(PRINTED_BYTES)
        try:
            session.feed_run(program, print_callback=printed)
            return session.feed_run(expression, print_callback=printed)
        except MontyError as error:
            raise Rejected("parse", _reason(error)) from None
        except (ValueError, OverflowError, RecursionError, MemoryError) as error:
            # The client converts values as it reads them: nested too deeply, or too large.
            raise Rejected("parse", clip(f"{type(error).__name__}: {error}")) from None
        finally:
            _end(session)

    def prepare(self) -> None:
        """Start the next program's process, so that nobody has to wait for it."""
        problem: Exception | None = None
        for _ in range(2):
            if self._session is not None:
                return
            try:
                checkout = self._pool.checkout(limits=LIMITS, os_policy=POLICY, script_name="candidate.py")
                self._session = checkout.__enter__()
            except (MontyError, TimeoutError, OSError) as error:
                problem = error
        if self._session is None:
            raise DeviceError(f"the interpreter for programs does not start: {clip(str(problem))}")

    def close(self) -> None:
        """End the workers and free the jail; safe to call twice."""
        if self._session is not None:
            session, self._session = self._session, None
            _end(session)
        self._pool.__exit__(None, None, None)
        if self._jail is not None:
            box, self._jail = self._jail, None
            box.script.close()

    def _attack(self) -> None:
        """Every attack must be repelled in the expected way, and a harmless program must run."""
        if self.call("def f():\n    return {'x': 2}", "f()") != {"x": 2}:
            raise DeviceError("the interpreter for programs returns wrong values; programs cannot be run")
        for layer, (attack, wanted) in ATTACKS.items():
            # On a busy machine the time may be up before the memory is: once more, then.
            if not any(self._repels(attack, wanted) for _ in range(ATTEMPTS)):
                raise DeviceError(
                    f"the interpreter for programs has lost its limit on {layer}; reinstall pydantic-monty==1.4.0"
                )

    def _repels(self, attack: str, wanted: str) -> bool:
        try:
            self.call(attack, "None")
        except Rejected as repelled:
            return wanted in repelled.reason
        return False


def _refuse_after_fork() -> None:
    """Monty's client has threads for the whole process; a fork has none and would wait forever."""
    here = os.getpid()
    if _started_in.setdefault("pid", here) != here:
        raise UsageError(
            "programs cannot be run in a fork of a process that has run some; start processes with 'spawn'"
        )


def _jail_for(program: Path, isolation: Isolation) -> tuple[jail.Jail | None, Protection]:
    try:
        box = jail.build(program)
        unproven = dict(box.unproven)
    except OSError as error:
        box, unproven = None, {name: str(error) for name in jail.LAYERS}
    said = "; ".join(f"{name}: {why}" for name, why in unproven.items())
    if unproven and isolation == "strict":
        if box is not None:
            box.script.close()
        raise UsageError(f"strict isolation is not possible here ({said}); use standard, or a newer Linux")
    if unproven:
        _log.warning("programs of a model run behind fewer walls than usual (%s)", said)
    return box, Protection(("language", *(n for n in jail.LAYERS if n not in unproven)), unproven)


def _monty_program() -> Path:
    """The program that came with the installed package, whatever PATH or MONTY_BIN say."""
    try:
        found = [f for f in files("pydantic-monty-runtime") or () if f.name in ("monty", "monty.exe")]
    except PackageNotFoundError:
        found = []
    if not found:
        raise ImportError("pydantic-monty-runtime is not installed")
    return Path(str(found[0].locate())).resolve()


def _end(session: MontySession) -> None:
    with suppress(MontyError, OSError):  # it is over either way
        session.__exit__(None, None, None)


def _reason(error: MontyError) -> str:
    where = ""
    if isinstance(error, (MontyRuntimeError, MontySyntaxError)) and (frames := error.traceback()):
        where = f"line {frames[-1].line}: "
    return clip(where + clip(str(error)))
