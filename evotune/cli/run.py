"""``evotune run``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evotune.cli import completing
from evotune.cli.app import INTERRUPTED, NOTHING_FOUND, app, gravest, log_to, read_settings, stdout
from evotune.errors import UsageError

if TYPE_CHECKING:
    from evotune.progress import JsonLines
    from evotune.result import Result
    from evotune.settings import Settings
    from evotune.terminal import Terminal


@app.command()
def run(
    kernel: Annotated[
        str,
        typer.Argument(
            metavar="KERNEL_OR_RECORDING",
            help="A kernel file, a recorded space, or the name of a shipped one.",
            autocompletion=completing.subjects,
        ),
    ],
    *,
    target: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda, h100, h200, b200, or your own recipe file.", autocompletion=completing.targets
        ),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="N|all", help="GPUs of one model that measure at once; 1 if not given.")
    ] = None,
    gpu_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only GPUs called so measure: a name, or a word of it.")
    ] = None,
    per_model: Annotated[
        bool, typer.Option("--per-model", help="A run for each model of GPU there is, all at the same time.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option(help="local, or ray to measure on the nodes of a Ray cluster.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT|ray://HOST:PORT",
            help="With --engine ray: where the cluster is; without, Ray is started on this machine.",
        ),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="A named shape of the kernel; see evotune list KERNEL.")] = None,
    shapes: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Tune one program, a rule over sizes, for these shapes at once."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --shapes: write the program to this file.")] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Who proposes programs: auto, openai, anthropic, mock, none, replay:FILE, human:FOLDER, or a "
            "plug-in.",
            autocompletion=completing.providers,
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
        typer.Option(
            help="evotune or mfbo, or to compare with: random, pattern, de, genetic, annealing.",
            autocompletion=completing.searches,
        ),
    ] = None,
    max_evaluations: Annotated[int | None, typer.Option(help="Configurations to evaluate (60 if not set).")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Wall time to search for; the finals come on top.")
    ] = None,
    max_usd: Annotated[float | None, typer.Option(help="What the model may cost at most.")] = None,
    target_latency_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="Stop when a configuration is as fast as that.")
    ] = None,
    roofline_share: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Stop at this share of the speed that the device's peaks allow."),
    ] = None,
    no_progress: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after N evaluations without a new best beyond noise.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes what is proposed.")] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(help="A journal, or a recording, of this kernel on another device or shape to learn from."),
    ] = None,
    isolation: Annotated[
        str | None, typer.Option(help="strict refuses to run programs of models without a kernel-level jail.")
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="Where everything is recorded.")] = None,
    track: Annotated[
        str | None, typer.Option(help="Tell an experiment tracker: mlflow, wandb, or package.module:function.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of resuming.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would do and cost at most, and do nothing.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="A settings file like config.yaml.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line per trial.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress: warnings and the result.")] = False,
    progress: Annotated[
        Literal["auto", "json"],
        typer.Option(
            help="On stderr: a live line, or plain lines where it is no terminal; or JSON, an event a line."
        ),
    ] = "auto",
) -> None:
    """Tune a kernel, or replay a recording.

    Reports the fastest configuration that was measured, and how sure that is. The same command again
    resumes. Settings that are not given come from EVOTUNE_<SECTION>_<KEY> or --config; see config.yaml.
    Examples:

      evotune run kernels/attention.py

      evotune run kernels/matmul.py --max-evaluations 200 --provider none

      evotune run recordings/conv_A100 --json

      evotune run kernels/attention.py --provider openai --max-usd 0.5 --dry-run

      evotune run kernels/attention.py --shapes small,default,long --max-evaluations 90 --out heuristic.py
    """
    flags: dict[str, Any] = {
        "run.target": target,
        "run.gpus": int(gpus) if gpus and gpus.isdecimal() else gpus,
        "run.gpu_model": gpu_model,
        "run.engine": engine,
        "run.ray_address": ray_address,
        "run.shape": shape,
        "run.shapes": shapes,
        "run.search": search,
        "run.max_evaluations": max_evaluations,
        "run.max_seconds": max_seconds,
        "run.target_latency_ms": target_latency_ms,
        "run.roofline_share": roofline_share,
        "run.no_progress": no_progress,
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
    if quiet and progress == "json":
        raise UsageError("--quiet tells nothing and --progress json everything; give one of the two")
    settings = read_settings(config, flags)
    if out is not None and settings.run.shapes is None:
        raise UsageError("--out is for the program of several shapes; give --shapes A,B,C too")
    from evotune.settings import check_together

    check_together(settings, ray_address=ray_address, track=track)
    if dry_run and settings.run.engine == "ray":
        raise UsageError("--dry-run asks no cluster; leave --engine ray out to see what a run here would do")
    if per_model:
        if dry_run:
            raise UsageError("--dry-run tells of one run; leave --per-model out, and give --gpu-model NAME")
        options = ["--fresh"] * fresh + (["--track", track] if track else [])
        _run_models(kernel, settings, options, as_json=as_json, quiet=quiet, progress=progress)
        return
    if dry_run:
        _dry_run(kernel, settings, fresh=fresh, as_json=as_json)
        return
    from evotune.progress import JsonLines

    if settings.run.shapes is not None:
        from evotune.shapes.terminal import ShapesTerminal

        observer = JsonLines() if progress == "json" else ShapesTerminal(verbose=verbose, quiet=quiet)
        _run_shapes(kernel, settings, observer, out=out, fresh=fresh, as_json=as_json)
        return
    from evotune.session import tune
    from evotune.terminal import Terminal, print_result
    from evotune.track import open_tracker

    tracker = None if track is None else open_tracker(track)
    # A kernel file may print; stdout is for the result alone.
    shown = JsonLines() if progress == "json" else Terminal(verbose=verbose, quiet=quiet)
    with shown as observer, contextlib.redirect_stdout(sys.stderr):
        log_to(observer)
        result = tune(kernel, settings, observer=observer, fresh=fresh, tracker=tracker)
    _report(result, lambda: print_result(result, stdout()), as_json=as_json)


def _dry_run(kernel: str, settings: Settings, *, fresh: bool, as_json: bool) -> None:
    from evotune.plan import plan, plan_shapes
    from evotune.terminal import Terminal, print_plan

    with Terminal(quiet=True) as terminal, contextlib.redirect_stdout(sys.stderr):
        log_to(terminal)
        if settings.run.shapes is None:
            found = plan(kernel, settings, os.environ, fresh=fresh)
        else:
            from evotune.shapes import describe, find_shapes, known_as

            subjects = find_shapes(kernel, settings)
            described = describe(subjects, settings)
            found = plan_shapes(subjects, known_as(subjects), described, settings, os.environ, fresh=fresh)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        print_plan(found, stdout())


def _run_shapes(
    kernel: str, settings: Settings, shown: Terminal | JsonLines, *, out: Path | None, fresh: bool, as_json: bool
) -> None:
    from evotune import files
    from evotune.shapes import find_shapes, tune_shapes
    from evotune.shapes.terminal import print_shapes

    if out is not None:
        files.check_writable(out)
    with shown as observer, contextlib.redirect_stdout(sys.stderr):
        log_to(observer)
        result = tune_shapes(kernel, find_shapes(kernel, settings), settings, observer=observer, fresh=fresh)
    if out is not None and result.program is not None:
        files.write(out, result.program)
    _report(result, lambda: print_shapes(result, stdout()), as_json=as_json)


def _run_models(
    kernel: str, settings: Settings, options: Sequence[str], *, as_json: bool, quiet: bool, progress: str
) -> None:
    from evotune.per_model import find_models, tune_each
    from evotune.result import Result
    from evotune.terminal import Terminal, describe_event, print_result

    def show(gpu: str, event: Mapping[str, Any]) -> None:
        if progress == "json":
            sys.stderr.write(json.dumps({"gpu": gpu, **event}) + "\n")
        elif event["event"] == "warning":
            terminal.warn(f"{gpu}: {event['text']}")
        elif text := describe_event(event):
            terminal.on_note(f"{gpu}: {text}")

    with Terminal(quiet=quiet) as terminal:
        log_to(terminal)
        all_ended = tune_each(kernel, settings, find_models(settings), show, options)
    if as_json:
        typer.echo(json.dumps({"gpus": [ended.to_json() for ended in all_ended]}))
    for ended in [] if as_json else all_ended:
        if ended.result is not None:
            print_result(Result.from_json(ended.result), stdout())
        else:
            stdout().print(f"{ended.gpu}: {ended.why}", markup=False)
    raise typer.Exit(gravest([ended.exit_code for ended in all_ended]))


def _report(result: Result, show: Callable[[], None], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        show()
    if result.stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if result.best is None:
        raise typer.Exit(NOTHING_FOUND)
