"""``evotune merge``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evotune.cli.app import app
from evotune.errors import UsageError


@app.command()
def merge(
    journals: Annotated[
        list[Path],
        typer.Argument(metavar="JOURNAL", help="The one that grows, then those brought into it."),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Bring all of them into this journal instead, which need not be there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Bring the runs of several journals into one.

    Nothing is lost, and nothing is there twice: a run that went on in copies of a journal unites its trials, and
    the same command again adds nothing. The journals that are brought are only read. Examples:

      evotune merge .evotune/journal.db node1.db node2.db

      evotune merge node1.db node2.db --out all.db
    """
    from evotune.merge import merge as merging

    into, *sources = journals if out is None else [out, *journals]
    if not sources:
        raise UsageError(f"{into} is the only journal; name those that are to be brought into it, too")
    if out is None and not into.exists():
        raise UsageError(f"no journal at {into}; to make a new one of the others, give it with --out")
    merged = merging(into, sources)
    if as_json:
        rows = [
            {"journal": str(m.source), "added": m.added, "grown": m.grown, "known": m.known, "trials": m.trials}
            for m in merged
        ]
        typer.echo(json.dumps({"journal": str(into), "merged": rows}))
        return
    for m in merged:
        typer.echo(
            f"{m.source}: runs new in {into}: {m.added}, grown: {m.grown}, there before: {m.known}; "
            f"trials brought: {m.trials}"
        )
