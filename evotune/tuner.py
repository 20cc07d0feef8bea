"""The line: propose, compile, measure, record, learn, until the budget is spent; then the finals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from evotune.budget import Budget, Meter, log_variance
from evotune.engine import Engine, Job, Outcome
from evotune.evaluator import STATIC, Evaluator
from evotune.interval import latency_ci95_ms, ratio_ci95, verdict
from evotune.journal import Run
from evotune.proposers import Feedback, Searcher
from evotune.result import Result, commonest_reasons, why_ended
from evotune.space import Config
from evotune.trial import Fidelity, Measurement, Trial, incumbent, ranked, standing

# A trial that was in flight when the tuner died is suspected of it; after this many it is left out.
QUARANTINE_AFTER = 2


@dataclass(frozen=True)
class Finals:
    """How the winner is chosen and compared: ``count`` best trials and the default, interleaved; with 0 the
    incumbent wins."""

    count: int
    fidelity: Fidelity


@dataclass(frozen=True)
class Podium:
    """Who won, and what was measured in the finals by trial number."""

    winner: Trial | None
    measured: Mapping[int, Measurement]

    def of(self, trial: Trial | None) -> Measurement | None:
        """The most careful timing of a trial."""
        return None if trial is None else self.measured.get(trial.number) or trial.best


class Observer(Protocol):
    """Hears what happens while it happens."""

    def on_trial(self, trial: Trial, tuner: Tuner, *, is_best: bool) -> None:
        """A trial ended."""
        ...

    def on_note(self, text: str) -> None:
        """Something a person should know."""
        ...


@runtime_checkable
class AsksModel(Protocol):
    """A search that asks a model."""

    @property
    def model_state(self) -> str:
        """What the model is doing, for a person."""
        ...


class Tuner:
    """Spends a budget of evaluations on a space, and reports the best that was measured.

    Args:
        searcher: Proposes candidates and learns.
        engine: Evaluates them.
        evaluator: Behind the engine; used directly for the finals, when nothing else is running.
        run: Where everything is recorded.
        names: ``kernel`` and ``target``, for the result.
        llm: Usage of the model so far, for the result.
    """

    result_type: type[Result] = Result

    def __init__(
        self,
        searcher: Searcher,
        engine: Engine,
        evaluator: Evaluator,
        run: Run,
        *,
        budget: Budget,
        finals: Finals,
        names: Mapping[str, str],
        llm: Callable[[], Mapping[str, Any]],
        observers: Sequence[Observer] = (),
    ) -> None:
        self.meter = Meter(budget, evaluator.fidelities[-1].rank)
        self.trials: list[Trial] = []
        self.incumbent: Trial | None = None
        self._searcher = searcher
        self._engine = engine
        self._evaluator = evaluator
        self._run = run
        self._finals = finals
        self._names = names
        self.llm = llm
        self._observers = observers
        self._flying: dict[int, Trial] = {}
        self._next_number = 0

    def tune(self) -> Result:
        """Run to the end of the budget, or to Ctrl-C, and report.

        A run whose budget was spent before returns its recorded result; with a larger budget it
        goes on from where it stood.

        Raises:
            DeviceError: The device cannot be trusted; everything measured before is in the journal.
            UsageError: The journal cannot be written any more.
        """
        waiting = self._restore()
        if (known := self._recorded_result()) is not None:
            return known
        try:
            stopped = self._search(waiting)
            for observer in self._observers:
                observer.on_note(f"end of the search: {why_ended(stopped)}; finals")
            self._engine.cancel()
            result = self._conclude(stopped, self._hold_finals())
        except KeyboardInterrupt:
            self._evaluator.close()  # ends the jobs in hand, which the engine waits for
            self._engine.cancel()
            self._run.withdraw(self._flying)
            result = self._conclude("interrupted", Podium(self.incumbent, {}))
        except BaseException as error:
            self._engine.cancel()
            if not isinstance(error, Exception):  # such as SystemExit, which is no configuration's fault
                self._run.withdraw(self._flying)
            self._run.release()
            raise
        self._run.finish(result.stopped, result.to_json())
        return result

    @property
    def default_ms(self) -> float | None:
        """Latency of the default configuration, None while it is not known."""
        default = self._default_trial()
        return default.latency_ms if default else None

    @property
    def best_ms(self) -> float | None:
        """Latency of the incumbent, None while there is none."""
        return self.incumbent.latency_ms if self.incumbent else None

    @property
    def speedup(self) -> float | None:
        """Default / best so far, None while one of them is not known."""
        default_ms, best_ms = self.default_ms, self.best_ms
        return None if default_ms is None or best_ms is None else default_ms / best_ms

    @property
    def model_state(self) -> str:
        """What the model is doing, for a person; empty without one."""
        return self._searcher.model_state if isinstance(self._searcher, AsksModel) else ""

    # -- the line ---------------------------------------------------------------------------

    def _search(self, waiting: list[Trial]) -> str:
        """Keep the engine busy until a budget is spent; why it stopped."""
        while True:
            stop = self.meter.why_stop(len(self._flying))
            while stop is None and len(self._flying) < self._engine.slots:
                trial = waiting.pop(0) if waiting else self._propose()
                if trial is None:
                    stop = "exhausted"
                    break
                self._dispatch(trial)
                stop = self.meter.why_stop(len(self._flying))
            if not self._flying:
                assert stop is not None
                return stop
            for outcome in self._engine.completed(timeout_s=0.2):
                self._record(outcome)

    def _propose(self) -> Trial | None:
        candidate = self._searcher.ask([t.config for t in self._flying.values()])
        return None if candidate is None else Trial(self._next_number, candidate)

    def _dispatch(self, trial: Trial) -> None:
        self._run.begin(trial)
        self._next_number = max(self._next_number, trial.number + 1)
        self._flying[trial.number] = trial
        self._engine.submit(Job(trial.number, trial.config, self._to_beat_ms(trial), trial.candidate.fidelity_rank))

    def _to_beat_ms(self, trial: Trial) -> float | None:
        """The latency that makes it worth looking at a trial closely."""
        return self.incumbent.latency_ms if self.incumbent else None

    def _record(self, outcome: Outcome) -> None:
        flown = self._flying.pop(outcome.number)
        trial = Trial(flown.number, flown.candidate, outcome.measurements, outcome.static)
        self._run.append(trial)
        self._learn(trial)

    def _learn(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._searcher.tell([feedback_of(trial)])
        if trial.failure and self.incumbent and trial.config == self.incumbent.config:
            self.incumbent = incumbent(self.trials, self._top_rank)  # it failed when it was looked at closely
        if is_best := self._is_best(trial):
            self.incumbent = trial
        self.meter.tell(trial)
        for observer in self._observers:
            observer.on_trial(trial, self, is_best=is_best)

    def _is_best(self, trial: Trial) -> bool:
        """Whether a trial was measured more carefully than the incumbent, or as carefully and is faster.

        Where trials climb, the first that works reaches the top; where they are promoted one
        fidelity at a time, the incumbent rises with the best of them.
        """
        if trial.best is None:
            return False
        return self.incumbent is None or self._standing(trial) < self._standing(self.incumbent)

    @property
    def _top_rank(self) -> int:
        return self._evaluator.fidelities[-1].rank

    def _standing(self, trial: Trial) -> tuple[int, float]:
        return standing(trial, self._top_rank)

    def _restore(self) -> list[Trial]:
        """Learn what the journal knows; the trials that were cut off, to be run again."""
        quiet, self._observers = self._observers, ()
        for trial in self._run:
            self._next_number = max(self._next_number, trial.number + 1)
            self._learn(trial)
        self._observers = quiet
        self.meter.restored()
        waiting: list[Trial] = []
        for trial, attempts in self._run.interrupted():
            self._next_number = max(self._next_number, trial.number + 1)
            if attempts < QUARANTINE_AFTER:
                waiting.append(trial)
                continue
            reason = f"the tuner died {attempts} times while this was evaluated"
            failed = Measurement(STATIC, self._evaluator.provenance, failed_stage="crash", reason=reason)
            self._flying[trial.number] = trial
            self._record(Outcome(trial.number, None, (failed,)))
        if self.trials:
            note = f"resuming run {self._run.id}: {len(self.trials)} evaluations are in the journal"
            for observer in self._observers:
                observer.on_note(note)
        return waiting

    # -- the end ----------------------------------------------------------------------------

    def _hold_finals(self) -> Podium:
        """Measure the best trials and the default in alternating rounds.

        The winner then meets the default alone once more, so that the ratio that is reported does
        not come from the samples that chose the winner. If it fails there, the next best does so in its
        place; if it is not faster beyond noise, the default stays.
        """
        if not self._finals.count:
            return Podium(self.incumbent, {})
        default = self._default_trial()
        entered = ranked(self.trials, self._top_rank)[: self._finals.count]
        if default is not None and default.best and default not in entered:
            entered.append(default)
        measured = self._interleave(entered) if entered else {}
        if not measured:
            return Podium(self.incumbent, {})
        winner = self._fastest(entered, measured)
        while default is not None and default.number in measured and winner is not default:
            again = self._interleave([winner, default])
            if winner.number not in again:
                del measured[winner.number]
                winner = self._fastest(entered, measured)
                continue
            if default.number in again:  # else what both did together before stands
                measured |= again
            ratio, interval = ratio_ci95(measured[default.number], measured[winner.number])
            if verdict(interval) != "faster":
                self._note_tie(winner, ratio, interval)
                winner = default
            break
        self._run.append_measurements(measured)
        return Podium(winner, measured)

    @staticmethod
    def _fastest(entered: Sequence[Trial], measured: Mapping[int, Measurement]) -> Trial:
        return min((t for t in entered if t.number in measured), key=lambda t: measured[t.number].latency_ms)

    def _note_tie(self, nearest: Trial, ratio: float, interval: tuple[float, float]) -> None:
        """Say what the result does not: how near to being faster than the default another one came."""
        low, high = interval
        text = (
            f"trial {nearest.number + 1} is {ratio:.4f} times as fast as the default, 95 % interval [{low:.4f}, "
            f"{high:.4f}]: not faster beyond noise, so the default stays"
        )
        self._note_finals(text)

    def _note_finals(self, text: str) -> None:
        self._run.note("finals", text)
        for observer in self._observers:
            observer.on_note(text)

    def _interleave(self, trials: Sequence[Trial]) -> dict[int, Measurement]:
        """What they took; those that fail are told, and left out."""
        found = self._evaluator.interleave([t.config for t in trials], self._finals.fidelity)
        for trial, measured in zip(trials, found, strict=True):
            if not measured.ok:
                reason = f"{measured.failed_stage}: {measured.reason}"
                self._note_finals(f"trial {trial.number + 1} fails in the finals and is left out: {reason}")
        return {t.number: m for t, m in zip(trials, found, strict=True) if m.ok}

    def _default_trial(self) -> Trial | None:
        """The most careful trial of the default configuration, or the one that failed."""
        first = next((t for t in self.trials if t.candidate.origin == "default"), None)
        mine = [t for t in self.trials if first is not None and t.config == first.config]
        return next((t for t in mine if t.failure), None) or min(mine, key=self._standing, default=None)

    def _conclude(self, stopped: str, podium: Podium) -> Result:
        best, default = podium.winner, self._default_trial()
        best_measured, default_measured = podium.of(best), podium.of(default)
        speedup, interval = None, None
        if best is not None and best_measured is not None and default is not None and default_measured is not None:
            speedup, interval = 1.0, (1.0, 1.0)
            if best.number != default.number:
                speedup, interval = ratio_ci95(default_measured, best_measured)
            if not {best.number, default.number} <= podium.measured.keys():
                interval = None  # without finals the timings that chose the winner would judge it
        failures = Counter(t.failure.failed_stage or "" for t in self.trials if t.failure)
        failures.update(r.stage for r in self._run.rejections())
        return Result(
            run_id=self._run.id,
            kernel=self._names["kernel"],
            target=self._names["target"],
            device=self._evaluator.device.name,
            provenance=self._evaluator.provenance,
            best=None if best is None or best_measured is None else _described(best.config, best_measured),
            default={
                "config": dict(default.config) if default else None,
                "latency_ms": default_measured.latency_ms if default_measured else None,
            },
            speedup=speedup,
            speedup_ci95=interval,
            evaluations=len(self.trials),
            failures=dict(sorted(failures.items())),
            proposals=dict(sorted(Counter(t.candidate.origin for t in self.trials).items())),
            llm=self.llm(),
            stopped=stopped,
            seconds=round(self.meter.seconds, 3),
            journal=str(self._run.journal.path),
            reasons=commonest_reasons(self.trials),
        )

    def _recorded_result(self) -> Result | None:
        recorded = self._run.result()
        if recorded is None or recorded["stopped"] == "interrupted":
            return None
        has_more = recorded["evaluations"] < len(self.trials)  # cut off after it had gone on
        if recorded["stopped"] != "exhausted" and (has_more or not self.meter.is_answered()):
            return None
        if self._finals.count and recorded["speedup"] is not None and recorded["speedup_ci95"] is None:
            return None  # it was told to hold no finals, or could not
        self._run.release()
        return replace(self.result_type.from_json(recorded), reasons=commonest_reasons(self.trials))


def feedback_of(trial: Trial) -> Feedback:
    """What the search learns from a timed trial: its log latency, and how sure that is."""
    best, failure = trial.best, trial.failure
    if best is None:
        reason = f"{failure.failed_stage}: {failure.reason}" if failure else "no measurement"
        return Feedback(trial.number, trial.candidate, None, failure=reason, cost_s=trial.cost_s)
    rank, loss = best.fidelity.rank, math.log(best.latency_ms)
    return Feedback(trial.number, trial.candidate, loss, log_variance(best), rank, None, trial.cost_s, trial.facts)


def _described(config: Config, measured: Measurement) -> dict[str, Any]:
    return {"config": dict(config), "latency_ms": measured.latency_ms, "ci95_ms": list(latency_ci95_ms(measured))}
