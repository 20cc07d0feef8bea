"""Calls a kernel file's ``build`` in a process of its own: it is a user's code, and may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evotune.errors import DeviceError, Rejected
from evotune.kernel import CSource, LoadedKernel, Problem, blame, load_kernel
from evotune.process import Worker
from evotune.space import Config


class Builder:
    """Gives the C code of configurations; may be called from several threads.

    Args:
        kernel: A kernel file with a ``cpu`` backend.
        problem: Sizes and dtype.
        timeout_s: For one configuration.
    """

    def __init__(self, kernel: LoadedKernel, problem: Problem, timeout_s: float) -> None:
        setup = {"kernel": str(kernel.path.resolve()), "problem": dict(problem)}
        self._worker = Worker("evotune.cpu.builder:open_session", setup)
        self._lock = threading.Lock()
        self._timeout_s = timeout_s
        self._is_closed = False

    def source(self, config: Config) -> CSource:
        """What ``build`` returns.

        Raises:
            Rejected: At stage ``build``: it raised, did not return, or returned something else.
        """
        with self._lock:
            if self._is_closed:
                raise DeviceError("the evaluator is closed")
            reply = self._worker.call(dict(config), self._timeout_s)
        if reply.kind == "timeout":
            raise Rejected("build", f"build() did not return within {self._timeout_s:g} s")
        if reply.killed:
            raise Rejected("build", f"build() ended its process, which {reply.message}")
        if not reply.ok:
            raise Rejected("build", reply.message)
        if "reason" in reply.value:
            raise Rejected("build", reply.value["reason"])
        return CSource(reply.value["text"], tuple(reply.value["flags"]))

    def close(self) -> None:
        """Kill the process; who waits for it hears of that. Safe to call twice."""
        self._is_closed = True
        while not self._lock.acquire(timeout=0.1):
            self._worker.interrupt()
        try:
            self._worker.stop()
        finally:
            self._lock.release()


def open_session(setup: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Entry of the process: ``setup`` has ``kernel`` (path) and ``problem``."""
    path = Path(setup["kernel"])
    build = load_kernel(path).backend("cpu").build

    def answer(config: dict[str, Any]) -> dict[str, Any]:
        try:
            source = build(config, setup["problem"])
        except Exception as error:  # the user's file may raise anything
            return {"reason": blame(error, path, "build")}
        if not isinstance(source, CSource):
            return {"reason": f"build() returned {type(source).__name__}, not a CSource"}
        return {"text": source.text, "flags": list(source.flags)}

    return answer
