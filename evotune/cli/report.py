"""``evotune report``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from evotune.cli.app import INTERRUPTED, app, journal_path
from evotune.errors import UsageError

OUT = Path("report.html")


@app.command()
def report(
    run: Annotated[
        str | None, typer.Argument(help="An id, or how it begins; if not given, the latest run.")
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(help=f"Write the page to this file, or over it ({OUT} if not given).")
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="Where runs are recorded.")] = None,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page to this machine, with news of the run, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="With --watch: the port; a free one if not given.")
    ] = None,
) -> None:
    """Write a page about a run, in one file that needs nothing else.

    Summary, convergence, what each stage let through, importance of parameters, heat map, parallel coordinates,
    roofline, failures, genealogy, cost of the model, all trials, and how to reproduce it. The journal is only
    read: a run may be looked at while it goes on. Examples:

      evotune report

      evotune report r-1a2b --out attention.html

      evotune report --watch
    """
    path = journal_path(journal, config)
    if watch:
        if out is not None:
            raise UsageError("--watch writes no file; leave --out out, or --watch")
        _watch(path, run, port or 0)
    if port is not None:
        raise UsageError("--port is for --watch; give that too, or leave --port out")
    from evotune.report import write_report

    found = write_report(path, run, out or OUT)
    typer.echo(f"run {found}: {out or OUT}")


def _watch(journal: Path, run: str | None, port: int) -> None:
    from evotune.report import serve

    os.nice(10)  # the run that is watched may be timing kernels on this machine
    try:
        serve(journal, run, port, lambda url: typer.echo(f"{url} shows the run; Ctrl-C ends this, not the run"))
    except KeyboardInterrupt:
        sys.stderr.write("not served any more; the run is not touched\n")
        sys.exit(INTERRUPTED)
