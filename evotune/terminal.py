"""What a person sees: a live line while a run goes on, and a table at its end.

Progress goes to stderr and results to stdout. Where stderr is not a terminal the same facts come as
plain lines, so that a log of a run reads like the run did.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from evotune.interval import verdict
from evotune.trial import Trial

if TYPE_CHECKING:
    from evotune.gpu.check import CheckRow
    from evotune.tuner import Result, Tuner

# A log gets a line of progress this often, beside one for each new best.
PLAIN_EVERY_S = 5.0


class Terminal:
    """Shows a run on stderr. Use it in a ``with``; it is an observer of the tuner.

    Args:
        verbose: One line per trial instead of one per new best.
        quiet: Nothing but warnings.
    """

    def __init__(self, *, verbose: bool = False, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._verbose = verbose
        self._quiet = quiet
        self._failed = 0
        self._opened_s = self._shown_s = time.monotonic()
        self._before: int | None = None
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, status="")

    def __enter__(self) -> Terminal:
        if self.console.is_terminal and not self._quiet:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar.live.is_started:  # else stopping it prints an empty line
            self._bar.stop()

    def on_note(self, text: str) -> None:
        """Something a person should know, on a line of its own."""
        if not self._quiet:
            self.console.print(Text(text))

    def warn(self, text: str) -> None:
        """Something that changes what the result means."""
        self.console.print(Text(f"warning: {text}", style="yellow"))

    def on_trial(self, trial: Trial, tuner: Tuner, *, is_best: bool) -> None:
        """Count it; print it if it is a new best or every trial was asked for."""
        if self._quiet:
            return
        self._failed += trial.failure is not None
        if self._verbose or is_best:
            self.console.print(Text(line_of(trial, tuner.default_ms, is_best=is_best)))
        status = self._status(tuner)
        total = tuner.budget.max_evaluations
        self._bar.update(self._task, completed=len(tuner.trials), total=total, status=status)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = now
            self.console.print(Text(f"{len(tuner.trials)}/{total}  {status}"))

    def on_progress(self, done: int, total: int) -> None:
        """Work of known length without trials to show."""
        now = time.monotonic()
        if self._before is None:  # what an earlier call did took none of this one's time
            self._before = done - 1
        status = f"ETA {_clock((now - self._opened_s) / (done - self._before) * (total - done))}"
        self._bar.update(self._task, completed=done, total=total, status=status)
        if not self.console.is_terminal and not self._quiet and now - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = now
            self.console.print(Text(f"{done}/{total}  {status}"))

    def _status(self, tuner: Tuner) -> str:
        parts = [self._best(tuner)]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if usage := usage_of(tuner.llm()):
            parts.append(usage)
        return "  ".join([*parts, f"ETA {_clock(tuner.eta_s())}"])

    def _best(self, tuner: Tuner) -> str:
        best = tuner.incumbent.latency_ms if tuner.incumbent else None
        return "no valid result yet" if best is None else f"best {milliseconds(best)}"


def line_of(trial: Trial, default_ms: float | None, *, is_best: bool) -> str:
    """One trial on one line: number, origin, latency and how many times as fast as the default that
    is, or the stage that failed, configuration."""
    if trial.failure is not None:
        outcome = f"failed: {trial.failure.failed_stage} ({_short(trial.failure.reason or '')})"
    else:
        latency_ms = trial.latency_ms or 0.0
        outcome = milliseconds(latency_ms)
        if trial.best and trial.candidate.fidelity_rank:  # it did not climb: there are others
            outcome += f" {trial.best.fidelity.name}"
        if default_ms is not None:
            outcome += f"  {default_ms / latency_ms:5.2f}x"
    mark = "*" if is_best else " "
    config = " ".join(f"{n}={v}" for n, v in trial.config.items())
    return f"{mark}{trial.number + 1:4d}  {trial.candidate.origin:9s}  {outcome}  {config}"


def print_result(result: Result, console: Console) -> None:
    """The final table, and a configuration to paste."""
    table = Table(title=f"{result.kernel} on {result.device} ({result.provenance})", title_justify="left")
    table.add_column("")
    table.add_column("default", justify="right")
    table.add_column("best", justify="right")
    default_ms = result.default["latency_ms"]
    best: Mapping[str, Any] = result.best or {"latency_ms": None, "config": {}}
    low_high = f" [{best['ci95_ms'][0]:.4g}, {best['ci95_ms'][1]:.4g}]" if result.best else ""
    table.add_row("latency", milliseconds(default_ms), milliseconds(best["latency_ms"]) + low_high)
    default: Mapping[str, Any] = result.default["config"] or {}
    for name, value in best["config"].items():
        before = default.get(name)
        table.add_row(name, str(before), Text(str(value), style="bold" if value != before else ""))
    console.print(table)
    if result.speedup is not None and result.speedup_ci95 is not None:
        low, high = result.speedup_ci95
        word = verdict(result.speedup_ci95)
        console.print(f"speed-up {result.speedup:.3f}x, 95 % interval [{low:.3f}, {high:.3f}]: {word}")
    print_end(result, console)
    if result.best is None:
        console.print("no valid configuration was found")
    else:
        console.print("\nconfig to paste:", style="bold")
        console.print(Text(repr(dict(best["config"]))))


def print_end(result: Result, console: Console) -> None:
    """What the run did, and why it ended."""
    console.print(f"evaluations {result.evaluations} ({_counts(result.proposals)})")
    console.print(f"failures {_counts(result.failures) or 'none'}")
    for reason, count in result.reasons:
        console.print(Text(f"  {count} x {_short(reason, 300)}"))
    if usage := usage_of(result.llm):
        asked = dict.fromkeys((result.llm["provider"], result.llm["model"]))
        console.print(f"model {' '.join(asked)}: {usage}")
    console.print(
        f"stopped by {result.stopped} after {result.seconds:.1f} s; run {result.run_id} in {result.journal}"
    )


def print_checked(rows: Sequence[CheckRow], console: Console) -> None:
    """What cross-compiling told, one configuration on a line."""
    for target in dict.fromkeys(row.target for row in rows):
        mine = [row for row in rows if row.target == target]
        passed = sum(row.ok for row in mine)
        table = Table(
            title=f"{target}: {passed} of {len(mine)} compile and fit; nothing was timed", title_justify="left"
        )
        for name in ("registers", "spill B", "shared B", "TMEM", "occupancy", "compile s"):
            table.add_column(name, justify="right")
        table.add_column("configuration")
        for row in mine:
            numbers = [row.registers, row.spill_bytes, row.shared_bytes, row.tmem_columns]
            shown = ["-" if n is None else str(n) for n in numbers]
            occupancy, compile_s = row.facts.get("occupancy"), row.compile_s
            shown.append(f"{occupancy:.2f}" if isinstance(occupancy, (int, float)) else "-")
            shown.append("-" if compile_s is None else f"{compile_s:.1f}")
            config = " ".join(f"{n}={v}" for n, v in row.config.items())
            why = "" if row.ok else f"  {row.stage}: {_short(row.reason or '')}"
            table.add_row(*shown, Text(config + why, style="" if row.ok else "yellow"))
        console.print(table)


def milliseconds(value: float | None) -> str:
    """``1.234 ms``, or ``-`` for what was not measured."""
    return "-" if value is None else f"{value:.4g} ms"


def usage_of(llm: Mapping[str, Any]) -> str:
    """``12 calls, 34567 tokens, $0.0123``; empty while no model has been asked."""
    if not (calls := llm.get("calls")):
        return ""
    cost = "cost unknown" if llm["usd"] is None else f"${llm['usd']:.4f}"
    return f"{calls} calls, {llm['input_tokens'] + llm['output_tokens']} tokens, {cost}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _short(reason: str, limit: int = 80) -> str:
    first = " ".join(reason.split())
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _clock(seconds: float | None) -> str:
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
