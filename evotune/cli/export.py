"""``evotune export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from evotune.cli.app import NOTHING_FOUND, app, journal_path
from evotune.errors import UsageError


@app.command()
def export(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Ids, or how they begin; if not given, the latest run."),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All runs of the journal.")] = False,
    form: Annotated[str, typer.Option("--format", help="triton, helion, json, t4, vllm, dispatch, lookup.")],
    out: Annotated[Path | None, typer.Option(help="Write to this file, or over it, or into this folder.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Where the run is recorded.")] = None,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
) -> None:
    """Write what a run found as code or JSON.

    triton and helion are Python to paste, with where it comes from in a comment; json has the configuration and
    all that makes it believable; t4 has all trials in the format of the auto-tuning community; vllm is for its
    mixture-of-experts kernel; dispatch is a Python function for several shapes: of a run with --shapes, or of
    several runs, one for each shape; lookup is JSON of all kernels, problems and devices for evotune.lookup().
    Examples:

      evotune export --format triton

      evotune export r-1a2b --format t4 --out results.json

      evotune export r-1a2b r-3c4d --format dispatch --out kernel_config.py

      evotune export --all --format lookup --out table.json
    """
    from evotune import export as exporting
    from evotune import files, history

    exporting.check(form)
    if out is not None:
        files.check_writable(out / "a file" if out.is_dir() else out)
    recorded = journal_path(journal, config)
    if every and runs:
        raise UsageError(f"--all takes all runs; leave {' '.join(runs)} out, or --all")
    chosen: list[str | None] = [*runs] if runs else [None]
    if every:
        chosen = [run.run_id for run in history.runs(recorded)]
    found = exporting.FORMATS[form].find([history.load(recorded, run) for run in chosen])
    made = exporting.export(found, form)
    if made is None:
        ids = " ".join(run.summary.run_id for run in found.runs)
        sys.stderr.write(f"run {ids} has no valid configuration to export; why: evotune show {ids}\n")
        raise typer.Exit(NOTHING_FOUND)
    for note in made.notes:
        sys.stderr.write(f"note: {note}\n")
    if out is None:
        typer.echo(made.text, nl=False)
        return
    path = out / made.file_name if out.is_dir() else out
    files.write(path, made.text)
    sys.stderr.write(f"written to {path}\n")
