"""C to machine code of this CPU: each code is compiled once, and may travel to a machine like this one."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from evotune.cpu.builder import Builder
from evotune.cpu.toolchain import code_bytes, find_compiler
from evotune.errors import DeviceError, Rejected
from evotune.evaluator import Artifact, Device, installed_version
from evotune.kernel import CSource, LoadedKernel, Problem
from evotune.process import Scratch, usable_cores
from evotune.space import Config, text_of
from evotune.trial import Static

CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Library:
    """A compiled configuration; equal ones share it, and its ``digest``."""

    digest: str
    path: Path
    static: Static


class CpuCompiler:
    """Compiles the ``cpu`` backend of a kernel, from as many threads as like.

    Args:
        kernel: A kernel file with that backend.
        problem: Sizes and dtype.
        timeout_s: For one configuration.

    Raises:
        UsageError: No such backend, or no C compiler.
    """

    def __init__(self, kernel: LoadedKernel, problem: Problem, timeout_s: float) -> None:
        kernel.backend("cpu")
        self._builder = Builder(kernel, problem, timeout_s)
        self._timeout_s = timeout_s
        self._digests: dict[str, str] = {}
        self._libraries: dict[str, Future[Library]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._folder = Scratch("cpu")
        try:
            self._toolchain = find_compiler(self._folder.path)
        except BaseException:
            self.close()
            raise
        self.device = _device(self._toolchain.version)

    def __enter__(self) -> CpuCompiler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def compile(self, config: Config) -> Static:
        """Seconds of compiling and ``code_bytes``; equal code with equal flags is compiled once.

        Raises:
            Rejected: At stage ``build`` or ``compile``.
        """
        return self.library(config).static

    def library(self, config: Config) -> Library:
        """What :meth:`compile` made, a shared object."""
        key = text_of(config)
        source = None
        if (digest := self._digests.get(key)) is None:
            source = self._builder.source(config)
            digest = hashlib.sha256("\0".join([source.text, *source.flags]).encode()).hexdigest()[:32]
        with self._lock:
            if self._closing.is_set():
                raise DeviceError("the evaluator is closed")
            is_mine = digest not in self._libraries
            future = self._libraries.setdefault(digest, Future())
            self._digests[key] = digest
        if is_mine:
            assert source is not None
            try:
                future.set_result(self._compile(digest, source))
            except BaseException as error:  # whoever waits for this code must hear of it too
                future.set_exception(error)
        try:
            return future.result()
        except Rejected as rejected:  # anew: one exception raised in several threads grows its traceback
            raise Rejected(rejected.stage, rejected.reason) from None

    def pack(self, config: Config) -> Artifact:
        """What :meth:`compile` made, with its bytes."""
        library = self.library(config)
        return Artifact(library.static, {library.path.name: library.path.read_bytes()})

    def accept(self, config: Config, artifact: Artifact) -> None:
        """Take a configuration as compiled that another compiler packed."""
        ((name, content),) = artifact.files.items()
        path = self._folder.path / Path(name).name
        with self._lock:
            if self._closing.is_set():
                raise DeviceError("the evaluator is closed")
            self._digests[text_of(config)] = path.stem
            if path.stem in self._libraries:
                return
            future = self._libraries[path.stem] = Future()
        try:
            path.write_bytes(content)
            future.set_result(Library(path.stem, path, artifact.static))
        except BaseException as error:
            future.set_exception(error)
            raise

    def compile_harness(self) -> Path:
        """The shared object by which kernels are called and timed."""
        harness = self._folder.path / "harness.so"
        self._toolchain.compile(Path(__file__).with_name("harness.c"), harness, timeout_s=self._timeout_s)
        return harness

    def close(self) -> None:
        """Kill running compilers, and delete all files; safe to call twice."""
        self._closing.set()
        self._builder.close()
        # Compilers write into the folder until they have been killed.
        wait(list(self._libraries.values()), CLOSE_TIMEOUT_S)
        self._folder.cleanup()

    def _compile(self, digest: str, source: CSource) -> Library:
        text = self._folder.path / f"{digest}.c"
        library = text.with_suffix(".so")
        text.write_text(source.text + _call(self._builder.arrays), encoding="utf-8")
        seconds = self._toolchain.compile(
            text, library, source.flags, timeout_s=self._timeout_s, stop=self._closing
        )
        text.unlink()
        size = code_bytes(library)
        return Library(digest, library, Static(seconds, {} if size is None else {"code_bytes": float(size)}))


def _call(arrays: int | None) -> str:
    """C to put behind a kernel's, which does not compile where that has not so many parameters, and else is no
    code: the call is not evaluated. What the compiler says of it begins with the name that ``#line`` gives."""
    if arrays is None:
        return ""
    wanted = f"evotune_kernel must have {arrays} parameters, one for each input and output"
    nulls = ", ".join(["0"] * arrays)
    return f'\n#line 1 "{wanted}"\nenum {{ evotune_call = sizeof(evotune_kernel({nulls}), 0) }};\n'


def _device(compiler: str) -> Device:
    versions = {
        "compiler": compiler,
        "python": platform.python_version(),
        **{package: installed_version(package) for package in ("numpy", "evotune")},
    }
    facts: dict[str, float | str] = {
        "cores": float(usable_cores()),
        "load_1min": os.getloadavg()[0],
    }
    return Device("cpu", _cpu_model(), versions, facts)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # Not given on Arm, where the architecture is all that is left.
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())
