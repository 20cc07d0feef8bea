"""From untrusted values to a legal configuration, or all that is wrong with them in words.

Everything here may have been chosen by a model: values are looked at by ``type()``, never by
``isinstance``, ``==`` or ``repr`` before their size is known, and what is quoted is cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from evotune.errors import Rejected
from evotune.space import Config, ConfigSpace, Value

REASON_CHARACTERS = 300
QUOTED_CHARACTERS = 60
INTEGER_BITS = 64
UNKNOWN_PARAMETERS = 8

_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]+")


def clip(text: str, characters: int = REASON_CHARACTERS) -> str:
    """At most so many printable ASCII characters of a text; line breaks and others become spaces."""
    # Cut first: a text of megabytes is not worth searching.
    plain = _NOT_PRINTABLE.sub(" ", text[: 4 * characters]).strip()
    return plain if len(plain) <= characters else plain[: characters - 3] + "..."


def check(values: object, space: ConfigSpace, base: Config | None = None) -> dict[str, Value]:
    """A fresh legal configuration with exactly these values, and those of ``base`` for names left out.

    ``True`` is not 1 and 128.0 is not 128; subclasses and look-alikes of a type are not the type.

    Raises:
        Rejected: Stage ``validate``, with all violations.
    """
    if type(values) is not dict:
        raise Rejected("validate", f"a configuration is a dict of parameters, found {_describe(values)}")
    given = cast(dict[Any, Any], values)
    config: dict[str, Any] = dict(base or {})
    problems = _unknown(given, space)
    constrained = True
    for name, parameter in space.parameters.items():
        if name not in given:
            continue
        config[name] = value = given[name]
        if (shown := _unprintable(value)) is not None and parameter.index(value) is None:
            problems.append(f"{name} = {shown} is not one of {list(parameter.values)}")
            # Any legal value will do while the other parameters are looked at; a constraint over it
            # would be an invention.
            config[name] = parameter.values[0]
            constrained = False
    legal = {name: config[name] for name in space.names if name in config}
    problems += [v for v in space.violations(legal) if constrained or not v.startswith("constraint ")]
    if problems:
        raise Rejected("validate", "; ".join(problems))
    return legal


def _unknown(given: Mapping[Any, Any], space: ConfigSpace) -> list[str]:
    unknown = [n for n in given if type(n) is not str or n not in space.parameters]
    shown = {clip(n, QUOTED_CHARACTERS): 0 for n in unknown[:UNKNOWN_PARAMETERS] if type(n) is str}
    # The space words it, with the nearest known name; it is asked about nothing else.
    out = [v for v in space.violations(shown) if v.startswith("unknown ")]
    out += [
        f"a parameter's name is a str, found {_describe(n)}"
        for n in unknown[:UNKNOWN_PARAMETERS]
        if type(n) is not str
    ]
    if (more := len(unknown) - UNKNOWN_PARAMETERS) > 0:
        out.append(f"{more} more unknown parameters")
    return out


def _unprintable(value: object) -> str | None:
    """How to show a value that must not be printed as it is; None if it may be."""
    kind = type(value)
    if kind not in (bool, int, float, str):
        return _describe(value)
    if kind is int and cast(int, value).bit_length() > INTEGER_BITS:
        return f"an int of {cast(int, value).bit_length()} bits"
    if kind is str and (len(text := cast(str, value)) > QUOTED_CHARACTERS or clip(text) != text):
        return f"{clip(text, QUOTED_CHARACTERS)!r} (a str of {len(text)} characters)"
    return None


def _describe(value: object) -> str:
    return f"a value of type {clip(type(value).__name__, QUOTED_CHARACTERS)}"
