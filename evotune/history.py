"""What a journal tells of its runs: read, never written, also while a run is writing it.

A run that was interrupted, or was cut off, or still goes on is as good as a finished one: its best
so far is the one that the tuner itself held for the best at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from evotune.errors import UsageError
from evotune.interval import latency_ci95_ms
from evotune.journal import Journal, LlmCall, Rejection
from evotune.process.owner import is_alive
from evotune.reading import read
from evotune.rows import result_of
from evotune.space import Config
from evotune.trial import Trial, incumbent

# Names the shape in a configuration of a run over several: `evotune.shapes.table.SHAPE`, which cannot be
# had without the whole search, and reading a journal must be quick.
SHAPE = "@shape"


@dataclass(frozen=True)
class RunSummary:
    """A line of a list of runs.

    ``stopped`` is why the run ended (``evaluations``, ``seconds``, ``exhausted``, ``interrupted``, …), or
    None if it did not, or has gone on since. ``state`` says the same of every run: ``running``, why it ended,
    ``cut off`` if its process died, or ``let go`` if that ended without a result. ``last_s`` is when something
    was recorded last. ``best_ms`` is None if nothing valid was timed, or if a run over several shapes has not
    ended; ``best_score`` is that of a search for one, once it has ended; ``speedup`` over the default comes from
    the finals.
    """

    run_id: str
    kernel: str
    target: str
    device: str
    created_s: float
    last_s: float
    stopped: str | None
    state: str
    is_running: bool
    evaluations: int
    best_ms: float | None
    speedup: float | None
    best_score: float | None = None


@dataclass(frozen=True)
class Note:
    """Something that a person was told during a run."""

    kind: str
    text: str
    at_s: float


@dataclass(frozen=True)
class RunHistory:
    """One run, as far as it has come.

    Args:
        summary: Its line in the list.
        description: All that its results depend on: problem or shapes, target, device, versions, search, seed,
            settings.
        source_hash: Of the kernel's text.
        result: What it reported at its end, as ``evotune run --json``; None if it has not ended, or has gone on
            since.
        trials: Those with an outcome, in order of completion.
        done_s: When each trial ended, by its number.
        attempts: When each trial was begun, by its number; several times if the tuner died meanwhile.
        in_flight: Trials without an outcome.
        rejections: What was proposed and never became a trial.
        llm_calls: Calls of models.
        notes: What a person was told and should find again.
        top_rank: The fidelity that trials climb to; finals may lie above.
        offers: Legal and new configurations that models proposed; not all of them became trials.
    """

    summary: RunSummary
    description: Mapping[str, Any]
    source_hash: str
    result: Mapping[str, Any] | None
    trials: tuple[Trial, ...]
    done_s: Mapping[int, float]
    attempts: Mapping[int, tuple[float, ...]]
    in_flight: tuple[Trial, ...]
    rejections: tuple[Rejection, ...]
    llm_calls: tuple[LlmCall, ...]
    notes: tuple[Note, ...]
    top_rank: int
    offers: tuple[Config, ...] = ()

    @cached_property
    def incumbent(self) -> Trial | None:
        """The best trial by the tuner's rule; for several shapes None, as they have one each."""
        return None if self.shapes else incumbent(self.trials, self.top_rank)

    @cached_property
    def incumbents(self) -> Mapping[str, Trial]:
        """The best trial of each shape of a run over several, for those that have one."""
        by_shape = {s: [t for t in self.trials if t.config.get(SHAPE) == s] for s in self.shapes}
        found = {shape: incumbent(trials, self.top_rank) for shape, trials in by_shape.items()}
        return {shape: trial for shape, trial in found.items() if trial is not None}

    @property
    def best(self) -> Mapping[str, Any] | None:
        """``config``, ``latency_ms`` and ``ci95_ms`` of the winner, or of the incumbent while there is none."""
        if self.result is not None:
            return self.result["best"]
        if self.incumbent is None or self.incumbent.best is None:
            return None
        measured = self.incumbent.best
        return {
            "config": dict(self.incumbent.config),
            "latency_ms": measured.latency_ms,
            "ci95_ms": list(latency_ci95_ms(measured)),
        }

    @property
    def best_trial(self) -> Trial | None:
        """The trial of :attr:`best`, the most careful one if there are several."""
        if self.best is None or self.shapes:
            return None
        config = self.best["config"]
        return incumbent([t for t in self.trials if t.config == config], self.top_rank)

    @property
    def default(self) -> Trial | None:
        """The trial of the default configuration, once it has an outcome."""
        return next((t for t in self.trials if t.candidate.origin == "default"), None)

    @property
    def kernel(self) -> str:
        """Its name; a run over several shapes is listed under one of its own."""
        name = self.summary.kernel
        return name.rpartition(" (")[0] if self.shapes else name

    @property
    def shapes(self) -> Mapping[str, Mapping[str, Any]]:
        """Problems by the name of the shape, of a run over several; else empty."""
        return self.description.get("shapes", {})

    @property
    def problem(self) -> Mapping[str, Any]:
        """Sizes and dtype, of a run at one shape; empty for a recording."""
        return self.description.get("problem", {})

    @property
    def provenance(self) -> str | None:
        """Where the timings come from; None before the first one."""
        return next((m.provenance for t in self.trials for m in t.measurements), None)


