"""Whether a Python function is the one that an earlier process called: a hash of all that it computes with."""

from __future__ import annotations

import copyreg
import dis
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from evotune.errors import UsageError

PLAIN = (type(None), bool, int, float, complex, str, type(...))
# Classes have functions of these kinds; what they wrap is in these attributes.
WRAPPED = {staticmethod: ("__func__",), classmethod: ("__func__",), property: ("fget", "fset", "fdel")}

# What the decorators of these packages make has locks and caches, and the function in `fn`.
JIT = ("triton", "helion")
# By what a function became in a search of this process what it was before; see :func:`carry_over`.
_BEFORE: dict[str, str] = {}


def fingerprint(function: Callable[..., Any]) -> str:
    """The same in another process if the function is the same, and another one if it may not be.

    It covers the code, default arguments, closure and globals of the function, and of the functions and
    classes of its module that it refers to; other values as they are pickled. What is imported from another
    module counts by its name: an edit there is not seen.

    Raises:
        UsageError: It refers to something that cannot be told from others of its kind, such as an open file.
    """
    inner = function
    while isinstance(inner, partial):
        inner = cast(Callable[..., Any], inner.func)
    module = getattr(inner, "__module__", None) or type(inner).__module__
    try:
        told = _Teller(module).tell(function)
    except _Untold as untold:
        raise UsageError(
            f"a {untold.kind} in {untold.variable or 'the function'} cannot be told from another one, so what a "
            "journal knows may be of another function; give key='...', and another key for whatever gives other "
            "results"
        ) from None
    found = sha256(repr(told).encode()).hexdigest()[:16]
    return _BEFORE.get(found, found)


def carry_over(function: Callable[..., Any], before: str) -> None:
    """Have a function count as what it was before it was called: it may count its calls, or fill a cache.

    Another process begins without these, so this one alone needs to know.
    """
    try:
        after = fingerprint(function)
    except UsageError:
        return
    if after != before:
        _BEFORE[after] = before


class _Untold(Exception):
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.variable: str | None = None


class _Teller:
    """Describes values by nested tuples of text, each object once."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []  # or an id might be given again

    def tell(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return type(value).__name__, repr(value)
        if type(value) is bytes:
            return "bytes", sha256(value).hexdigest()
        if isinstance(value, ModuleType):
            return "module", value.__name__
        if type(value) is tuple:
            return "tuple", [self.tell(item) for item in cast(tuple[Any, ...], value)]
        if type(value) in (set, frozenset):
            # Their order is another one in another process, so that none may depend on what was told before.
            return type(value).__name__, sorted(repr(_Teller(self._home).tell(item)) for item in value)
        if id(value) in self._seen:
            return "seen", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        return type(value).__qualname__, list(self._parts(value))

    def _parts(self, value: Any) -> Iterator[Any]:
        if type(value) is list:
            yield from map(self.tell, cast(list[Any], value))
        elif type(value) is dict:
            yield from map(self.tell, cast(dict[Any, Any], value).items())
        elif isinstance(value, CodeType):
            yield value.co_code.hex(), value.co_names, value.co_freevars
            yield self.tell(value.co_consts)
        elif isinstance(value, (MethodType, BuiltinFunctionType)):
            yield value.__name__, self.tell(value.__self__)
            yield self.tell(getattr(value, "__func__", None))
        elif isinstance(value, (FunctionType, type)):
            yield value.__module__, value.__qualname__
            # A lambda and what a function made share their names with others.
            if value.__module__ == self._home or "<" in value.__qualname__:
                yield from self._function(value) if isinstance(value, FunctionType) else self._class(value)
        elif type(value) in WRAPPED:
            yield from (self.tell(getattr(value, name)) for name in WRAPPED[type(value)])
        elif type(value).__module__.split(".")[0] in JIT and isinstance(getattr(value, "fn", None), FunctionType):
            yield self.tell(value.fn)
        else:
            yield from self._pickled(value)

    def _function(self, function: FunctionType) -> Iterator[Any]:
        yield self.tell((function.__code__, function.__defaults__))
        yield self.tell(function.__kwdefaults__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            yield self._variable(name, content)
        for name in sorted(_globals_of(function.__code__)):
            if name in function.__globals__:
                yield self._variable(name, function.__globals__[name])

    def _class(self, cls: type) -> Iterator[Any]:
        yield self.tell((type(cls), cls.__bases__))
        for name, member in sorted(vars(cls).items()):
            is_code = isinstance(member, FunctionType) or type(member) in WRAPPED
            if is_code or not name.startswith("__"):
                yield name, self.tell(member)

    def _pickled(self, value: Any) -> Iterator[Any]:
        """The parts that pickle would take it apart into; its own bytes tell which strings are shared, too."""
        reduce = copyreg.dispatch_table.get(cast(Any, type(value)))
        try:
            parts = cast(Any, reduce(value) if reduce else value.__reduce_ex__(4))
        except Exception:  # anything may be raised by the caller's types
            raise _Untold(type(value).__name__) from None
        if isinstance(parts, str):
            yield type(value).__module__, parts
            if isinstance(inner := getattr(value, "__wrapped__", None), FunctionType):  # such as lru_cache's
                yield self.tell(inner)
            return
        make, arguments, state, items, pairs = (*parts, None, None, None)[:5]
        yield self.tell((make, arguments, state, list(items or ()), list(pairs or ())))

    def _variable(self, name: str, value: Any) -> Any:
        try:
            return name, self.tell(value)
        except _Untold as untold:
            untold.variable = untold.variable or name
            raise
        except RecursionError:
            untold = _Untold(f"{type(value).__name__} with so much within it")
            untold.variable = name
            raise untold from None


def _globals_of(code: CodeType) -> set[str]:
    """Names of globals that code, or the functions defined in it, look up."""
    inner = [_globals_of(c) for c in code.co_consts if isinstance(c, CodeType)]
    own = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*inner)
