"""``evotune show``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evotune.cli.app import app, journal_path
from evotune.errors import UsageError


@app.command()
def show(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="An id, or how it begins; if not given, the latest run.")
    ] = None,
    *,
    trial: Annotated[
        int | None, typer.Option(min=1, help="Everything about one trial, by the number that a run prints.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List the runs, the latest first.")] = False,
    journal: Annotated[Path | None, typer.Option(help="Where runs are recorded.")] = None,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Tell what runs found, of finished ones and of those that go on.

    The journal is only read: it may be shown while a run writes it. Examples:

      evotune show

      evotune show --all

      evotune show r-1a2b --trial 12
    """
    from evotune import history, showing

    path = journal_path(journal, config)
    if every:
        if run is not None or trial is not None:
            raise UsageError("--all lists all runs; leave the run and --trial out")
        runs = history.runs(path)
        text = json.dumps(showing.runs_json(runs)) if as_json else showing.runs_text(runs, path)
    else:
        found = history.load(path, run)
        if trial is not None:
            one = showing.trial_of(found, trial)
            text = json.dumps(showing.trial_json(found, one)) if as_json else showing.trial_text(found, one)
        else:
            text = json.dumps(showing.run_json(found, path)) if as_json else showing.run_text(found, path)
    typer.echo(text)