def runs(path: Path) -> list[RunSummary]:
    """All runs of a journal; the one that something was recorded of last comes first.

    Raises:
        UsageError: There is no journal, or it cannot be read.
    """

    def look(journal: Journal) -> list[RunSummary]:
        return [_row(journal, run_id, last_s).summary for run_id, last_s in _by_age(journal)]

    return read(path, look)


def load(path: Path, run_id: str | None = None) -> RunHistory:
    """One run of a journal: of this id or its unambiguous beginning, or the latest.

    Raises:
        UsageError: There is no journal, no such run, or it cannot be read.
    """

    def look(journal: Journal) -> RunHistory:
        known = dict(_by_age(journal))
        chosen = _choose(path, list(known), run_id)
        return _load(journal, chosen, known[chosen])

    return read(path, look)


# -- a run --------------------------------------------------------------------------------------


def _by_age(journal: Journal) -> list[tuple[str, float]]:
    """Ids of runs and when something was recorded of them last, the latest first."""
    return journal.read(
        "SELECT id, MAX(created_s, COALESCE((SELECT MAX(done_s) FROM trial WHERE run=run.id), 0), "
        "COALESCE((SELECT MAX(started_s) FROM attempt WHERE run=run.id), 0)) AS last_s "
        "FROM run ORDER BY last_s DESC, run.rowid DESC"
    )


def _choose(path: Path, known: Sequence[str], wanted: str | None) -> str:
    if not known:
        raise UsageError(f"journal {path} has no runs; evotune run KERNEL --journal {path} makes one")
    if wanted is None:
        return known[0]
    if wanted in known:
        return wanted
    fitting = [run_id for run_id in known if wanted and run_id.startswith((wanted, f"r-{wanted}"))]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"{len(fitting)} runs begin with {wanted!r}: {', '.join(fitting[:8])}; give more of one")
    near = get_close_matches(wanted, known, n=3, cutoff=0.5) or known[:3]
    raise UsageError(
        f"journal {path} has no run {wanted!r}; the nearest are {', '.join(near)}, "
        f"and all are listed by: evotune show --all --journal {path}"
    )


@dataclass(frozen=True)
class _Row:
    """What the journal says of a run as a whole."""

    summary: RunSummary
    description: Mapping[str, Any]
    source_hash: str
    result: Mapping[str, Any] | None


