"""What can go wrong, by whose fault it is.

A caller's mistake is a :class:`UsageError`, raised at the boundary before any work. A candidate's
fault is :class:`Rejected`, caught in one place, recorded, and shown to whoever proposed it. A
machine's fault is a :class:`DeviceError`: later timings would be lies, so the run stops.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """The caller's input cannot be used; the message says what was found, wanted, and to do."""


class JournalError(UsageError):
    """A file that is no journal or cannot be used as one; ``found`` says why, the message also what to do where a
    command takes ``--journal``."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}; {advice}")
        self.found = found


class Rejected(Exception):
    """A candidate failed; ``stage`` is where (``parse``, ``validate``, ``compile``, …)."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason


class DeviceError(RuntimeError):
    """The machine or device is at fault; nothing measured after this could be trusted."""


class ProviderError(Exception):
    """A model call brought no usable answer; see the subclasses for what to do about it."""


class Fatal(ProviderError):
    """Wrong key, model or request, or no money left: asking again cannot help."""


class Transient(ProviderError):
    """An outage: worth another try, after ``retry_after_s`` if the server named a time."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadOutput(ProviderError):
    """The server answered and may have charged for it, but there is nothing to use."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known name, or an empty string."""
    match = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
