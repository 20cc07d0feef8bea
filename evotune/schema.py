"""YAML files that people write: read strictly, with every problem in one message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from evotune.errors import UsageError, nearest

KeyPath = tuple[str, ...]


class Section(BaseModel):
    """Keys that belong together; an unknown one is an error, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping.

    Raises:
        UsageError: The file cannot be read, is not YAML, repeats a key, or holds something else.
    """
    try:
        with path.open(encoding="utf-8") as text:
            found: object = yaml.load(text, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds a {type(found).__name__}; it should hold keys with values")
    return {str(k): v for k, v in cast(dict[object, Any], found).items()}


# libyaml's parser takes a tenth of the time; PyYAML can be built without it.
_Parser: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Parser):
    """Refuses a repeated key, of which YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def problems(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], label: Callable[[KeyPath], str]
) -> list[str]:
    """One line for each wrong key: what was found, what was wanted, and the nearest known key.

    Args:
        error: From validating ``values``.
        model: What they were validated against.
        values: Nested mappings.
        label: How the user spells a key path: ``--seed``, say, for ``("run", "seed")``.
    """
    lines: dict[KeyPath, str] = {}
    for detail in error.errors(include_url=False, include_context=False):
        missing = detail["type"] == "missing"
        # A union adds the name of each of its members behind the key: not the user's concern.
        path = tuple(map(str, detail["loc"])) if missing else _within(values, detail["loc"])
        wanted = detail["msg"].removeprefix("Input should be ")
        if detail["type"] == "model_type":
            wanted = "keys with values"
        if detail["type"] == "too_short":
            wanted = "a list with something in it"
        if missing:
            lines[path] = f"{label(path)} is missing"
        elif detail["type"] == "extra_forbidden":
            lines[path] = f"{label(path)} is not known{_did_you_mean(path, model, label)}"
        elif path in lines:
            lines[path] += f", or {wanted}"
        else:
            lines[path] = f"{label(path)} is {detail['input']!r}; it should be {wanted}{_hint(detail['input'])}"
    return list(lines.values())


def _within(values: Mapping[str, Any], loc: tuple[int | str, ...]) -> KeyPath:
    path: list[str] = []
    node: Any = values
    for part in loc:
        if isinstance(node, Mapping) and part in node:
            node = cast(Mapping[int | str, Any], node)[part]
        elif isinstance(node, list) and isinstance(part, int):
            node = cast(list[Any], node)[part]
        else:
            break
        path.append(str(part))
    return tuple(path)


def _did_you_mean(path: KeyPath, model: type[BaseModel], label: Callable[[KeyPath], str]) -> str:
    known = list(key_paths(model))
    elsewhere = [label(p) for p in known if p[-1] == path[-1]]
    siblings = [label(p) for p in known if p[:-1] == path[:-1]]
    sections = [label(p[:1]) for p in known] if len(path) == 1 else []
    if elsewhere:
        return nearest(elsewhere[0], elsewhere)  # the same key, in another section
    return nearest(label(path), siblings + sections)


def key_paths(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key of a model of nested sections."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from key_paths(kind, (*prefix, name))
        else:
            yield (*prefix, name)


def _hint(value: object) -> str:
    """YAML 1.1 reads 3e12 and 3.35e12 as text: an exponent needs a point and a sign."""
    try:
        float(value if isinstance(value, str) else "no number")
    except ValueError:
        return ""
    return " (this is text: drop the quotes; write an exponent as in 1.0e+3)"
