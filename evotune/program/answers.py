"""Finds the configurations and programs in the answer of a model.

The answer is data: nothing here parses Python, and all work is linear in a capped number of bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from evotune.errors import Rejected
from evotune.program.checking import clip

ANSWER_BYTES = 256 << 10
PROPOSALS = 64
JSON_DEPTH = 16
LIST_KEY = "configs"
PROGRAMS_KEY = "programs"  # texts of programs, where a server makes all answers JSON
DIGITS = 20

_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)$", re.MULTILINE)
_PROGRAM = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+get_kernel_config\b", re.MULTILINE)
# A string that is not closed ends with its line: looking for its end from every quote would be
# quadratic.
_JSON_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"?|[{}\[\]]')
_OPENING = re.compile(r"[{\[]")


@dataclass(frozen=True)
class Proposal:
    """One candidate: a JSON object (``config`` is set, not yet checked) or a program to be run."""

    text: str
    config: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Extraction:
    """What an answer holds, in its order, and why other parts of it were left out."""

    proposals: tuple[Proposal, ...]
    rejections: tuple[Rejected, ...]


def extract(answer: str) -> Extraction:
    """Every configuration that an answer proposes.

    Understood are JSON (an object, a list of objects, ``{"configs": [...], "programs": [...]}``) and
    programs that define ``get_kernel_config``, in fences or alone, with prose around them. Nothing is run and
    nothing raised: the faults of one proposal do not cost the others.
    """
    found: list[Proposal] = []
    rejections: list[Rejected] = []
    for item in _search(answer):
        if len(found) + len(rejections) == PROPOSALS:
            rejections.append(Rejected("parse", f"only the first {PROPOSALS} proposals of the answer were read"))
            break
        if isinstance(item, Rejected):
            rejections.append(item)
        else:
            found.append(item)
    if not found and not rejections:
        rejections.append(Rejected("parse", "the answer holds neither JSON nor a def get_kernel_config()"))
    return Extraction(tuple(found), tuple(rejections))


def parse_object(text: str) -> dict[str, object]:
    """One JSON object, as its own values.

    Raises:
        Rejected: Stage ``parse``: not JSON, not an object, repeated keys, or numbers that JSON or a
            configuration cannot have.
    """
    value = _parse(text)
    if isinstance(value, _Bad):
        raise Rejected("parse", value.reason)
    if not isinstance(value, dict):
        raise Rejected("parse", f"expected a JSON object, found a {type(value).__name__}")
    return cast("dict[str, object]", value)


def _search(answer: str) -> Iterator[Proposal | Rejected]:
    if len(answer) > ANSWER_BYTES or len(answer.encode("utf-8", "replace")) > ANSWER_BYTES:
        yield Rejected("parse", f"the answer is longer than {ANSWER_BYTES} bytes")
        return
    answer = answer.replace("\r\n", "\n")
    blocks = list(_fenced(answer))
    if not blocks:
        yield from _from_block(answer)
    for kind, block in blocks:
        if _PROGRAM.search(block) or _OPENING.search(block):
            yield from _from_block(block)
        elif block.strip():
            yield Rejected("parse", f"a {clip(kind, 20) or 'fenced'} block holds neither JSON nor a program")


def _from_block(text: str) -> Iterator[Proposal | Rejected]:
    if _PROGRAM.search(text):
        yield Proposal(text.strip("\n") + "\n")
        return
    for span in _json_spans(text):
        if isinstance(span, Rejected):
            yield span
        else:
            yield from _from_json(span)


def _fenced(text: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block; a block that the end cuts off is one, too."""
    fence, kind, start = "", "", 0
    for mark in _FENCE.finditer(text):
        if not fence:
            fence, kind, start = mark.group(1), mark.group(2).strip(), mark.end() + 1
        elif mark.group(1).startswith(fence) and not mark.group(2).strip():
            yield kind, text[start : mark.start()]
            fence = ""
    if fence:
        yield kind, text[start:]


def _json_spans(text: str) -> Iterator[str | Rejected]:
    """The outermost balanced brackets of a text that may be JSON, in one pass.

    An opening bracket in prose that is never closed hides nothing behind it.
    """
    opened: list[int] = []
    spans: list[tuple[int, int]] = []
    for token in _JSON_TOKEN.finditer(text):
        kind = token.group()
        if kind in ("{", "["):
            if len(opened) == JSON_DEPTH:
                yield Rejected("parse", f"brackets are nested deeper than {JSON_DEPTH}")
                return
            opened.append(token.start())
        elif kind in ("}", "]") and opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, token.end()))
    for start, end in spans:
        span = text[start:end]
        if "{" in span:  # prose has lists of numbers, too
            yield span


def _from_json(text: str) -> Iterator[Proposal | Rejected]:
    for item in _items(_parse(text)):
        if isinstance(item, _Bad):
            yield Rejected("parse", item.reason)
        elif isinstance(item, dict):
            config = cast("dict[str, object]", item)
            yield Proposal(json.dumps(config), config)
        elif isinstance(item, str) and _PROGRAM.search(item):
            yield Proposal(item.strip("\n") + "\n")
        else:
            yield Rejected("parse", f"a configuration is a JSON object, found a {type(item).__name__}")


def _items(value: object) -> list[object]:
    if isinstance(value, dict):
        lists = [cast("dict[str, object]", value).get(key) for key in (LIST_KEY, PROGRAMS_KEY)]
        found = [cast("list[object]", listed) for listed in lists if isinstance(listed, list)]
        return [item for listed in found for item in listed] if found else [cast(object, value)]
    return cast("list[object]", value) if isinstance(value, list) else [value]


# -- JSON, stricter than the standard library's -------------------------------------------------


@dataclass(frozen=True)
class _Bad:
    """Stands in for a part of a JSON text that cannot be used, so that its neighbours still can."""

    reason: str


def _parse(text: str) -> object:
    if len(text) > ANSWER_BYTES:
        return _Bad(f"JSON of more than {ANSWER_BYTES} characters")
    # Depth is known before parsing: how deep the parser may recurse depends on the thread's stack.
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token.group(), 0)
        if depth > JSON_DEPTH:
            return _Bad(f"brackets are nested deeper than {JSON_DEPTH}")
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=lambda name: _Bad(f"{name} is not a JSON number"),
        )
    except json.JSONDecodeError as error:
        return _Bad(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        return _Bad("brackets are nested too deeply")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, object] | _Bad:
    out: dict[str, object] = {}
    for name, value in pairs:
        shown = ascii(clip(name, 40))
        if isinstance(value, _Bad):
            return _Bad(clip(f"{shown}: {value.reason}"))
        if name in out:
            return _Bad(f"key {shown} appears twice in one object")
        out[name] = value
    return out


def _integer(digits: str) -> int | _Bad:
    return int(digits) if len(digits) <= DIGITS else _Bad(f"an integer of {len(digits)} digits")


def _number(digits: str) -> float | _Bad:
    value = float(digits)
    return value if math.isfinite(value) else _Bad(f"{clip(digits, 20)} is not finite")
