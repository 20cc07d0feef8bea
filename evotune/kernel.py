"""What a kernel file must offer, and how one is loaded.

A kernel file is a plain Python module. A user copies one, edits it, and runs
``evotune run my_kernel.py``; the module itself satisfies :class:`Kernel`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from evotune.errors import UsageError, nearest
from evotune.files import digest
from evotune.process import run_killable
from evotune.space import Config, ConfigSpace

Array = npt.NDArray[Any]
Problem = Mapping[str, int | float | str]
"""Sizes of one problem and its ``dtype``, flat: ``{"m": 512, "n": 512, "dtype": "float32"}``."""


@dataclass(frozen=True)
class CSource:
    """C code of one configuration for the CPU.

    ``text`` defines ``void evotune_kernel(const T *in0, …, T *out0, …)``: the arrays of ``inputs`` in
    order, C-contiguous, then the outputs, of the shapes and dtypes of the reference's results: all that it
    writes; another number of parameters does not compile. Sizes and tunables are compile-time constants. The
    function runs on the calling thread only.
    """

    text: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backend:
    """One way to build a kernel: its tunables and how a configuration becomes code.

    ``build`` returns a :class:`CSource` for ``cpu``; for ``cuda`` a function that takes the inputs
    and then the outputs as CUDA tensors and launches. It imports torch and triton itself, when called.
    For ``cuda`` the problem of both says of the device, beside the sizes, its ``capability`` (90 for an
    H100, 100 for a B200) and its number of ``multiprocessors``.
    """

    space: Callable[[Problem], ConfigSpace]
    build: Callable[[Config, Problem], Any]
    default_shape: str = "default"


@dataclass(frozen=True)
class Tolerance:
    """A result is right if ``|out - ref| <= atol + rtol * |ref|`` everywhere.

    The dtype by which a kernel file names it is the problem's. Of integers it is their own, and they must be
    equal where it is not named: indices that are nearly right are wrong.
    """

    rtol: float
    atol: float


# As torch and Triton call them.
SHORT_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name, ``bfloat16`` and those of eight bits too, which NumPy itself does not have.

    Raises:
        UsageError: There is no such dtype, or the package that defines it is missing.
    """
    if name in SHORT_FLOATS:
        try:
            return np.dtype(getattr(import_module("ml_dtypes"), name))
        except ImportError:
            raise UsageError(f"{name} in NumPy needs the package ml_dtypes; pip install ml_dtypes") from None
    try:
        return np.dtype(name)
    except TypeError:
        raise UsageError(
            f"{name!r} is no dtype; use one of NumPy's, such as float16, or one of {', '.join(SHORT_FLOATS)}"
        ) from None


