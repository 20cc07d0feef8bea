"""Calls a kernel file's functions in a process of its own: they are a user's code, and may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evotune.errors import DeviceError, Rejected
from evotune.kernel import CSource, LoadedKernel, Problem, blame, load_kernel
from evotune.process import Reply, Worker
from evotune.space import Config


class Builder:
    """Gives the C code of configurations, and how it is called; may be used from several threads.

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
        reply = self._ask({"config": dict(config)})
        if reply.kind == "timeout":
            raise Rejected("build", f"build() did not return within {self._timeout_s:g} s")
        if reply.killed:
            raise Rejected("build", f"build() ended its process, which {reply.message}")
        if not reply.ok:
            raise Rejected("build", reply.message)
        if "reason" in reply.value:
            raise Rejected("build", reply.value["reason"])
        return CSource(reply.value["text"], tuple(reply.value["flags"]))

    @cached_property
    def arrays(self) -> int | None:
        """With how many arrays a kernel is called; None if ``inputs`` or ``reference`` does not tell."""
        reply = self._ask({})
        return reply.value.get("arrays") if reply.ok else None

    def _ask(self, request: dict[str, Any]) -> Reply:
        with self._lock:
            if self._is_closed:
                raise DeviceError("the evaluator is closed")
            return self._worker.call(request, self._timeout_s)

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
    kernel = load_kernel(path)
    build = kernel.backend("cpu").build

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "config" not in request:
            return {"arrays": _count(kernel, setup["problem"])}
        try:
            source = build(request["config"], setup["problem"])
        except Exception as error:  # the user's file may raise anything
            return {"reason": blame(error, path, "build")}
        if not isinstance(source, CSource):
            return {"reason": f"build() returned {type(source).__name__}, not a CSource"}
        return {"text": source.text, "flags": list(source.flags)}

    return answer


def _count(kernel: LoadedKernel, problem: Problem) -> int:
    """Of inputs and outputs, which another problem of the kernel may have more of."""
    inputs = kernel.definition.inputs(problem, np.random.default_rng(0))
    return len(inputs) + len(kernel.results(problem, *inputs))
