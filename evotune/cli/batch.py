"""``evotune batch``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evotune.cli.app import (
    FOUND,
    INTERRUPTED,
    MACHINE_FAULT,
    NOTHING_FOUND,
    WRONG_USE,
    app,
    gravest,
    log_to,
    read_settings,
    stdout,
)

if TYPE_CHECKING:
    from evotune.terminal import Terminal

CODES = {
    "interrupted": INTERRUPTED,
    "device fault": MACHINE_FAULT,
    "failed": WRONG_USE,
    "nothing found": NOTHING_FOUND,
    "not begun": NOTHING_FOUND,
}


@app.command()
def batch(
    jobs: Annotated[Path, typer.Argument(metavar="JOBS", help="Kernels, their shapes, targets and options.")],
    *,
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a page for each run there, and index.html.")
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="Where everything is recorded.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is to be run, gone on with, or done, and do nothing.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml, for all jobs.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings only.")] = False,
) -> None:
    """Tune many kernels, shapes and targets, one after another.

    The same command again goes on: jobs that are done are not run again. One that fails does not stop the
    others. Examples:

      evotune batch jobs.yaml --dry-run

      evotune batch jobs.yaml --report pages
    """
    settings = read_settings(config, {"run.journal": None if journal is None else str(journal)})
    from evotune import batch as batches
    from evotune.batch.terminal import print_batch_plan, print_outcomes

    began_s = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # a kernel file may print; stdout is for the result alone
        plan = batches.plan_batch(batches.read_batch(jobs, settings), settings, os.environ)
    if dry_run:
        typer.echo(json.dumps(plan.to_json())) if as_json else print_batch_plan(plan, stdout())
        return
    if report is not None:
        batches.check_folder(report)

    @contextlib.contextmanager
    def observe(title: str) -> Generator[Terminal]:
        from evotune.terminal import Terminal

        with Terminal(quiet=quiet) as terminal, contextlib.redirect_stdout(sys.stderr):
            log_to(terminal)
            terminal.on_note(title)
            yield terminal

    outcomes = batches.run_batch(plan, observe)
    if report is not None:
        batches.write_pages(outcomes, Path(plan.journal), report)
    if as_json:
        rows = [outcome.to_json() for outcome in outcomes]
        seconds = round(time.monotonic() - began_s, 3)
        typer.echo(json.dumps({"jobs": rows, "seconds": seconds, "journal": plan.journal}))
    else:
        print_outcomes(outcomes, stdout())
    raise typer.Exit(gravest([CODES.get(outcome.state, FOUND) for outcome in outcomes]))