class Kernel(Protocol):
    """The names that a kernel file defines."""

    name: str
    shapes: Mapping[str, Problem]
    backends: Mapping[str, Backend]
    tolerance: Mapping[str, Tolerance]
    """By dtype."""

    def inputs(self, problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
        """Fresh inputs, C-contiguous, in the order in which the kernel takes them."""
        ...

    def reference(self, problem: Problem, *inputs: Array) -> Array | tuple[Array, ...]:
        """The right answer, computed as plainly as possible, in the output's dtype; a tuple, if the kernel
        has several outputs, in the order in which it takes them.

        A kernel changes none of its inputs. For one that works in place, take the array that it is to change
        as an input, and let it write the changed one to an output.
        """
        ...

    def flops(self, problem: Problem) -> float:
        """Floating-point operations that the problem needs."""
        ...

    def bytes_moved(self, problem: Problem) -> float:
        """Bytes that must be read and written at least once."""
        ...


IMPORT_TIMEOUT_S = 60.0
_IMPORTED = 113
_TRY = f"""
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from pathlib import Path
from evotune.errors import UsageError
from evotune.kernel import load_kernel
try:
    load_kernel(Path(sys.argv[2]))
except UsageError:
    pass
os._exit({_IMPORTED})
"""

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
REQUIRED = ("name", "shapes", "backends", "tolerance", "inputs", "reference", "flops", "bytes_moved")


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel file, checked, with the hash of its text.

    ``neighbours`` has the modules of the user's that the file imports from its own folder or below, by
    their paths in it.
    """

    path: Path
    source: str
    definition: Kernel
    neighbours: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def source_hash(self) -> str:
        """Of the file's text, and of its neighbours' if it has any."""
        beside = [f"{name} {hashlib.sha256(text).hexdigest()}" for name, text in sorted(self.neighbours.items())]
        return digest("\n".join([self.source, *beside]))

    def results(self, problem: Problem, *inputs: Array) -> tuple[Array, ...]:
        """What ``reference`` gives for each output."""
        found = self.definition.reference(problem, *inputs)
        return found if isinstance(found, tuple) else (found,)

    def backend(self, name: str) -> Backend:
        """The build for a backend; :class:`UsageError` if the file has none."""
        if name not in self.definition.backends:
            has = sorted(self.definition.backends)
            raise UsageError(f"{self.path} has no {name!r} backend, only {has}; add one to its `backends`")
        return self.definition.backends[name]

    def problem(self, shape: str | None, backend: str) -> Problem:
        """The sizes of a named shape, or of the backend's default one."""
        name = shape or self.backend(backend).default_shape
        if name not in self.definition.shapes:
            known = list(self.definition.shapes)
            raise UsageError(f"{self.path} has no shape {name!r}{nearest(name, known)}; it has {known}")
        return self.definition.shapes[name]


def load_kernel(path: Path) -> LoadedKernel:
    """Import a kernel file and check that it is complete.

    ``FILE.py:NAME`` is a Triton kernel in a module of the user's; :mod:`evotune.decorated` says what
    the module must have beside it. While it is imported, modules of its folder can be: those that it imports
    then are its neighbours, unless the program had imported them before.

    Raises:
        UsageError: The file is missing, does not import, or lacks names (all are listed).
    """
    file, name = split_name(path)
    if not file.is_file():
        raise UsageError(f"no kernel file at {file}; give the path of a .py file or the name of a shipped kernel")
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from None
    module, neighbours = _import(file)
    from evotune import decorated  # it builds on this module

    if name:
        return LoadedKernel(path, source, cast(Kernel, decorated.define(module, name, str(file))), neighbours)
    if missing := [n for n in REQUIRED if not hasattr(module, n)]:
        inside = decorated.kernels(module)
        raise UsageError(
            f"{path} lacks {missing}; a kernel file defines {list(REQUIRED)} (see docs of evotune.kernel)"
            + (f"; one of its Triton kernels {inside} is {path}:{inside[0]}" if inside else "")
        )
    if problems := _problems(module):
        raise UsageError(f"{path}: " + "; ".join(problems))
    return LoadedKernel(path, source, cast(Kernel, module), neighbours)


def check_import(path: Path, timeout_s: float = IMPORT_TIMEOUT_S) -> None:
    """Import a kernel file in a process that can be killed, before this one does.

    Raises:
        UsageError: The file does not come to its end, or takes its process with it. What it raises is
            left to :func:`load_kernel`.
    """
    file, _ = split_name(path)
    argv = [sys.executable, "-I", "-c", _TRY, json.dumps([str(Path(p).absolute()) for p in sys.path]), str(path)]
    done = run_killable(argv, timeout_s)
    if done.returncode is None:
        raise UsageError(f"{file} does not come to its end within {timeout_s:g} s of being imported")
    if done.returncode != _IMPORTED:
        said = " ".join(done.output.split())[-200:]
        raise UsageError(
            f"{file} ends the process that imports it, with status {done.returncode}"
            + (f": {said}" if said else "")
        )


def load_checked(path: Path) -> LoadedKernel:
    """:func:`load_kernel`, after :func:`check_import`; :class:`UsageError` as of both."""
    check_import(path)
    return load_kernel(path)


def blame(error: BaseException, path: Path, function: str) -> str:
    """An exception of a user's function in a line: which function, which line of the file, and what."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    text = traceback.format_exception_only(type(error), error)[-1].strip()  # survives a bad __str__
    where = f"line {lines[-1]} of {path.name}" if lines else path.name
    return f"{function}() raised {text} ({where})"


def split_name(path: Path) -> tuple[Path, str | None]:
    """A file, and the name of the kernel in it if ``FILE.py:NAME`` gives one."""
    file, _, name = str(path).rpartition(":")
    return (Path(file), name) if file.endswith(".py") else (path, None)


def _problems(module: Any) -> list[str]:
    """What is wrong with the values of the names that a kernel file defines."""
    out = [] if isinstance(module.name, str) else [f"name is {module.name!r}, not a string"]
    for name, kind in {"shapes": Mapping, "backends": Backend, "tolerance": Tolerance}.items():
        table: Any = getattr(module, name)
        if not isinstance(table, Mapping) or not table:
            out.append(f"{name} is {table!r}, not a dictionary with an entry")
            continue
        entries = cast(Mapping[Any, Any], table)
        out += [
            f"{name}[{k!r}] is {v!r}, not a {kind.__name__}" for k, v in entries.items() if not isinstance(v, kind)
        ]
    if not out:
        shapes = cast(Mapping[str, Any], module.shapes)
        out += [f"shapes[{k!r}] has no 'dtype'" for k, v in shapes.items() if "dtype" not in v]
    for name in ("inputs", "reference", "flops", "bytes_moved"):
        if not callable(getattr(module, name)):
            out.append(f"{name} is not a function")
    return out


_imported: set[str] = set()
"""Names of the modules that kernel files imported from their folders: another folder may have the same."""


def _import(path: Path) -> tuple[ModuleType, dict[str, bytes]]:
    """A kernel file as a module, and its neighbours."""
    folder = path.resolve().parent
    name = f"evotune_kernel_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    for other in _imported:
        sys.modules.pop(other, None)
    _imported.clear()
    known = set(sys.modules)
    sys.modules[name] = module  # dataclasses in the file look their module up
    # Last, unlike the folder of a script: a folder of kernels may well hold a copy.py or a select.py.
    sys.path.append(str(folder))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        sys.modules.pop(name, None)
        at = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise UsageError(f"{path} does not import: {type(error).__name__}: {error}{at}") from error
    finally:
        sys.path.remove(str(folder))
        beside = {n: file for n in set(sys.modules) - known - {name} if (file := _beside(n, folder))}
        _imported.update(beside)
    return module, {file.relative_to(folder).as_posix(): file.read_bytes() for file in beside.values()}


def _beside(name: str, folder: Path) -> Path | None:
    """The file of a loaded module if it is the user's, in this folder or below; None of those installed there."""
    given = getattr(sys.modules[name], "__file__", None)
    if given is None or name.partition(".")[0] == __name__.partition(".")[0]:
        return None
    file = Path(given).parent.resolve() / Path(given).name  # a link to a file elsewhere is here all the same
    is_installed = {"site-packages", "dist-packages"} & set(file.parts) or file.is_relative_to(STANDARD_LIBRARY)
    return file if file.is_relative_to(folder) and not is_installed else None
