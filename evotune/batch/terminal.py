"""A batch as a person sees it: its plan, and how its jobs ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from evotune.batch.plan import BatchPlan, PlannedJob
from evotune.batch.run import Outcome
from evotune.showing.page import count
from evotune.terminal import milliseconds, print_table


def print_batch_plan(plan: BatchPlan, console: Console) -> None:
    """A line for each job, in the order of work, and what they may cost together."""
    for number, planned in enumerate(plan.jobs, 1):
        console.print(Text(f"{number:4}  {planned.job}: {_planned(planned)}"))
    states = Counter(planned.state for planned in plan.jobs)
    console.print(f"{count(len(plan.jobs), 'job')}: {', '.join(f'{n} {state}' for state, n in states.items())}")
    limits = [f"{plan.evaluations_left} evaluations"]
    limits += [f"{plan.in_all.max_seconds:g} s"] if plan.in_all.max_seconds is not None else []
    limits += [f"${plan.in_all.max_usd:g}"] if plan.in_all.max_usd is not None else []
    console.print(f"at most {', '.join(limits)} in all; journal {plan.journal}")
    console.print("nothing was built, started, measured or asked")


def _planned(planned: PlannedJob) -> str:
    run, known = planned.job.settings.run, planned.known
    if known is not None and planned.is_done:
        return f"done, run {known.run_id}"
    if planned.trouble is not None:
        return f"cannot run: {planned.trouble}"
    if known is None:
        return f"new, {run.max_evaluations} evaluations"
    return f"goes on, {planned.evaluations_left} of {run.max_evaluations} evaluations, run {known.run_id}"


def print_outcomes(outcomes: Sequence[Outcome], console: Console) -> None:
    """A row for each job, and why those failed that did."""
    print_table("batch", ["job", "default", "best", "speed-up", "run"], [_row(o) for o in outcomes], console)
    for outcome in outcomes:
        if outcome.why is not None:
            console.print(Text(f"{outcome.job}: {outcome.state}: {outcome.why}"))
    states = Counter(outcome.state for outcome in outcomes)
    before = sum(outcome.was_done for outcome in outcomes)
    told = ", ".join(f"{n} {state}" for state, n in states.items())
    console.print(f"{count(len(outcomes), 'job')}: {told}{f'; {before} done before' if before else ''}")


def _row(outcome: Outcome) -> list[str | Text]:
    result = outcome.result
    if result is None:
        return [str(outcome.job), "-", "-", "-", "-"]
    ratio = "-"
    if result["speedup"] is not None:
        low, high = result["speedup_ci95"]
        ratio = f"{result['speedup']:.3f}x [{low:.3f}, {high:.3f}]"
    best_ms = result["best"]["latency_ms"] if result["best"] else None
    default_ms = result["default"]["latency_ms"]
    return [str(outcome.job), milliseconds(default_ms), milliseconds(best_ms), ratio, result["run_id"]]
