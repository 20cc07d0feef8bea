"""What a run is about, kept beside its trials: a reader cannot look it up later, as files change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from evotune.journal import Run
from evotune.llm import Roofline
from evotune.space import ConfigSpace, Parameter

if TYPE_CHECKING:
    from evotune.settings import Settings

# Kinds of notes, each one JSON value.
GIVEN, SPACE, ROOFLINE = "given", "space", "roofline"
# Target and device of a run that calls a Python function.
PYTHON = "python"


def keep(run: Run, name: str, settings: Settings, space: ConfigSpace, roofline: Roofline | None) -> None:
    """Commit what a new run is about.

    Args:
        run: A new one.
        name: Of the kernel or recording, as the user gave it.
        settings: As :func:`keep_given` has them.
        space: What is searched.
        roofline: The work of the problem and the peaks of the device, if they are known.
    """
    keep_given(run, name, settings)
    run.note(SPACE, json.dumps(space_to_json(space)))
    if roofline is not None:
        run.note(ROOFLINE, json.dumps(asdict(roofline)))


def keep_given(run: Run, name: str, settings: Settings) -> None:
    """Commit what a new run was asked for: all settings that are not the default, except those that its
    description has, where it is recorded, and secrets."""
    described = {"search", "seed", "shapes", "journal"}
    chosen = settings.model_dump(
        include={"run", "llm", "prompt"}, exclude={"run": described, "llm": {"key_file"}}, exclude_defaults=True
    )
    if url := chosen.get("llm", {}).get("base_url"):
        chosen["llm"]["base_url"] = _without_secrets(url)
    run.note(GIVEN, json.dumps({"kernel": name, **{key: values for key, values in chosen.items() if values}}))


def _without_secrets(url: str) -> str:
    """Without the user, the password and the query, any of which may be a key."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def space_to_json(space: ConfigSpace) -> dict[str, Any]:
    """What :func:`space_from_json` makes the same space of."""
    return {
        "parameters": {name: {"values": p.values, "ordered": p.ordered} for name, p in space.parameters.items()},
        "constraints": [c.text for c in space.constraints],
        "constants": space.constants,
        "default": dict(space.default),
    }


def space_from_json(described: Mapping[str, Any]) -> ConfigSpace:
    """The space that :func:`space_to_json` described."""
    parameters = {name: Parameter(tuple(p["values"]), p["ordered"]) for name, p in described["parameters"].items()}
    return ConfigSpace(
        parameters, described["constraints"], constants=described["constants"], default=described["default"]
    )
