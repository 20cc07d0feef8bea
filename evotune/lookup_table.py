"""Configurations that were found, for code that runs in production: one file of JSON, read once.

``evotune export --all --format lookup`` writes the file. Nothing here imports NumPy, pydantic or torch.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evotune.distance import distance
from evotune.errors import UsageError
from evotune.files import digest

if TYPE_CHECKING:
    from evotune.space import Value

SCHEMA = 1
"""Of the file; a new meaning of a field is a new number."""
FIELDS = ("kernel", "device", "problem", "config", "source_hash")
"""What is read of an entry; the others are for people."""

MOST = 1e18
"""No size is larger, and a float can hold it."""

_loading = threading.Lock()


def lookup(
    kernel: str,
    problem: Mapping[str, Value],
    device: str | None = None,
    *,
    table: str | Path,
    source: str | Path | None = None,
    nearest: bool = False,
) -> dict[str, Value] | None:
    """The configuration that was found for a problem on a device; None if there is none.

    A table, and a kernel file, are read when they are first named, and not again while the process lives. Safe to
    call from several threads.

    Args:
        kernel: Its name, as in the file: ``matmul``.
        problem: Sizes and dtype, by the names that the kernel gives them.
        device: As the driver names it, such as ``NVIDIA H100 80GB HBM3``: what ``torch.cuda.get_device_name()``
            gives. None takes the only one that the table has of the kernel.
        table: The file.
        source: The kernel's file. A configuration that was found for another text of it is not given; without
            ``source`` the one that was tuned last is, whatever the text.
        nearest: Where the problem was not tuned for, take the nearest one by the logs of its sizes; what is no
            number must be equal. Whether its configuration is legal there is for the caller to check.

    Raises:
        UsageError: A file cannot be read, several devices are possible, or the problem has other names than
            those that were tuned for.
    """
    _check(problem)
    entries = _read(str(table)).of(kernel, device)
    if entries is None:
        return None
    entries.check(problem)
    wanted = None if source is None else _hash_of(str(source))
    found = entries.at(problem, wanted)
    if found is None and nearest:
        found = _nearest(entries, frozenset(problem.items()), wanted)
    return None if found is None else dict(found.config)


def _check(problem: object) -> None:
    """Refuse what is no problem: sizes that are none have a distance to others as well."""
    if not isinstance(problem, Mapping):
        raise UsageError(f"problem is {problem!r}; it should be a mapping of sizes and dtype by name")
    for name, given in cast("Mapping[str, object]", problem).items():
        if not isinstance(given, str) and not (isinstance(given, (int, float)) and 0 <= given <= MOST):
            raise UsageError(f"problem[{name!r}] is {given!r}; it should be a size, not negative, or a word")


@dataclass(frozen=True)
class _Entry:
    problem: dict[str, Value]
    config: dict[str, Value]
    source_hash: str


class _Entries:
    """Those of a kernel on a device, the latest first."""

    def __init__(self) -> None:
        self._at: dict[frozenset[tuple[str, Value]], list[_Entry]] = {}
        self._by_names: dict[frozenset[str], list[_Entry]] = {}

    def add(self, entry: _Entry) -> None:
        self._at.setdefault(frozenset(entry.problem.items()), []).append(entry)
        self._by_names.setdefault(frozenset(entry.problem), []).append(entry)

    def check(self, problem: Mapping[str, Value]) -> None:
        """Refuse a problem whose names none has."""
        if frozenset(problem) not in self._by_names:
            known = " or ".join(", ".join(sorted(names)) for names in self._by_names)
            raise UsageError(f"problem {dict(problem)} has other names than those that were tuned for: {known}")

    def at(self, problem: Mapping[str, Value], source_hash: str | None) -> _Entry | None:
        """That of a problem; None as ``source_hash`` stands for any."""
        known = self._at.get(frozenset(problem.items()), ())
        return next((e for e in known if source_hash in (None, e.source_hash)), None)

    def near(self, problem: dict[str, Value], source_hash: str | None) -> _Entry | None:
        """The nearest one."""
        known = [e for e in self._by_names[frozenset(problem)] if source_hash in (None, e.source_hash)]
        for entry in known[:1]:  # all are of one kernel
            for name, value in entry.problem.items():
                if type(value) is not type(problem[name]) and {type(value), type(problem[name])} != {int, float}:
                    raise UsageError(
                        f"problem[{name!r}] is {problem[name]!r}; those that were tuned for have {value!r}"
                    )
        far = [(distance(entry.problem, problem), i) for i, entry in enumerate(known)]
        return next((known[i] for (differ, _), i in sorted(far)[:1] if not differ), None)


@dataclass(frozen=True)
class _Table:
    path: str
    kernels: dict[str, dict[str, _Entries]]
    """By kernel, then by device."""

    def of(self, kernel: str, device: str | None) -> _Entries | None:
        by_device = self.kernels.get(kernel, {})
        if device is None and len(by_device) > 1:
            raise UsageError(f"{self.path} has {kernel} on {', '.join(sorted(by_device))}; say which with `device`")
        return next(iter(by_device.values()), None) if device is None else by_device.get(device)


@lru_cache(maxsize=4096)  # sizes that come up in production are few, and comparing with all entries takes long
def _nearest(entries: _Entries, problem: frozenset[tuple[str, Value]], source_hash: str | None) -> _Entry | None:
    return entries.near(dict(problem), source_hash)


def _read(path: str) -> _Table:
    with _loading:  # so that many threads read a file once
        return _read_once(path)


@cache
def _read_once(path: str) -> _Table:
    try:
        found: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise UsageError(
                f"{path} has schema {found['schema']}, this evotune reads {SCHEMA}; make it anew with: "
                f"evotune export --all --format lookup --out {path}"
            )
        kernels: dict[str, dict[str, _Entries]] = {}
        for kernel, device, *rest in ([entry[name] for name in FIELDS] for entry in found["entries"]):
            kernels.setdefault(kernel, {}).setdefault(device, _Entries()).add(_Entry(*rest))
        return _Table(path, kernels)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no lookup table of evotune ({type(error).__name__}: {error}); make one with: "
            "evotune export --all --format lookup --out FILE"
        ) from None


@cache
def _hash_of(path: str) -> str:
    try:
        return digest(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
