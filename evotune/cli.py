"""The command line. Results go to stdout, everything else to stderr.

Exit codes: 0 found, 1 nothing valid found, 2 wrong use or configuration, 3 device or machine fault,
130 interrupted (the same command resumes).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from evotune.errors import DeviceError, ProviderError, UsageError

if TYPE_CHECKING:
    from evotune.compare import Comparison
    from evotune.settings import Settings
    from evotune.tuner import Result

FOUND, NOTHING_FOUND, WRONG_USE, MACHINE_FAULT, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    help="Tune GPU kernels: evolving programs, a Gaussian-process screen, and timings you can trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from evotune import __version__

        typer.echo(f"evotune {__version__}")
        raise typer.Exit


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
    settings = _settings(config, flags)
    if settings.run.shapes is not None:
        _run_shapes(kernel, settings, out=out, fresh=fresh, as_json=as_json, verbose=verbose, quiet=quiet)
        return
    if out is not None:
        raise UsageError("--out is for the program of several shapes; give --shapes A,B,C too")
    from evotune.session import tune
    from evotune.terminal import Terminal, print_result

    # A kernel file may print; stdout is for the result alone.
    with Terminal(verbose=verbose, quiet=quiet) as terminal, contextlib.redirect_stdout(sys.stderr):
        _log_to(terminal)
        result = tune(kernel, settings, observer=terminal, fresh=fresh)
    _report(result, lambda: print_result(result, _stdout()), as_json=as_json)


def _run_shapes(
    kernel: str, settings: Settings, *, out: Path | None, fresh: bool, as_json: bool, verbose: bool, quiet: bool
) -> None:
    from evotune.compare import check_writable
    from evotune.shapes import find_shapes, tune_shapes
    from evotune.shapes.terminal import ShapesTerminal, print_shapes

    if out is not None:
        check_writable(out)
    with ShapesTerminal(verbose=verbose, quiet=quiet) as terminal, contextlib.redirect_stdout(sys.stderr):
        _log_to(terminal)
        result = tune_shapes(find_shapes(kernel, settings), settings, observer=terminal, fresh=fresh)
    if out is not None and result.program is not None:
        out.write_text(result.program, encoding="utf-8")
    _report(result, lambda: print_shapes(result, _stdout()), as_json=as_json)


def _report(result: Result, show: Callable[[], None], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        show()
    if result.stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if result.best is None:
        raise typer.Exit(NOTHING_FOUND)


@app.command()
def record(
    kernel: Annotated[str, typer.Argument(help="A kernel file, or the name of a shipped one.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the recording.")],
    target: Annotated[str | None, typer.Option(help="cpu, cuda, h100, h200, b200.")] = None,
    shape: Annotated[str | None, typer.Option(help="A named shape of the kernel.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Configurations to measure; all if not given.")] = None,
    passes: Annotated[int, typer.Option(min=1, help="Times that each is measured; the median is kept.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Fixes which are drawn and in which order.")] = None,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
) -> None:
    """Measure a whole space, to be replayed.

    The same command again goes on where it stopped.
    """
    settings = _settings(config, {"run.target": target, "run.shape": shape, "run.seed": seed})
    from evotune.session import record_space
    from evotune.terminal import Terminal

    with Terminal() as terminal:
        _log_to(terminal)
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


@app.command()
def check(
    kernel: Annotated[str, typer.Argument(help="A kernel file, or the name of a shipped one.")],
    *,
    target: Annotated[list[str], typer.Option(help="h100, h200, b200; may be given several times.")],
    shape: Annotated[str | None, typer.Option(help="A named shape of the kernel.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Configurations besides the default.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Fixes which are drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Compile for GPUs that are not here.

    Real Triton to machine code; tells registers, spills and memory of each configuration. Nothing is timed.

    evotune check kernels/attention.py --target h100 --target b200
    """
    from evotune import content
    from evotune.gpu.check import check as cross_compile
    from evotune.kernel import load_kernel
    from evotune.terminal import Terminal, print_checked

    loaded = load_kernel(content.find(kernel, content.KERNELS))
    total = len(target) * (samples + 1)
    done: list[int] = []
    with Terminal() as terminal:
        _log_to(terminal)

        def on_row(_: object) -> None:
            done.append(1)
            terminal.on_progress(len(done), total)

        rows = cross_compile(loaded, target, shape=shape, samples=samples, seed=seed, on_row=on_row)
    if as_json:
        typer.echo(json.dumps({"rows": [row.to_json() for row in rows]}))
    else:
        print_checked(rows, _stdout())
    if not any(row.ok for row in rows):
        raise typer.Exit(NOTHING_FOUND)


@app.command()
def compare(
    spaces: Annotated[list[str], typer.Argument(help="Recordings, or `synthetic`.")],
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="evotune, random, …, or evotune+RECORDING for a warm start; several times. If not given: evotune, "
            "mfbo (with synthetic only), pattern, de, random, genetic, annealing."
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
            _log_to(terminal)
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
            _fail("interrupted; no run was kept: with --json FILE the same command goes on", INTERRUPTED)
        where = f"runs that ended are kept in {comparing.partial_of(out)}"
        _fail(f"interrupted; {where}, and the same command goes on from there", INTERRUPTED)


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text!r} is neither a number nor a list like 1,2,3") from None
    return numbers if "," in text else list(range(numbers[0]))


def _stdout() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _settings(path: Path | None, flags: dict[str, Any]) -> Settings:
    from evotune import settings

    return settings.load(path or settings.default_path(), flags, os.environ)


def _log_to(terminal: Any) -> None:
    """Let warnings of the library reach the person who runs it, above the live line."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            terminal.warn(self.format(record))

    logger = logging.getLogger("evotune")
    logger.handlers = [Handler(level=logging.WARNING)]
    logger.propagate = False


def main() -> None:
    """Entry point of the ``evotune`` command."""
    code: object = FOUND
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        _fail(str(error), WRONG_USE)
    except DeviceError as error:
        _fail(str(error), MACHINE_FAULT)
    except ProviderError as error:
        _fail(str(error), WRONG_USE)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command goes on from here", INTERRUPTED)
    except Exception as error:
        # Click's errors of wrong usage know how to show themselves; anything else is a bug.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(WRONG_USE)
    if code == INTERRUPTED:
        sys.stderr.write("interrupted; the same command goes on from here\n")
    # Without its standalone mode, typer returns the code of a typer.Exit.
    sys.exit(code if isinstance(code, int) else FOUND)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)
