"""``evotune compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evotune.cli import completing
from evotune.cli.app import INTERRUPTED, app, fail, log_to
from evotune.errors import UsageError

if TYPE_CHECKING:
    from evotune.compare import Comparison


@app.command()
def compare(
    spaces: Annotated[
        list[str], typer.Argument(help="Recordings, or `synthetic`.", autocompletion=completing.spaces)
    ],
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="evotune, random, …, or evotune+RECORDING for a warm start; several times. If not given: evotune, "
            "mfbo (with synthetic only), pattern, de, random, genetic, annealing.",
            autocompletion=completing.methods,
        ),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Evaluations of each run.")] = 200,
    seeds: Annotated[
        str | None,
        typer.Option(help="How many, or which: 10, or 1,2,3. If not given 10; with synthetic 42,123,456,789,1011."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 2,
    out: Annotated[
        Path | None, typer.Option("--json", help="Write all runs to this file; one of another comparison is kept.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page to this file, or over it.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture to this file, or over it (needs the extra plot).")
    ] = None,
) -> None:
    """Score searches on recorded spaces.

    Prints how well each search did, what it found and when, and its best configuration. With --json the
    same command again goes on where it stopped, and reads the runs from the file once all are made. `synthetic`
    is a built-in formula, noisy and with several valleys; nothing of it is measured on a device. Examples:

      evotune compare synthetic --plot convergence_comparison.png

      evotune compare recordings/conv_A100 --method evotune --method pattern --seeds 3
    """
    from evotune import compare as comparing

    for path in (report, plot):
        if path is not None:
            comparing.check_writable(path)
    if plot is not None:
        comparing.check_plot(plot)
    wanted = _seeds(seeds) if seeds else comparing.default_seeds(spaces)
    compared = _compared(spaces, method or comparing.default_methods(spaces), wanted, budget, jobs=jobs, out=out)
    rows = comparing.score(compared.runs, compared.recordings, budget)
    typer.echo(comparing.format_table(rows) + "\n")
    typer.echo(comparing.format_best(comparing.best_found(compared)))
    if report is not None:
        comparing.write_page(compared, rows, report)
    if plot is not None:
        comparing.write_plot(compared, plot)


def _compared(
    spaces: Sequence[str], method: Sequence[str], seeds: Sequence[int], budget: int, *, jobs: int, out: Path | None
) -> Comparison:
    """Make the runs, shown on the terminal; Ctrl-C ends the process."""
    from evotune import compare as comparing
    from evotune.terminal import Terminal

    try:
        with Terminal() as terminal:
            log_to(terminal)
            compared = comparing.compare(
                spaces,
                method,
                seeds,
                budget,
                jobs=jobs,
                out=out,
                on_progress=lambda p: terminal.on_progress(p.done, p.total),
                on_note=terminal.on_note,
            )
            for name, why in compared.skipped.items():
                terminal.warn(f"{name} was left out: {why}")
        return compared
    except KeyboardInterrupt:
        if out is None:
            fail("interrupted; no run was kept: with --json FILE the same command goes on", INTERRUPTED)
        where = f"runs that ended are kept in {comparing.partial_of(out)}"
        fail(f"interrupted; {where}, and the same command goes on from there", INTERRUPTED)


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text!r} is neither a number nor a list like 1,2,3") from None
    return numbers if "," in text else list(range(numbers[0]))
