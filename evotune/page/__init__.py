"""What evotune's pages share: one file that needs nothing else, its style, and the helpers of its scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
