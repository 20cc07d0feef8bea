"""``evotune doctor``."""

from __future__ import annotations

import json
import logging
import os
import shutil
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evotune.cli import completing
from evotune.cli.app import MACHINE_FAULT, WRONG_USE, app, read_settings, stdout
from evotune.errors import UsageError

if TYPE_CHECKING:
    from evotune.doctor import Row

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@app.command()
def doctor(
    *,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Ask this provider's model a tiny question: openai, anthropic, a plug-in.",
            autocompletion=completing.providers,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to ask.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The OpenAI-compatible server to ask.")] = None,
    journal: Annotated[Path | None, typer.Option(help="The journal to look at.")] = None,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Say what works here, what does not, and how to mend it.

    Nothing is changed, and nothing is sent unless a provider, model or server is named. Ends with 0 if nothing
    fails, 3 if the machine is at fault, 2 if the configuration is. Examples:

      evotune doctor

      evotune doctor --json

      evotune doctor --provider openai --model gpt-4o-mini
    """
    from evotune.doctor import Row, examine, faults
    from evotune.settings import Settings

    flags: dict[str, Any] = {
        "run.journal": None if journal is None else str(journal),
        "llm.provider": provider,
        "llm.model": model,
        "llm.base_url": base_url,
    }
    # What the library would warn of is in the rows.
    logging.getLogger("evotune").addHandler(logging.NullHandler())
    rows: list[Row] = []
    try:
        settings = read_settings(config, flags)
    except UsageError as error:
        rows.append(Row("settings", "fail", str(error), "see config.yaml for what there is", "configuration"))
        settings = Settings()
    rows += examine(settings, os.environ, asks_model=any((provider, model, base_url)))
    if as_json:
        typer.echo(json.dumps({"checks": [row.to_json() for row in rows]}))
    else:
        _print(rows)
    if at_fault := faults(rows):
        raise typer.Exit(MACHINE_FAULT if "machine" in at_fault else WRONG_USE)


def _print(rows: list[Row]) -> None:
    from rich.text import Text

    console = stdout()
    names = max(len(row.name) for row in rows)
    indent = " " * (names + 8)
    columns = shutil.get_terminal_size((console.width, 24)).columns
    if columns < 2 * len(indent):  # what was found has lines of its own there
        names, indent = 0, " " * 6
    for row in rows:
        said = [row.found, *([f"fix: {row.fix}"] if row.fix else [])]
        lines = [line for text in said for line in _filled(text, columns, indent)]
        head = f"  {row.name:{names}}"
        lines[0] = f"{head}  {lines[0].lstrip()}" if names else f"{head}\n{lines[0]}"
        console.print(Text.assemble((f"{row.status:4}", COLOURS[row.status]), "\n".join(lines)))
    counts = Counter(row.status for row in rows)
    console.print(", ".join(f"{counts[status]} {status}" for status in COLOURS))


def _filled(text: str, columns: int, indent: str) -> list[str]:
    """Lines that fit; only a word that does not is left to the terminal to break, as paths are to be copied."""
    return textwrap.wrap(
        text,
        columns,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
