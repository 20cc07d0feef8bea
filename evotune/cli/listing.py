"""``evotune list``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evotune.cli import completing
from evotune.cli.app import app
from evotune.errors import UsageError

if TYPE_CHECKING:
    from evotune.kernel import LoadedKernel, Problem
    from evotune.listing import Choices


@app.command("list")
def listing(
    kernel: Annotated[
        str | None,
        typer.Argument(help="A kernel file, or the name of a shipped one.", autocompletion=completing.kernels),
    ] = None,
    *,
    shape: Annotated[str | None, typer.Option(help="A named shape; each backend's default if not given.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The GPU that spaces are for; h100 if not given.", autocompletion=completing.gpus),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """List what is shipped, or what a kernel has.

    Of a kernel: its named shapes, and for each backend the parameters, constraints, the number of legal
    configurations and the default. Nothing is compiled or measured. Examples:

      evotune list

      evotune list kernels/matmul.py

      evotune list kernels/matmul.py --shape gpu_bf16 --target b200
    """
    if kernel is None:
        if shape is not None or target is not None:
            raise UsageError("--shape and --target are for the space of a kernel; name one too")
        _shipped(as_json=as_json)
        return
    with contextlib.redirect_stdout(sys.stderr):  # a kernel file may print; stdout is for the result alone
        from evotune import content
        from evotune.kernel import load_checked
        from evotune.listing import choices

        path = content.find(kernel, content.KERNELS, content.RECORDINGS)
        if path.is_dir():
            raise UsageError(f"{path} is a recording, of one space: evotune run {path} --dry-run tells it")
        loaded = load_checked(path)
        found = choices(loaded, shape, target or "h100")
    if as_json:
        shapes = {name: dict(problem) for name, problem in loaded.definition.shapes.items()}
        typer.echo(json.dumps({"kernel": loaded.name, "shapes": shapes, "choices": [c.to_json() for c in found]}))
    else:
        typer.echo("\n".join(_lines(loaded, found)))


def _shipped(*, as_json: bool) -> None:
    from evotune import content

    kinds = {"kernels": content.KERNELS, "targets": content.EVALUATORS, "recordings": content.RECORDINGS}
    found = {name: content.shipped(kind) for name, kind in kinds.items()}
    found["targets"] = [Path(entry).stem for entry in found["targets"]]
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, entries in found.items():
        typer.echo("\n  ".join([name, *entries]))


def _lines(kernel: LoadedKernel, found: list[Choices]) -> list[str]:
    names = kernel.definition.shapes
    width = max(map(len, names))
    out = [f"kernel {kernel.name}", "shapes", *(f"  {n:{width}}  {_pairs(p)}" for n, p in names.items())]
    for c in found:
        out.append(f"backend {c.backend}, shape {c.shape}" + (f", on {c.target}" if c.target != c.backend else ""))
        if c.space is None:
            out.append(f"  {c.reason}")
            continue
        width = max(map(len, c.space.names))
        for name, parameter in c.space.parameters.items():
            values = [str(v) or "''" for v in parameter.values]
            at = c.space.key(c.space.default)[c.space.names.index(name)]
            values[at] = f"[{values[at]}]"
            out.append(f"  {name:{width}}  {' '.join(values)}")
        out += [f"  {constraint.text}" for constraint in c.space.constraints]
        kind = "legal configurations" if c.space.is_enumerable else "combinations, not all legal"
        out.append(f"  {c.configurations:.6g} {kind}; the default is in brackets")
    return out


def _pairs(problem: Problem) -> str:
    return " ".join(f"{name}={value}" for name, value in problem.items())
