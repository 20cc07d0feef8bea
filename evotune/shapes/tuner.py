"""The line of a single run over pairs of a shape and a configuration, and finals for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evotune.budget import Budget
from evotune.engine import Engine
from evotune.evaluator import Evaluator
from evotune.interval import Z95, latency_ci95_ms, ratio_ci95
from evotune.journal import Run
from evotune.result import Result, commonest_reasons
from evotune.shapes.search import ProgramSearch
from evotune.shapes.table import ONE_LEAF, PRICE, Program, Table
from evotune.space import Config
from evotune.trial import Measurement, Trial
from evotune.tuner import Finals, Observer, Podium, Tuner

Ratio = tuple[float, tuple[float, float]]
"""How many times as fast, and its 95 % interval."""
EQUAL: Ratio = 1.0, (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class ShapesResult(Result):
    """What a run over several shapes found: the fields of a single run, with configurations by shape and
    geometric means for latencies, and these."""

    program: str | None
    """Python text of the best ``get_kernel_config(problem)``."""
    score: float | None
    """Geometric mean over the shapes of best known / the program's latency."""
    single: Mapping[str, Any] | None
    """The best of the ``tried`` configurations that were measured at every shape, and how many times as
    fast the program is."""
    shapes: Sequence[Mapping[str, Any]]
    """One entry per shape."""


