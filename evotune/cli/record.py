"""``evotune record``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evotune.cli import completing
from evotune.cli.app import app, log_to, read_settings


@app.command()
def record(
    kernel: Annotated[
        str,
        typer.Argument(help="A kernel file, or the name of a shipped one.", autocompletion=completing.kernels),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the recording.")],
    target: Annotated[
        str | None, typer.Option(help="cpu, cuda, h100, h200, b200.", autocompletion=completing.targets)
    ] = None,
    shape: Annotated[str | None, typer.Option(help="A named shape of the kernel.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Configurations to measure; all if not given.")] = None,
    passes: Annotated[int, typer.Option(min=1, help="Times that each is measured; the median is kept.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Fixes which are drawn and in which order.")] = None,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
) -> None:
    """Measure a whole space, to be replayed.

    The same command again goes on where it stopped. Example:

      evotune record kernels/matmul.py --shape small --out my_recording --samples 200
    """
    settings = read_settings(config, {"run.target": target, "run.shape": shape, "run.seed": seed})
    from evotune.session import record_space
    from evotune.terminal import Terminal

    with Terminal() as terminal:
        log_to(terminal)
        record_space(
            kernel,
            settings,
            out,
            samples=samples,
            passes=passes,
            on_note=terminal.on_note,
            on_progress=terminal.on_progress,
        )
    typer.echo(f"recorded in {out}; replay it with: evotune run {out}")
