"""What the searches of a Python function share: settings, space, and how a journal knows them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, cast

from evotune.errors import UsageError
from evotune.facts import PYTHON, space_to_json
from evotune.fingerprint import fingerprint
from evotune.journal import Run
from evotune.llm import Choice
from evotune.settings import Settings, load
from evotune.space import ConfigSpace

# What starts another run than the one that a journal has.
ANOTHER = "another key='...'"
# Providers that cost nothing.
FREE = ("mock", "none")


def settings_of(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Settings from what a caller gave, by key path, and from the environment.

    An argument wins over its variable; a provider ``auto`` leaves the choice to it. The section ``run`` is the
    command's: of its variables only ``EVOTUNE_RUN_ISOLATION`` holds here.

    Raises:
        UsageError: Unknown variables or wrong values.
    """
    given = {path: value for path, value in arguments.items() if (path, value) != ("llm.provider", "auto")}
    known = {
        name: text
        for name, text in environ.items()
        if not name.startswith("EVOTUNE_RUN_") or name == "EVOTUNE_RUN_ISOLATION"
    }
    return load(None, given, known)


def level_of(choice: Choice, settings: Settings) -> int:
    """How loudly to log who is asked: a warning if a key alone chose a model that costs money."""
    is_unasked = settings.llm.provider == "auto" and choice.provider.name not in FREE
    return logging.WARNING if is_unasked else logging.INFO


def check_legal(run: Run, space: ConfigSpace) -> None:
    """Refuse a run with configurations that its space does not have: one of them might be the answer.

    Raises:
        UsageError: It has some.
    """
    for trial in (*run, *(t for t, _ in run.interrupted())):
        if found := space.violations(trial.config):
            raise UsageError(
                f"run {run.id} in {run.journal.path} has a configuration {dict(trial.config)} that is not of this "
                f"space: {'; '.join(found)}; give another journal"
            )


def identity_of(
    space: ConfigSpace, seed: int, function: Callable[..., Any], key: str | None
) -> tuple[str, dict[str, Any]]:
    """What a journal knows the search of a function by: a hash of the space, and a description.

    Raises:
        UsageError: The function needs a key.
    """
    if not isinstance(cast(object, key), str | None):
        raise UsageError(f"key is {key!r}; give a string")
    source_hash = sha256(repr(space_to_json(space)).encode()).hexdigest()[:16]
    known_by = {"function": fingerprint(function)} if key is None else {"key": key}
    return source_hash, {"target": PYTHON, "device": PYTHON, "seed": seed, **known_by}


def space_of(given: Any, constraints: Iterable[str]) -> ConfigSpace:
    """The space that a caller gave, as one or as a mapping of name to values.

    Raises:
        UsageError: It is neither, or a constraint is wrong.
    """
    if isinstance(constraints, str):
        raise UsageError(f"constraints is the string {constraints!r}; give a list of them")
    if not isinstance(cast(object, constraints), Iterable) or not all(type(c) is str for c in constraints):
        raise UsageError(f"constraints is {constraints!r}; give a list of Python expressions, each a string")
    texts = list(constraints)
    if isinstance(given, ConfigSpace):
        if texts:
            raise UsageError("give constraints to the ConfigSpace itself, not beside it")
        return given
    if not isinstance(given, Mapping):
        raise UsageError(
            f"config_space is a {type(given).__name__}; give a dict of name to values, or a ConfigSpace"
        )
    table = cast(Mapping[str, Any], given)
    for name, values in table.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise UsageError(f"config_space[{name!r}] is {values!r}; give a list of values")
    return ConfigSpace.from_dict(table, texts)