def _row(journal: Journal, run_id: str, last_s: float, trials: Sequence[Trial] | None = None) -> _Row:
    """``trials`` are those of the run, where they are known; else they are read if they are needed."""
    columns = "created_s, kernel, source_hash, description, owner, stopped, result"
    found = journal.read(f"SELECT {columns} FROM run WHERE id=?", run_id)[0]
    created_s, kernel, source_hash, description, owner, stopped, result = found
    query = "SELECT COUNT(*) FROM trial WHERE run=? AND done_order IS NOT NULL"
    evaluations = int(journal.read(query, run_id)[0][0])
    described: dict[str, Any] = json.loads(description)
    reported = result_of(result, evaluations)
    if reported is None and result is not None:
        stopped = None  # it has gone on since
    best_ms: float | None = None
    if reported is not None:
        best_ms = reported["best"]["latency_ms"] if reported["best"] else None
    elif "shapes" not in described:
        trials = _trials(journal, run_id) if trials is None else trials
        best = incumbent(trials, _top_rank(journal, run_id, trials))
        best_ms = best.latency_ms if best else None
    is_running = bool(owner) and is_alive(owner)
    state = "running" if is_running else stopped or ("cut off" if owner else "let go")
    summary = RunSummary(
        run_id=run_id,
        kernel=kernel,
        target=described.get("target", "unknown"),
        device=described.get("device", "unknown"),
        created_s=created_s,
        last_s=last_s,
        stopped=stopped,
        state=state,
        is_running=is_running,
        evaluations=evaluations,
        best_ms=best_ms,
        speedup=reported["speedup"] if reported else None,
        best_score=reported.get("best_score") if reported else None,
    )
    return _Row(summary, described, source_hash, reported)


def _load(journal: Journal, run_id: str, last_s: float) -> RunHistory:
    trials = _trials(journal, run_id)
    row = _row(journal, run_id, last_s, trials)
    run = journal.run(run_id)
    notes = journal.read("SELECT kind, text, at_s FROM note WHERE run=? ORDER BY rowid", run_id)
    done = journal.read("SELECT number, done_s FROM trial WHERE run=? AND done_order IS NOT NULL", run_id)
    return RunHistory(
        summary=row.summary,
        description=row.description,
        source_hash=row.source_hash,
        result=row.result,
        trials=trials,
        done_s=dict(done),
        attempts=_attempts(journal, run_id),
        in_flight=tuple(trial for trial, _ in run.interrupted()),
        rejections=tuple(run.rejections()),
        llm_calls=tuple(run.calls()),
        notes=tuple(Note(*note) for note in notes),
        top_rank=_top_rank(journal, run_id, trials),
        offers=tuple(config for config, _ in run.offers()),
    )


def _trials(journal: Journal, run_id: str) -> tuple[Trial, ...]:
    return tuple(journal.run(run_id))


def _attempts(journal: Journal, run_id: str) -> dict[int, tuple[float, ...]]:
    out: dict[int, tuple[float, ...]] = {}
    query = "SELECT trial, started_s FROM attempt WHERE run=? ORDER BY rowid"
    for number, started_s in journal.read(query, run_id):
        out[number] = (*out.get(number, ()), started_s)
    return out


def _top_rank(journal: Journal, run_id: str, trials: Iterable[Trial]) -> int:
    """The highest fidelity of a search, which the journal does not name.

    Measurements of a trial are recorded together; one that comes after those of another trial is from
    finals. A rank that only finals have is above the top, unless trials are promoted one fidelity at a
    time: then that of the finals is the last.
    """
    rows = journal.read("SELECT trial, rank FROM measurement WHERE run=? ORDER BY rowid", run_id)
    if any(t.candidate.fidelity_rank is not None for t in trials):
        return max((rank for _, rank in rows), default=0)
    searched: list[tuple[int, int]] = []
    finals: set[int] = set()
    seen: set[int] = set()
    last: int | None = None
    for number, rank in rows:
        if number in seen and number != last:
            finals.add(rank)
        else:
            searched.append((number, rank))
        seen.add(number)
        last = number
    # The trial that ended last may have been the first of the finals: its rows then look like one climb.
    for rank in finals:
        if len({number for number, r in searched if r == rank}) <= 1:
            searched = [(number, r) for number, r in searched if r != rank]
    return max((rank for _, rank in searched), default=0)
