"""Runs and trials in words. Trials have the numbers that a run prints, from 1."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

from evotune.history import RunHistory, RunSummary
from evotune.report.cost import costs
from evotune.report.kept import KINDS
from evotune.report.summary import Summary, command, summary
from evotune.result import commonest_reasons, why_ended
from evotune.score import score_of
from evotune.settings import Run
from evotune.showing.objects import default_of, failures_of, formats_of, parents_of
from evotune.showing.page import Page, changes, config_of, count, difference, listed, minute, pairs
from evotune.terminal import milliseconds
from evotune.trial import Measurement, Trial

JOURNAL = Path(Run().journal)
"""Where runs are recorded unless they are told otherwise."""


def runs_text(runs: Sequence[RunSummary], journal: Path) -> str:
    """Two lines for each run."""
    if not runs:
        return f"no runs in {journal}; evotune run KERNEL --journal {journal} makes one"
    page = Page()
    for run in runs:
        found = ["nothing valid so far"]
        if run.best_ms is not None or run.best_score is not None:
            found = [
                f"best score {run.best_score:.6g}" if run.best_ms is None else f"best {milliseconds(run.best_ms)}"
            ]
        found += [f"{run.speedup:.3f}x the default"] if run.speedup is not None else []
        done = f"{count(run.evaluations, 'evaluation')}; {why_ended(run.state)}"
        page.text(f"{run.run_id}  {minute(run.last_s)}  {done}")
        page.text(f"{run.kernel} on {run.device}, target {run.target}: {', '.join(found)}", indent=2)
    return str(page)


def run_text(run: RunHistory, journal: Path) -> str:
    """What was tuned, what was found, what was tried, and what to do next."""
    page, head = Page(), summary(run)
    shown, problem = run.summary, run.problem
    page.text(f"run {shown.run_id}: {shown.kernel} on {shown.device}")
    page.row("target", shown.target)
    page.row("problem", pairs(problem) if problem else "")
    for shape, sizes in run.shapes.items():
        page.row(f"shape {shape}", pairs(sizes))
    page.row("state", f"{head.ended}; begun {minute(shown.created_s)}, last recorded {minute(shown.last_s)}")
    page.row("provenance", run.provenance or "nothing was timed yet")
    page.row("journal", str(journal))
    page.row("versions", ", ".join(f"{n} {v}" for n, v in run.description.get("versions", {}).items()))
    _found(page, run, head)
    _tried(page, run)
    page.head("next")
    where = "" if journal == JOURNAL else f" --journal {shlex.quote(str(journal))}"
    # Commands are on lines of their own, uncut: a terminal wraps them, and they can be copied.
    page.text("the same run again, or on from where it stands:", indent=2)
    page.verbatim(f"  {command(run, journal)}")
    page.text("one of its trials:", indent=2)
    page.verbatim(f"  evotune show {shown.run_id} --trial N{where}")
    if formats := formats_of(run):
        page.text("what it found, to paste or to read in:", indent=2)
        page.verbatim(f"  evotune export {shown.run_id} --format {'|'.join(formats)}{where}")
    return str(page)


def _found(page: Page, run: RunHistory, head: Summary) -> None:
    page.head("result")
    if run.shapes:
        _found_by_shape(page, run)
    elif head.best is None:
        page.row("best", _best_score(run) or ("nothing valid was found" if run.result else "nothing valid so far"))
        page.row("default", f"failed: {head.default_failure}" if head.default_failure else "")
    else:
        low_ms, high_ms = head.best["ci95_ms"]
        trial = run.best_trial
        by = f", trial {trial.number + 1} ({trial.candidate.origin})" if trial else ""
        default = f"failed: {head.default_failure}" if head.default_failure else milliseconds(head.default_ms)
        page.row("default", default)
        # One call alone says nothing of its error.
        interval = f", 95 % interval [{low_ms:.4g}, {high_ms:.4g}] ms" if low_ms < high_ms else ""
        page.row("best", f"{milliseconds(head.best['latency_ms'])}{interval}{by}")
    if head.is_default:
        page.row("speed-up", head.verdict or "")
    elif head.speedup is not None and head.speedup_ci95 is not None:
        low, high = head.speedup_ci95
        page.row("speed-up", f"{head.speedup:.3f}x, 95 % interval [{low:.3f}, {high:.3f}]: {head.verdict or ''}")
    if head.best is not None and not head.is_final:
        page.row("", "best so far: chosen and judged by the same timings, which flatters it; finals come last")
    if run.shapes:
        if run.result and run.result["program"]:
            page.head("program")
            page.verbatim(run.result["program"])
    elif head.best is not None:
        page.head("configuration")
        for line in difference(head.default or {}, head.best["config"]):
            page.text(line, indent=2)


def _best_score(run: RunHistory) -> str:
    """Of a search for the best score, in which nothing is timed."""
    scores = [(score, -t.number) for t in run.trials if (score := score_of(t)) is not None]
    if not scores:
        return ""
    score, number = max(scores)
    return f"score {score:.6g}, trial {1 - number}"


def _found_by_shape(page: Page, run: RunHistory) -> None:
    rows: Sequence[Mapping[str, Any]] = run.result["shapes"] if run.result else ()
    for row in rows:
        speedup = "" if row["speedup"] is None else f", {row['speedup']:.3f}x the default"
        page.row(row["shape"], f"{milliseconds(row['latency_ms'])}{speedup}: {pairs(row['config'] or {})}")
    if not rows:
        for shape, trial in run.incumbents.items():
            page.row(shape, f"best so far {milliseconds(trial.latency_ms)}: {pairs(config_of(trial))}")


def _tried(page: Page, run: RunHistory) -> None:
    page.head("search")
    origins = Counter(t.candidate.origin for t in run.trials)
    page.row("evaluations", f"{len(run.trials)}{listed(origins)}")
    page.row("no outcome", ", ".join(f"trial {t.number + 1}" for t in run.in_flight))
    page.row("failures", ", ".join(f"{name} {n}" for name, n in failures_of(run).items()) or "none")
    for reason, times in commonest_reasons(run.trials):
        page.text(f"{times} x {reason}", indent=4)
    for cost in costs(run):
        usd = "cost unknown" if cost.usd is None else f"${cost.usd:.4f}"
        failed = f", {cost.failed} failed" if cost.failed else ""
        asked = " ".join(dict.fromkeys((cost.provider, cost.model)))
        tokens = cost.input_tokens + cost.output_tokens
        page.row("model", f"{asked}: {count(cost.calls, 'call')}{failed}, {tokens} tokens, {usd}")
    for note in run.notes:
        if note.kind not in KINDS:
            page.row(note.kind, note.text)


def trial_text(run: RunHistory, trial: Trial) -> str:
    """Where a trial comes from, what it is, and what was measured."""
    page, default = Page(), default_of(run, trial)
    page.text(f"trial {trial.number + 1} of run {run.summary.run_id}: {run.summary.kernel} on {run.summary.device}")
    page.row("origin", trial.candidate.origin)
    page.row("outcome", _outcome(run, trial, default))
    begun = run.attempts.get(trial.number, ())
    page.row("begun", ", ".join(minute(s) for s in begun))
    if trial.number in run.done_s:
        page.row("ended", minute(run.done_s[trial.number]))
    page.head("configuration, where it differs from the default" if default else "configuration")
    if default:
        for line in changes(config_of(default), config_of(trial)) or ["nowhere"]:
            page.text(line, indent=2)
    page.row("in full", pairs(trial.config))
    if parents := parents_of(run, trial):
        page.head("derived from")
        child = trial
        for parent in parents:
            outcome = _outcome(run, parent, None)
            changed = ", ".join(changes(config_of(parent), config_of(child))) or "nothing"
            page.text(f"trial {parent.number + 1} ({parent.candidate.origin}, {outcome})", indent=2)
            page.text(f"changed in trial {child.number + 1}: {changed}", indent=4)
            child = parent
    if trial.measurements:
        page.head("measurements")
        for measurement in trial.measurements:
            page.row(measurement.fidelity.name, _measured(measurement))
    if trial.static is not None:
        page.head("compiled")
        page.row("took", f"{trial.static.compile_s:.3g} s")
        page.row("facts", pairs(trial.facts))
    page.head("program")
    page.verbatim(trial.candidate.program)
    return str(page)


def _outcome(run: RunHistory, trial: Trial, default: Trial | None) -> str:
    if (score := score_of(trial)) is not None:
        return f"score {score:.6g}"
    if trial.failure is not None:
        return f"failed: {trial.failure.failed_stage}: {trial.failure.reason}"
    if trial.latency_ms is None:
        return "nothing was timed" if trial.number in run.done_s else "none yet"
    ratio = ""
    if default is not None and default.latency_ms is not None:
        ratio = f", {default.latency_ms / trial.latency_ms:.3f}x the default"
    return f"{milliseconds(trial.latency_ms)}{ratio}"


def _measured(measurement: Measurement) -> str:
    reps = count(measurement.fidelity.reps, "repetition")
    context = f"; {pairs(measurement.context)}" if measurement.context else ""
    if not measurement.ok:
        return f"failed: {measurement.failed_stage}: {measurement.reason}{context}"
    samples = measurement.samples_ms
    spread = ""
    if len(samples) > 1:
        low, _, high = quantiles(samples, n=4, method="inclusive")
        spread = f", quartiles {low:.4g} to {high:.4g} ms"
    is_known = len(samples) > 1 or measurement.rel_sem is not None
    error = f", standard error {100 * measurement.relative_error:.2g} %" if is_known else ""
    taken = f"{count(len(samples), 'sample')} ({reps} asked for)"
    return (
        f"median {milliseconds(measurement.latency_ms)}{spread}{error}, {taken}, {measurement.provenance}{context}"
    )
