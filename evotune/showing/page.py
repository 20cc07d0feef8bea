"""Lines that fit a terminal, and how values are put into words."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from evotune.history import SHAPE
from evotune.space import Config, Value
from evotune.trial import Trial

LABEL = 14
# Narrower than this, a label has a line of its own.
NARROW = 48


class Page:
    """Lines that fit the terminal."""

    def __init__(self) -> None:
        self._width = max(20, shutil.get_terminal_size((80, 24)).columns)
        self._lines: list[str] = []

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def head(self, title: str) -> None:
        """A title with an empty line above."""
        self._lines.append("")
        self.text(title)

    def text(self, text: str, indent: int = 0) -> None:
        """A paragraph; further lines of it are indented by two more."""
        self._wrap(text, " " * indent, " " * (indent + 2))

    def row(self, label: str, text: str) -> None:
        """A labelled paragraph, or nothing where there is no text."""
        if not text:
            return
        if self._width < NARROW or len(label) >= LABEL:
            if label:
                self._wrap(label, "  ", "    ")
            self._wrap(text, "    ", "    ")
        else:
            self._wrap(text, f"  {label:<{LABEL}}", " " * (LABEL + 2))

    def verbatim(self, text: str) -> None:
        """Lines as they are, to be pasted."""
        self._lines += [f"  {_visible(line)}".rstrip() for line in text.rstrip("\n").split("\n")]

    def _wrap(self, text: str, first: str, other: str) -> None:
        self._lines += textwrap.wrap(
            _visible(" ".join(text.split())),
            self._width,
            initial_indent=first,
            subsequent_indent=other,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _visible(text: str) -> str:
    """Without the power to move the cursor: reasons and programs may be a model's words."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def config_of(trial: Trial) -> Config:
    """Without the name of the shape."""
    return {name: value for name, value in trial.config.items() if name != SHAPE}


def difference(before: Config, after: Config) -> Iterator[str]:
    """``name old -> new`` of each parameter, or its value where that is the same."""
    for name, value in after.items():
        yield _change(before, name, value) or f"{name} {_plain(value)}"


def changes(before: Config, after: Config) -> list[str]:
    """``name old -> new`` of each parameter that is not the same."""
    return [change for name, value in after.items() if (change := _change(before, name, value))]


def _change(before: Config, name: str, value: Value) -> str:
    old = before.get(name, value)
    # True is not 1.
    return "" if type(old) is type(value) and old == value else f"{name} {_plain(old)} -> {_plain(value)}"


def pairs(values: Mapping[str, Any]) -> str:
    """``BLOCK=128 num_warps=4``."""
    return " ".join(f"{name.lstrip('@')}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _plain(value)


def _plain(value: Any) -> str:
    """As it is, but a text with blanks, line breaks and the like in quotes: lines are filled anew."""
    is_word = not isinstance(value, str) or (value.isprintable() and value.split() == [value])
    return str(value) if is_word else ascii(value)


def listed(counts: Mapping[str, int]) -> str:
    """`` (random 8, default 1)``, or nothing."""
    return f" ({', '.join(f'{name} {n}' for name, n in counts.items())})" if counts else ""


def count(n: int, what: str) -> str:
    """``1 call``, ``2 calls``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def minute(at_s: float) -> str:
    """Local time, to the minute."""
    return datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d %H:%M")
