"""``evotune run``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evotune.cli.app import INTERRUPTED, NOTHING_FOUND, app, log_to, read_settings, stdout
from evotune.errors import UsageError

if TYPE_CHECKING:
    from evotune.settings import Settings
    from evotune.tuner import Result


@app.command()
def run(
    kernel: Annotated[
        str,
        typer.Argument(
            metavar="KERNEL_OR_RECORDING", help="A kernel file, a recorded space, or the name of a shipped one."
        ),
    ],
    *,
    target: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, h100, h200, b200, or your own recipe file.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="A named shape of the kernel.")] = None,
    shapes: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Tune one program, a rule over sizes, for these shapes at once."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --shapes: write the program to this file.")] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Who proposes programs: auto, openai, anthropic, mock, none, replay:FILE, human:FOLDER, a plug-in."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The provider's model.")] = None,
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Your own prompt templates: a folder with system.md, user.md, or both.")
    ] = None,
    on_llm_error: Annotated[
        str | None, typer.Option(help="On a wrong key, model or request: fail, or fallback to go on without.")
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(help="evotune or mfbo, or to compare with: random, pattern, de, genetic, annealing."),
    ] = None,
    max_evaluations: Annotated[int | None, typer.Option(help="Configurations to evaluate (60 if not set).")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Wall time to search for; the finals come on top.")
    ] = None,
    max_usd: Annotated[float | None, typer.Option(help="What the model may cost at most.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes what is proposed.")] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(help="A journal, or a recording, of this kernel on another device or shape to learn from."),
    ] = None,
    isolation: Annotated[
        str | None, typer.Option(help="strict refuses to run programs of models without a kernel-level jail.")
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="Where everything is recorded.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming.")] = False,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line per trial.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Tune a kernel, or replay a recording.

    Reports the fastest configuration that was measured, and how sure that is. The same command again
    resumes. Settings that are not given come from EVOTUNE_<SECTION>_<KEY> or --config; see config.yaml.
    Examples:

      evotune run kernels/attention.py

      evotune run kernels/matmul.py --max-evaluations 200 --provider none

      evotune run recordings/conv_A100 --json

      evotune run kernels/attention.py --shapes small,default,long --max-evaluations 90 --out heuristic.py
    """
    flags: dict[str, Any] = {
        "run.target": target,
        "run.shape": shape,
        "run.shapes": shapes,
        "run.search": search,
        "run.max_evaluations": max_evaluations,
        "run.max_seconds": max_seconds,
        "run.seed": seed,
        "run.warm_start": warm_start,
        "run.isolation": isolation,
        "run.journal": None if journal is None else str(journal),
        "llm.provider": provider,
        "llm.model": model,
        "llm.base_url": base_url,
        "llm.on_error": on_llm_error,
        "llm.max_usd": max_usd,
        "prompt.folder": None if prompts is None else str(prompts),
    }
    settings = read_settings(config, flags)
    if settings.run.shapes is not None:
        _run_shapes(kernel, settings, out=out, fresh=fresh, as_json=as_json, verbose=verbose, quiet=quiet)
        return
    if out is not None:
        raise UsageError("--out is for the program of several shapes; give --shapes A,B,C too")
    from evotune.session import tune
    from evotune.terminal import Terminal, print_result

    # A kernel file may print; stdout is for the result alone.
    with Terminal(verbose=verbose, quiet=quiet) as terminal, contextlib.redirect_stdout(sys.stderr):
        log_to(terminal)
        result = tune(kernel, settings, observer=terminal, fresh=fresh)
    _report(result, lambda: print_result(result, stdout()), as_json=as_json)


def _run_shapes(
    kernel: str, settings: Settings, *, out: Path | None, fresh: bool, as_json: bool, verbose: bool, quiet: bool
) -> None:
    from evotune.compare import check_writable
    from evotune.shapes import find_shapes, tune_shapes
    from evotune.shapes.terminal import ShapesTerminal, print_shapes

    if out is not None:
        check_writable(out)
    with ShapesTerminal(verbose=verbose, quiet=quiet) as terminal, contextlib.redirect_stdout(sys.stderr):
        log_to(terminal)
        result = tune_shapes(find_shapes(kernel, settings), settings, observer=terminal, fresh=fresh)
    if out is not None and result.program is not None:
        out.write_text(result.program, encoding="utf-8")
    _report(result, lambda: print_shapes(result, stdout()), as_json=as_json)


def _report(result: Result, show: Callable[[], None], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        show()
    if result.stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if result.best is None:
        raise typer.Exit(NOTHING_FOUND)
