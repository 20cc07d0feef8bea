"""Triton to machine code for any NVIDIA architecture, on the CPU, in processes that can be killed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evotune import files
from evotune.errors import DeviceError, Rejected, UsageError
from evotune.gpu.target import Target
from evotune.kernel import LoadedKernel, Problem
from evotune.process import Reply, Scratch, Worker, run_killable, usable_cores
from evotune.space import Config

_log = logging.getLogger(__name__)

CACHE_FORMAT = 3
OLDEST_TRITON = (3, 6)
ARGUMENTS_TIMEOUT_S = 600.0  # a reference at full size, at worst
PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Compiled:
    """What a configuration became. ``blocks`` is what each of its kernels needs for one block, ``kernels`` are
    their folders in Triton's cache."""

    compile_s: float
    facts: Mapping[str, float]
    blocks: tuple[Mapping[str, int], ...]
    kernels: tuple[str, ...] = ()


class CrossCompiler:
    """Compiles the ``cuda`` backend of a kernel, several configurations at once.

    Args:
        kernel: A kernel file with a ``cuda`` backend.
        problem: Sizes and dtype; what is known of the device comes with each target.
        jobs: Processes.
        timeout_s: After which a compilation is killed.
        cache: Folder in which results are kept from run to run; None keeps none.
        triton_cache: Folder for Triton's own cache, shared with whoever is to launch what was
            compiled here; one that goes with this object if None.

    Raises:
        UsageError: No ``cuda`` backend, or Triton or torch is missing or too old.
    """

    def __init__(
        self,
        kernel: LoadedKernel,
        problem: Problem,
        *,
        jobs: int | None = None,
        timeout_s: float = 60.0,
        cache: Path | None = None,
        triton_cache: Path | None = None,
    ) -> None:
        kernel.backend("cuda")
        require_triton()
        self._kernel = kernel
        self._problem = dict(problem)
        self._timeout_s = timeout_s
        self._cache = cache
        self._closing = threading.Event()
        self._arguments: Any = None
        self._arguments_lock = threading.Lock()
        self._folder = Scratch("triton")
        environment = {
            "TRITON_CACHE_DIR": str(triton_cache or self._folder.path),
            "TMPDIR": str(self._folder.path),  # who is killed leaves what was to be assembled
        }
        setup = {"kernel": str(kernel.path.resolve()), "problem": self._problem}
        self.jobs = jobs or usable_cores()
        self._workers = [
            Worker("evotune.gpu.headless:open_session", setup, environment=environment) for _ in range(self.jobs)
        ]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()  # the last one used is warm
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> CrossCompiler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def compile(self, config: Config, target: Target) -> Compiled:
        """Facts of a configuration on a target; may be called from any thread.

        Raises:
            Rejected: At stage ``build``, ``compile``, ``limits``, ``timeout`` or ``crash``.
            UsageError: The kernel's ``inputs`` or ``reference`` fails.
            DeviceError: No compiling process starts, or this object is closed.
        """
        device = dict(target.facts)
        path = self._path(config=dict(config), device=device)
        answer = _load(path)
        if answer is None:
            request = {"config": dict(config), "device": device, "arguments": self._get_arguments()}
            reply = self._ask(request, self._timeout_s)
            if reply.kind == "error":
                raise Rejected("compile", reply.message)
            if reply.killed:
                raise Rejected("timeout" if reply.kind == "timeout" else "crash", reply.message)
            answer = reply.value
            _store(path, answer)
        if "stage" in answer:
            raise Rejected(answer["stage"], answer["reason"])
        return Compiled(answer["compile_s"], answer["facts"], tuple(answer["blocks"]), tuple(answer["kernels"]))

    def close(self) -> None:
        """Kill all compiling processes; safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        for worker in self._workers:  # a thread that waits for one hears of a crash
            if pid := worker.pid:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        ended = [self._idle.get() for _ in self._workers]
        for worker in ended:
            worker.stop()
            self._idle.put(worker)  # for threads that still wait for one: they find this object closed
        self._folder.cleanup()

    def _get_arguments(self) -> Any:
        with self._arguments_lock:
            if self._arguments is None:
                path = self._path(arguments=True)
                answer = _load(path)
                if answer is None:
                    reply = self._ask({}, ARGUMENTS_TIMEOUT_S)
                    if not reply.ok:
                        name = self._kernel.path.name
                        raise UsageError(f"inputs() or reference() of {name} fails: {reply.message}")
                    answer = reply.value
                    _store(path, answer)
                self._arguments = answer["arguments"]
            return self._arguments

    def _ask(self, request: Mapping[str, Any], timeout_s: float) -> Reply:
        worker = self._idle.get()
        try:
            if self._closing.is_set():
                raise DeviceError("the compiler is closed")
            return worker.call(request, timeout_s)
        finally:
            self._idle.put(worker)

    def _path(self, **what: Any) -> Path | None:
        """Where a result is kept. The name depends on everything that the result does."""
        if self._cache is None:
            return None
        switches = {k: v for k, v in os.environ.items() if k.startswith("TRITON_") and k != "TRITON_CACHE_DIR"}
        key = [CACHE_FORMAT, self._kernel.source_hash, self._problem, compiler_versions(), switches, what]
        text = json.dumps(key, sort_keys=True)
        return self._cache / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.json"


def default_cache() -> Path:
    """The folder for results under the user's cache."""
    return files.cache_folder("compiled")


def require_triton() -> None:
    """Raise :class:`UsageError` if torch or a usable Triton is missing."""
    install = "pip install 'evotune[gpu]'"
    missing = [name for name in ("triton", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"compiling for a GPU needs {' and '.join(missing)}; no GPU is needed: {install}")
    version = importlib.metadata.version("triton")
    if tuple(int(n) for n in version.split(".")[:2]) < OLDEST_TRITON:
        wanted = ".".join(map(str, OLDEST_TRITON))
        raise UsageError(f"triton {version} is too old, {wanted} or later is needed: {install}")


@lru_cache(maxsize=1)
def compiler_versions() -> dict[str, str]:
    """Versions of all that turns Triton, or Helion, into machine code, found without importing it."""
    packages = [name for name in ("triton", "torch", "helion") if importlib.util.find_spec(name)]
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = sys.version.split()[0]
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    for tool in ("ptxas", "ptxas-blackwell"):
        bundled = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / tool
        path = os.environ.get(f"TRITON_{tool.upper().replace('-', '_')}_PATH") or str(bundled)
        said: Sequence[str] = run_killable([path, "--version"], PROBE_TIMEOUT_S).output.split()
        versions[tool] = said[-1] if said else "unknown"
    return versions


def _load(path: Path | None) -> dict[str, Any] | None:
    """A kept result; None if there is none, or none that can be read."""
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("ignoring the kept result %s: %s", path, error)
        return None


def _store(path: Path | None, answer: Mapping[str, Any]) -> None:
    """Keep a result; whoever reads at the same time sees all of it or nothing."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, json.dumps(answer))
    except OSError as error:  # a full or read-only disk costs time, not the result
        _log.warning("cannot keep a result in %s: %s", path.parent, error)