class ShapesTuner(Tuner):
    """Spends a budget of measured pairs on a program, and compares it with the defaults, and with the best
    single configuration.

    Args:
        search: Proposes pairs.
    """

    result_type = ShapesResult

    def __init__(
        self,
        search: ProgramSearch,
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
        super().__init__(
            search, engine, evaluator, run, budget=budget, finals=finals, names=names, llm=llm, observers=observers
        )
        self.table = search.table
        self._program: Program | None = None
        self._single: Program | None = None

    @property
    def default_ms(self) -> float | None:
        """Latency of the default at the shape of the latest trial."""
        shape, _ = self.table.split(self.trials[-1].config)
        default = self._trial(shape, self.table.shapes[shape].space.default)
        return default.latency_ms if default else None

    @property
    def best_ms(self) -> float | None:
        """None: shapes have one each."""
        return None

    @property
    def speedup(self) -> float | None:
        """Geometric mean of how many times as fast as the defaults the best program is so far."""
        defaults = self.table.program([s.space.default for s in self.table.shapes])
        best, program = self.table.cost(defaults, 0.0), self.table.elite()
        cost = None if program is None else self.table.cost(program, 0.0)
        return None if best is None or cost is None else math.exp((best - cost) / len(self.table.shapes))

    # -- the line, where shapes differ ------------------------------------------------------

    def _to_beat_ms(self, trial: Trial) -> float | None:
        shape, _ = self.table.split(trial.config)
        best = self.table.best(shape)
        return math.exp(self.table.loss(shape, best[0]) or 0.0) if best else None

    def _is_best(self, trial: Trial) -> bool:
        """At its shape; the search has been told already."""
        shape, config = self.table.split(trial.config)
        return self.table.best(shape) == [config]

    def _trial(self, shape: int, config: Config) -> Trial | None:
        pair = self.table.shapes[shape].pair(config)
        return next((t for t in self.trials if t.config == pair), None)

    # -- the end ----------------------------------------------------------------------------

    def _hold_finals(self) -> Podium:
        """Time the best of each shape in alternating rounds, and take the best rule over those timings.

        The winner, the defaults and the best single configuration then meet once more, so that the ratios
        that are reported do not come from the samples that chose the winner.
        """
        elites = [e for price in (0.0, PRICE, ONE_LEAF) if (e := self.table.elite(price)) is not None]
        if not elites:
            return Podium(None, {})
        timed = Table(self.table.shapes, self.table.kernel)
        measured: dict[int, Measurement] = {}
        for shape, of in enumerate(self.table.shapes):
            entrants = [*(e.configs[shape] for e in elites), of.space.default]
            entrants += self.table.best(shape, self._finals.count)
            for trial, measurement in self._meet(shape, entrants):
                measured[trial.number] = measurement
                timed.add(shape, self.table.split(trial.config)[1], math.log(measurement.latency_ms))
        self._program, self._single = timed.elite() or elites[-1], timed.elite(ONE_LEAF)
        known = [self._program, *([self._single] if self._single else [])]
        for shape, of in enumerate(self.table.shapes):
            again = self._meet(shape, [*(p.configs[shape] for p in known), of.space.default])
            measured |= {trial.number: measurement for trial, measurement in again}
        self._run.append_measurements(measured)
        return Podium(None, measured)

    def _meet(self, shape: int, configs: Iterable[Config]) -> list[tuple[Trial, Measurement]]:
        """Timings in alternating rounds of those that ran, each once; none for one alone."""
        trials = {t.number: t for c in configs if (t := self._trial(shape, c)) is not None and t.best}
        measured = self._interleave(list(trials.values())) if trials else {}
        return [(trials[number], m) for number, m in measured.items()]

    def _conclude(self, stopped: str, podium: Podium) -> ShapesResult:
        program = self._program or self.table.elite()
        single = self._single or self.table.elite(ONE_LEAF)
        rows = [self._row(shape, podium, program, single) for shape in range(len(self.table.shapes))]
        speedup = _geometric([row.over_default for row in rows])
        over_single = _geometric([row.over_single for row in rows])
        failures = Counter(t.failure.failed_stage or "" for t in self.trials if t.failure)
        failures.update(r.stage for r in self._run.rejections())
        return ShapesResult(
            run_id=self._run.id,
            kernel=self._names["kernel"],
            target=self._names["target"],
            device=self._evaluator.device.name,
            provenance=self._evaluator.provenance,
            best=_summary(rows, program, [row.program for row in rows]),
            default=_mean({row.shape: row.default_config for row in rows}, [row.default for row in rows]),
            speedup=speedup[0] if speedup else None,
            speedup_ci95=speedup[1] if speedup else None,
            evaluations=len(self.trials),
            failures=dict(sorted(failures.items())),
            proposals=dict(sorted(Counter(t.candidate.origin for t in self.trials).items())),
            llm=self.llm(),
            stopped=stopped,
            seconds=round(self.meter.seconds, 3),
            journal=str(self._run.journal.path),
            reasons=commonest_reasons(self.trials),
            program=program.text if program else None,
            score=_score(rows) if program else None,
            single=_compared(single, self.table.shared(), [row.single for row in rows], over_single),
            shapes=[row.to_json() for row in rows],
        )

    def _row(self, shape: int, podium: Podium, program: Program | None, single: Program | None) -> _Row:
        of = self.table.shapes[shape]

        def timing(config: Config | None) -> Measurement | None:
            return None if config is None else podium.of(self._trial(shape, config))

        mine = program.configs[shape] if program else None
        # Known best at the same care: with finals, among those who were in them.
        known = [(m.latency_ms, c) for c in self.table.best(shape, self._finals.count) if (m := timing(c))]
        known += [(m.latency_ms, mine) for m in [timing(mine)] if m and mine]
        best_ms, best = min(known, key=lambda k: k[0], default=(None, None))
        return _Row(
            of.name,
            of.problem,
            mine,
            timing(mine),
            of.space.default,
            timing(of.space.default),
            timing(single.configs[shape]) if single else None,
            best,
            best_ms,
        )


@dataclass(frozen=True)
class _Row:
    """One shape at the end of a run."""

    shape: str
    problem: Mapping[str, Any]
    config: Config | None
    program: Measurement | None
    default_config: Config
    default: Measurement | None
    single: Measurement | None
    best: Config | None
    best_ms: float | None

    @property
    def over_default(self) -> Ratio | None:
        return _ratio(self.default, self.program)

    @property
    def over_single(self) -> Ratio | None:
        return _ratio(self.single, self.program)

    def to_json(self) -> dict[str, Any]:
        over = self.over_default
        return {
            "shape": self.shape,
            "problem": dict(self.problem),
            "config": _plain(self.config),
            "latency_ms": self.program.latency_ms if self.program else None,
            "ci95_ms": list(latency_ci95_ms(self.program)) if self.program else None,
            "default": {
                "config": dict(self.default_config),
                "latency_ms": self.default.latency_ms if self.default else None,
            },
            "best": {"config": _plain(self.best), "latency_ms": self.best_ms},
            "single_ms": self.single.latency_ms if self.single else None,
            "speedup": over[0] if over else None,
            "speedup_ci95": list(over[1]) if over else None,
        }


def _ratio(slow: Measurement | None, fast: Measurement | None) -> Ratio | None:
    if slow is None or fast is None:
        return None
    return EQUAL if slow is fast else ratio_ci95(slow, fast)


def _geometric(ratios: Sequence[Ratio | None]) -> Ratio | None:
    """Geometric mean of ratios of different shapes, whose errors are independent: on a log scale the mean,
    with their standard errors added in quadrature."""
    known = [r for r in ratios if r is not None]
    if not known or len(known) < len(ratios):
        return None
    centre = sum(math.log(ratio) for ratio, _ in known) / len(known)
    errors = [(math.log(high) - math.log(low)) / (2 * Z95) for _, (low, high) in known]
    spread = Z95 * math.hypot(*errors) / len(known)
    return math.exp(centre), (math.exp(centre - spread), math.exp(centre + spread))


def _mean(configs: Mapping[str, Config | None], timings: Sequence[Measurement | None]) -> dict[str, Any]:
    """Configurations by shape, and the geometric mean of their latencies if all were timed."""
    known = [math.log(m.latency_ms) for m in timings if m is not None]
    mean_ms = math.exp(sum(known) / len(known)) if len(known) == len(timings) else None
    return {"config": {name: _plain(config) for name, config in configs.items()}, "latency_ms": mean_ms}


def _summary(
    rows: Sequence[_Row], program: Program | None, timings: Sequence[Measurement | None]
) -> dict[str, Any] | None:
    if program is None or any(m is None for m in timings):
        return None
    out = _mean({row.shape: row.config for row in rows}, timings)
    spread = Z95 * math.hypot(*(m.relative_error for m in timings if m)) / len(timings)
    return {**out, "ci95_ms": [out["latency_ms"] * math.exp(-spread), out["latency_ms"] * math.exp(spread)]}


def _compared(
    single: Program | None, tried: int, timings: Sequence[Measurement | None], over: Ratio | None
) -> dict[str, Any] | None:
    if single is None or over is None:
        return None
    mean = _mean({}, timings)
    return {
        "config": _plain(single.configs[0]),
        "tried": tried,
        "latency_ms": mean["latency_ms"],
        "speedup": over[0],
        "speedup_ci95": list(over[1]),
    }


def _score(rows: Sequence[_Row]) -> float | None:
    logs = [math.log(r.best_ms / r.program.latency_ms) for r in rows if r.best_ms and r.program]
    return math.exp(sum(logs) / len(logs)) if len(logs) == len(rows) else None


def _plain(config: Config | None) -> dict[str, Any] | None:
    return None if config is None else dict(config)
