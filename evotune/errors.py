"""What can go wrong, by whose fault it is.

A caller's mistake is a :class:`UsageError`, raised at the boundary before any work. A candidate's
fault is :class:`Rejected`, caught in one place, recorded, and shown to whoever proposed it. A
machine's fault is a :class:`DeviceError`: later timings would be lies, so the run stops.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager


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
    """`` (did you mean 'x'?)`` for the known name that was surely meant, or an empty string.

    It was if it takes an edit for each three letters to get there, or at least one, or if it only takes letters
    that an abbreviation leaves out: at most half of them, and not the first. tests/test_errors.py has names for
    which that is right.
    """
    typed = name.lower()
    found: list[tuple[int, str]] = []
    for candidate in known:
        wanted = candidate.lower()
        edits, longer = _edits(typed, wanted), len(wanted) - len(typed)
        abbreviates = edits == longer <= len(typed) + 1 and len(typed) > 3 and typed[0] == wanted[0]
        if edits <= max(1, len(typed) // 3) or abbreviates:
            found.append((edits, candidate))
    return f" (did you mean {min(found)[1]!r}?)" if found else ""


def _edits(a: str, b: str) -> int:
    """How many letters are to be added, left out, or swapped with the next, to get from one word to the other.

    Taking another letter in the place of one counts twice: h100 is no slip for a100, nor gpu for cpu.
    """
    above, row = list[int](), list(range(len(b) + 1))
    for i, letter in enumerate(a):
        before, above, row = above, row, [i + 1]
        for j, other in enumerate(b):
            edits = above[j] if letter == other else 1 + min(above[j] + 1, above[j + 1], row[j])
            if i and j and letter == b[j - 1] and a[i - 1] == other:
                edits = min(edits, before[j - 1] + 1)
            row.append(edits)
    return row[-1]


# A command, which stays as it is; or an option, with what stands for its value.
_COMMAND_OR_OPTION = re.compile(r"evotune [a-z]+ [^;,]*|--([a-z][a-z-]*)( [A-Z][A-Z,|]*\b)?")


@contextmanager
def spelt_for_python(fresh: str = "fresh=True") -> Generator[None]:
    """Have errors name arguments, ``max_usd``, where they name options of the command, ``--max-usd``.

    Done here once: where they are raised, nobody knows who asked.

    Args:
        fresh: What starts another run.
    """

    def spelt(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name is None:
            return match[0]
        if name == "fresh":
            return fresh
        return name.replace("-", "_") + (f"={value.strip()}" if value else "")

    try:
        yield
    except (UsageError, DeviceError, Fatal) as error:
        error.args = (_COMMAND_OR_OPTION.sub(spelt, str(error)),)
        raise
