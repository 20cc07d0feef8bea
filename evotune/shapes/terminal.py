"""What a person sees of a run over several shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from evotune.interval import verdict
from evotune.progress import Progress
from evotune.shapes.tuner import ShapesResult
from evotune.terminal import Terminal, milliseconds, print_end, print_table


class ShapesTerminal(Terminal):
    """Shows how many times as fast as the defaults the best program is, instead of one latency."""

    def _best(self, progress: Progress) -> str:
        return "no valid program yet" if progress.speedup is None else f"program {progress.speedup:.2f}x"


def print_shapes(result: ShapesResult, console: Console) -> None:
    """A row per shape, geometric means in the last, and the program."""
    mean_ms = [found["latency_ms"] if found else None for found in (result.default, result.single, result.best)]
    speedup = "-" if result.speedup is None else f"{result.speedup:.3f}x"
    means = [Text(cell, style="bold") for cell in ("mean", *map(milliseconds, mean_ms), speedup)]
    title = f"{result.kernel} on {result.device} ({result.provenance})"
    header = ["shape", "default", "single", "program", "speed-up"]
    print_table(title, header, [*map(_cells, result.shapes), means], console)
    if result.speedup is not None and result.speedup_ci95 is not None:
        console.print(_sentence("the defaults", result.speedup, result.speedup_ci95))
    if result.single is not None:
        against = f"the best of {result.single['tried']} single configurations"
        console.print(_sentence(against, result.single["speedup"], result.single["speedup_ci95"]))
    if result.score is not None:
        console.print(f"best known at each shape / program: {result.score:.3f}")
    print_end(result, console)
    if result.best is None or result.program is None:
        console.print("no program was found that is valid at every shape")
    else:
        console.print("\nprogram to paste:", style="bold")
        console.print(Text(result.program))


def _cells(row: Mapping[str, Any]) -> list[str]:
    speedup = "-"
    if row["speedup"] is not None:
        low, high = row["speedup_ci95"]
        speedup = f"{row['speedup']:.3f}x [{low:.3f}, {high:.3f}]"
    numbers = [row["default"]["latency_ms"], row["single_ms"], row["latency_ms"]]
    return [row["shape"], *map(milliseconds, numbers), speedup]


def _sentence(against: str, speedup: float, interval: tuple[float, float]) -> str:
    low, high = interval
    word = verdict((low, high))
    return f"program against {against}: {speedup:.3f}x, 95 % interval [{low:.3f}, {high:.3f}]: {word}"
