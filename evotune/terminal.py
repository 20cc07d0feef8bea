"""What a person sees: a live line while a run goes on, and a table at its end.

Progress goes to stderr and results to stdout. Where stderr is not a terminal the same facts come as
plain lines, so that a log of a run reads like the run did.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evotune.interval import verdict
from evotune.progress import Progress, Watch, sparkline
from evotune.result import NOTHING_FASTER, why_ended
from evotune.trial import Trial

if TYPE_CHECKING:
    from evotune.budget import Eta
    from evotune.gpu.check import CheckRow
    from evotune.plan import Plan
    from evotune.result import Result
    from evotune.tuner import Tuner

# A log gets a line of progress this often, beside one for each new best.
PLAIN_EVERY_S = 5.0
PIPE_WIDTH = 10_000  # whoever reads a pipe breaks lines himself
CONFIGURATION = "configuration"
BAR_WIDTH, SPARKS = 20, 20
SCIENTIFIC = 1e7  # from here on a number is easier to read with a power of ten


class Output(Console):
    """A console whose lines are never cut: terminals break them, and a pipe gets them whole."""

    def __init__(self, *, stderr: bool = False) -> None:
        file = sys.stderr if stderr else sys.stdout
        width = None if file.isatty() else PIPE_WIDTH
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, width=width)

    def on_broken_pipe(self) -> None:
        """Left to the caller: rich itself would end the process with a code that means something else."""
        raise BrokenPipeError


class Terminal:
    """Shows a run on stderr. Use it in a ``with``; it is an observer of the tuner.

    Args:
        verbose: One line per trial instead of one per new best.
        quiet: Nothing but warnings.
    """

    def __init__(self, *, verbose: bool = False, quiet: bool = False) -> None:
        self.console = Output(stderr=True)
        self._verbose = verbose
        self._quiet = quiet
        self._watch = Watch()
        self._opened_s = self._shown_s = time.monotonic()
        self._before: int | None = None
        self._done, self._total = 0, None
        self._status: list[str] = []
        # Nobody else's output may fall between the lines that are drawn over, so it is passed through.
        self._live = Live(get_renderable=self._drawn, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Terminal:
        if self.console.is_terminal and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live.is_started:  # else stopping it prints an empty line
            self._live.stop()

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
        if self._verbose or is_best:
            self.console.print(Text(line_of(trial, tuner.default_ms, is_best=is_best)))
        progress = self._watch.see(trial, tuner)
        self._show(progress.evaluations, progress.max_evaluations, self._parts(progress))

    def on_progress(self, done: int, total: int) -> None:
        """Work of known length without trials to show."""
        if self._quiet:
            return
        if self._before is None:  # what an earlier call did took none of this one's time
            self._before = done - 1
        left_s = (time.monotonic() - self._opened_s) / (done - self._before) * (total - done)
        self._show(done, total, [f"ETA {_clock(left_s)}"])

    def _show(self, done: int, total: int, status: list[str]) -> None:
        self._done, self._total, self._status = done, total, status
        now = time.monotonic()
        if not self.console.is_terminal and now - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = now
            self.console.print(Text("  ".join([f"{done}/{total}", *status])))

    def _drawn(self) -> RenderableType:
        """A bar and, below it, the same words that a log gets, on as many lines as they need."""
        count = Text("starting" if self._total is None else f"{self._done}/{self._total}")
        top = Table.grid(padding=(0, 1))
        top.add_row(ProgressBar(self._total, self._done, width=BAR_WIDTH, pulse=self._total is None), count)
        # Said here, because this console breaks no lines by itself.
        return Group(top, Text("  ".join(self._status), no_wrap=False, overflow="fold")) if self._status else top

    def _parts(self, progress: Progress) -> list[str]:
        parts = [self._best(progress)]
        if len(progress.course) > 1 and not self.console.options.ascii_only:
            parts.append(sparkline(progress.course, SPARKS))
        if progress.failures:
            parts.append(f"{progress.failures} failed")
        if device := device_of(progress.device):
            parts.append(device)
        if model := ", ".join(filter(None, (progress.model, usage_of(progress.llm)))):
            parts.append(f"model {model}")
        return [*parts, f"ETA {_eta(progress.eta)}"]

    def _best(self, progress: Progress) -> str:
        if progress.best_ms is None:
            return "no valid result yet"
        times = f" ({progress.speedup:.2f}x)" if progress.speedup is not None else ""
        return f"best {milliseconds(progress.best_ms)}{times}"


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


def describe_event(event: Mapping[str, Any]) -> str:
    """What a person should know of an event of :class:`~evotune.progress.JsonLines`; empty if nothing."""
    if event["event"] == "note":
        return event["text"]
    if event["event"] != "trial" or not event["is_best"]:
        return ""
    ratio = "" if event["speedup"] is None else f"  {event['speedup']:5.2f}x"
    done = f"{event['evaluations']} of {event['max_evaluations']}"
    return f"{done}  {milliseconds(event['latency_ms'])}{ratio}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str | Text]], console: Console) -> None:
    """A table, or where the terminal is too narrow for it, a line for each cell. The first column names rows,
    and later ones but those of text to the left are numbers."""
    console.print(Text(title, style="italic"))
    table = Table()
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 or name == CONFIGURATION else "right")
    for row in rows:
        table.add_row(*row)
    natural = console.measure(table, options=console.options.update(max_width=PIPE_WIDTH)).maximum
    if natural <= console.width:
        console.print(table)
        return
    for first, *rest in rows:
        console.print(Text.assemble((str(first), "bold")))
        for name, cell in zip(header[1:], rest, strict=True):
            console.print(Text.assemble(f"  {name}: ", cell))


def print_result(result: Result, console: Console) -> None:
    """The final table, and a configuration to paste."""
    default_ms = result.default["latency_ms"]
    best: Mapping[str, Any] = result.best or {"latency_ms": None, "config": {}}
    low_high = f" [{best['ci95_ms'][0]:.4g}, {best['ci95_ms'][1]:.4g}]" if result.best else ""
    rows: list[list[str | Text]] = [
        ["latency", milliseconds(default_ms), milliseconds(best["latency_ms"]) + low_high]
    ]
    default: Mapping[str, Any] = result.default["config"] or {}
    for name, value in best["config"].items():
        before = default.get(name)
        rows.append([name, str(before), Text(str(value), style="bold" if value != before else "")])
    title = f"{result.kernel} on {result.device} ({result.provenance})"
    print_table(title, ["", "default", "best"], rows, console)
    is_default = result.best is not None and best["config"] == result.default["config"]
    if result.speedup is not None and result.speedup_ci95 is None:
        console.print(f"speed-up {result.speedup:.3f}x so far; there were no finals to say how sure that is")
    elif is_default:
        console.print(NOTHING_FASTER)
    elif result.speedup is not None and result.speedup_ci95 is not None:
        low, high = result.speedup_ci95
        word = verdict(result.speedup_ci95)
        console.print(f"speed-up {result.speedup:.3f}x, 95 % interval [{low:.3f}, {high:.3f}]: {word}")
    print_end(result, console)
    if result.best is None:
        console.print("no valid configuration was found" if result.evaluations else "nothing was evaluated")
    else:
        console.print(f"\nconfig to paste{', the default' if is_default else ''}:", style="bold")
        console.print(Text(repr(dict(best["config"]))))


def print_end(result: Result, console: Console) -> None:
    """What the run did, and why it ended."""
    by_origin = f" ({_counts(result.proposals)})" if result.proposals else ""
    console.print(f"evaluations {result.evaluations}{by_origin}")
    console.print(f"failures {_counts(result.failures) or 'none'}")
    for reason, count in result.reasons:
        console.print(Text(f"  {count} x {_short(reason, 300)}"))
    if usage := usage_of(result.llm):
        asked = dict.fromkeys((result.llm["provider"], result.llm["model"]))
        console.print(f"model {' '.join(asked)}: {usage}")
    ended = f"ended after {result.seconds:.1f} s: {why_ended(result.stopped)}"
    console.print(f"{ended}; run {result.run_id} in {result.journal}")


def print_plan(plan: Plan, console: Console) -> None:
    """What a run would do, one fact on a line."""
    lines: list[tuple[str, str]] = [("kernel", plan.kernel), ("target", f"{plan.target}: {plan.why}")]
    for space in plan.spaces:
        size = f"{space.configurations:.0f}" if space.configurations < SCIENTIFIC else f"{space.configurations:.1e}"
        kind = "legal configurations" if space.is_exact else "combinations, not all legal"
        where = f" at shape {space.shape}" if space.shape else ""
        if space.problem:  # a recording does not tell it
            lines.append(("problem", " ".join(f"{n}={v}" for n, v in space.problem.items())))
        lines.append(("space", f"{size} {kind} of {space.parameters} parameters{where}"))
        lines.append(("default", " ".join(f"{n}={v}" for n, v in space.default.items())))
    lines.append(("search", f"{plan.search}, seed {plan.seed}"))
    lines.append(("budget", _budget(plan)))
    climbed = ", ".join(f"{f['name']} {f['reps']}" for f in plan.fidelities)
    finals = f"{plan.finals['finalists']} best and the default, {plan.finals['name']} {plan.finals['reps']}"
    lines.append(("repetitions", f"{climbed}; finals: {finals}"))
    lines.append(("model", plan.llm.reason))
    if plan.llm.calls:
        cost = "cost unknown: no price" if plan.llm.usd is None else f"${plan.llm.usd:.4f}"
        repeated = f"{plan.llm.calls} calls with every repetition, {plan.llm.tokens} tokens"
        lines.append(("at most", f"{plan.llm.questions} questions; {repeated}, {cost}"))
    lines.append(("journal", _goes_on(plan)))
    time_s = "" if plan.seconds is None else f"about {_clock(plan.seconds)} for the search, "
    lines.append(("time", f"{time_s}{plan.seconds_by}"))
    for name, text in lines:
        console.print(Text(f"{name:11}  {text}"))
    console.print("nothing was built, started, measured or asked")


def _budget(plan: Plan) -> str:
    budget = plan.budget
    parts = [f"{plan.evaluations_left} of {budget.max_evaluations} evaluations to go"]
    parts += [f"{budget.max_seconds:g} s"] if budget.max_seconds < math.inf else []
    parts += [f"until {milliseconds(budget.target_ms)}"] if budget.target_ms else []
    parts += [f"until {milliseconds(budget.roofline_ms)}, a share of the roofline"] if budget.roofline_ms else []
    parts += [f"until {budget.no_progress} are without progress"] if budget.no_progress else []
    return ", ".join(parts)


def _goes_on(plan: Plan) -> str:
    if plan.resumes is None:
        return f"{plan.journal}; a new run"
    run = plan.resumes
    does = "goes on with" if plan.evaluations_left else "has nothing to add to"
    known = f"{run.run_id} and its {run.evaluations} evaluations"
    return f"{plan.journal}; {does} {known}, if the device and versions are still those: {run.device}"


def print_checked(rows: Sequence[CheckRow], console: Console) -> None:
    """What cross-compiling told, one configuration on a line."""
    header = ["registers", "spill B", "shared B", "TMEM", "occupancy", "compile s", CONFIGURATION]
    for target in dict.fromkeys(row.target for row in rows):
        mine = [row for row in rows if row.target == target]
        passed = sum(row.ok for row in mine)
        title = f"{target}: {passed} of {len(mine)} compile and fit; nothing was timed"
        print_table(title, ["", *header], [_checked(i, row) for i, row in enumerate(mine, 1)], console)


def _checked(number: int, row: CheckRow) -> list[str | Text]:
    numbers = [row.registers, row.spill_bytes, row.shared_bytes, row.tmem_columns]
    occupancy, compile_s = row.facts.get("occupancy"), row.compile_s
    config = " ".join(f"{n}={v}" for n, v in row.config.items())
    why = "" if row.ok else f"  {row.stage}: {_short(row.reason or '')}"
    return [
        str(number),
        *("-" if n is None else str(n) for n in numbers),
        f"{occupancy:.2f}" if isinstance(occupancy, (int, float)) else "-",
        "-" if compile_s is None else f"{compile_s:.1f}",
        Text(config + why, style="" if row.ok else "yellow"),
    ]


def milliseconds(value: float | None) -> str:
    """``1.234 ms``, or ``-`` for what was not measured."""
    return "-" if value is None else f"{value:.4g} ms"


def usage_of(llm: Mapping[str, Any]) -> str:
    """``12 calls, 34567 tokens, $0.0123``; empty while no model has been asked."""
    if not (calls := llm.get("calls")):
        return ""
    cost = "cost unknown" if llm["usd"] is None else f"${llm['usd']:.4f}"
    return f"{calls} call{'' if calls == 1 else 's'}, {llm['input_tokens'] + llm['output_tokens']} tokens, {cost}"


def device_of(readings: Mapping[str, float | str]) -> str:
    """``1980 MHz, 412 W, 61 °C, throttled: power cap``; empty where nothing was read."""
    units = {
        "clock_mhz": "{:.0f} MHz",
        "power_w": "{:.0f} W",
        "temperature_c": "{:.0f} °C",
        "load_1min": "load {:.1f}",
    }
    parts = [text.format(readings[name]) for name, text in units.items() if name in readings]
    if (why := readings.get("throttled", "no")) != "no":
        parts.append(f"throttled: {why}")
    return ", ".join(parts)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _short(reason: str, limit: int = 80) -> str:
    first = " ".join(reason.split())
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _eta(eta: Eta | None) -> str:
    """When a budget will be spent, and which one unless it is that of evaluations."""
    by = f" ({eta.by})" if eta and eta.by != "evaluations" else ""
    return _clock(eta.seconds if eta else None) + by


def _clock(seconds: float | None) -> str:
    return "-:--" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
