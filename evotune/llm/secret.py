"""Keys that do not show: not in a repr, an exception, a log line, a prompt or a pickle."""

from __future__ import annotations

import re
from typing import NoReturn

SHOWN_CHARACTERS = 300
MASK = "***"

# Servers echo keys, whole or by half; these also catch keys that are not ours to know.
_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:sk|pk|rk|gsk|xai)-[A-Za-z0-9_\-*.]{6,}|(?i:bearer)\s+[^\s'\"]{6,}")


class Secret:
    """A key. Only :meth:`reveal` gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself, for the one place that sends it."""
        return self._value

    def redact(self, text: str) -> str:
        """A text without this key and without whatever else looks like one."""
        if self._value:
            text = text.replace(self._value, MASK)
        return _LOOKS_LIKE_A_KEY.sub(MASK, text)

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not sent to another process")


NO_SECRET = Secret("")


def printable(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """One line of printable ASCII of at most ``limit`` characters, safe to log, record and prompt."""
    line = " ".join("".join(c if " " <= c <= "~" else " " for c in text[: 8 * limit]).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
