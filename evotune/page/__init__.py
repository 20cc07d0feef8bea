"""What evotune's pages share: one file that needs nothing else, its style, and the helpers of its scripts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evotune.errors import UsageError

HERE = Path(__file__).parent
STYLE, SCRIPT = HERE / "base.css", HERE / "base.js"


def render(template: Path, parts: Mapping[str, Path], **values: Any) -> str:
    """A template's text, with ``parts`` put in as they are and all else escaped."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    plain = {name: Markup(path.read_text(encoding="utf-8")) for name, path in parts.items()}
    return environment.from_string(template.read_text(encoding="utf-8")).render(**plain, **values)


def write(out: Path, text: str) -> None:
    """Write a file, or nothing: whoever reads it meanwhile sees the old one or the new one.

    Raises:
        UsageError: It cannot be written.
    """
    place = out.resolve()
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(place)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UsageError(f"{out} cannot be written: {error}; choose another place") from None


def check_writable(path: Path) -> None:
    """Raise :class:`UsageError` if a file cannot be written; to be asked before any work."""
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {folder}; make it, or choose another")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} cannot be written: it is not a file; choose another name")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"{path} cannot be written: permission denied; choose another place")
