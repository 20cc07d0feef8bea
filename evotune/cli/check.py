"""``evotune check``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from evotune.cli import completing
from evotune.cli.app import NOTHING_FOUND, app, log_to, read_settings, stdout


@app.command()
def check(
    kernel: Annotated[
        str,
        typer.Argument(help="A kernel file, or the name of a shipped one.", autocompletion=completing.kernels),
    ],
    *,
    target: Annotated[
        list[str],
        typer.Option(help="h100, h200, b200; may be given several times.", autocompletion=completing.gpus),
    ],
    shape: Annotated[str | None, typer.Option(help="A named shape of the kernel.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Configurations besides the default.")] = 20,
    seed: Annotated[int | None, typer.Option(min=0, help="Fixes which are drawn.")] = None,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Compile for GPUs that are not here.

    Real Triton to machine code; tells registers, spills and memory of each configuration. Nothing is timed.
    Example:

      evotune check kernels/attention.py --target h100 --target b200
    """
    from evotune import content
    from evotune.gpu.check import check as cross_compile
    from evotune.kernel import load_checked
    from evotune.terminal import Terminal, print_checked

    settings = read_settings(config, {"run.shape": shape, "run.seed": seed})
    total = len(target) * (samples + 1)
    done: list[int] = []
    # A kernel file may print; stdout is for the result alone.
    with Terminal() as terminal, contextlib.redirect_stdout(sys.stderr):
        log_to(terminal)
        loaded = load_checked(content.find(kernel, content.KERNELS))

        def on_row(_: object) -> None:
            done.append(1)
            terminal.on_progress(len(done), total)

        rows = cross_compile(
            loaded,
            target,
            shape=settings.run.shape,
            samples=samples,
            seed=settings.run.seed,
            timeout_s=settings.measure.compile_timeout_s,
            on_row=on_row,
        )
    if as_json:
        typer.echo(json.dumps({"rows": [row.to_json() for row in rows]}))
    else:
        print_checked(rows, stdout())
    if not any(row.ok for row in rows):
        raise typer.Exit(NOTHING_FOUND)
