"""The Python API: tune anything that turns a configuration into a score.

The objective is called in the caller's process and thread, so it may be a lambda or a closure, and it
may hang or crash the caller. For a kernel file, ``evotune run`` guards against both.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from evotune import transfer
from evotune.asking import choose_model, open_model, open_prompts, usage
from evotune.errors import Rejected, UsageError, spelt_for_python
from evotune.facts import PYTHON
from evotune.fingerprint import carry_over
from evotune.function import ANOTHER, check_legal, identity_of, level_of, settings_of, space_of
from evotune.journal import Journal, Run
from evotune.program import Sandbox
from evotune.proposers import Feedback
from evotune.proposers.islands import Islands
from evotune.proposers.model import ModelProposer, Story
from evotune.proposers.portfolio import Portfolio
from evotune.result import Result
from evotune.score import call, losses_of, losses_of_all, score_of, scored
from evotune.session import searcher
from evotune.space import ConfigSpace, Value
from evotune.transfer import WarmStart
from evotune.trial import Trial
from evotune.tuner import QUARANTINE_AFTER

log = logging.getLogger(__name__)

# Ranks shift with every score, and learning all of them anew takes a fraction of a second: it is
# done whenever there are so many times as many. In between a score gets its loss on the present scale.
RESTATE_GROWTH = 1.2
Objective = Callable[[dict[str, Value]], Any]
NAME = "objective"


class OpenEvolveTuner:
    """Finds a configuration with a high score by evolving programs behind a surrogate's screen.

    After :meth:`tune`, ``best_config`` and ``best_score`` hold what was found, ``evaluation_count``
    the calls of the objective, and ``history`` all (configuration, score) in order, with None for the
    score of a failed one.

    Args:
        config_space: Values of each parameter, or a :class:`~evotune.space.ConfigSpace`.
        objective: Takes a configuration, returns a score; higher is better. 0.0, -inf, NaN, None, or
            an exception mean that the configuration failed; other negative scores are fine.
        max_evaluations: Calls of the objective at most; never two for one configuration.
        population_size: Programs kept on the islands.
        temperature: In [0, 1]: how far the proposed changes reach.
        verbose: Print which model is asked, and one line per evaluation.
        constraints: Python expressions over the parameters that must hold.
        provider: ``openai``, ``anthropic``, ``mock``, ``none``, or a plug-in. ``auto`` takes OpenAI or Anthropic
            if a key is set, which costs money and is said, else ``mock``.
        model: Name of the model; the provider's default if None.
        base_url: Of an OpenAI-compatible server.
        seed: The same seed and objective give the same evaluations, unless a real model is asked.
        on_llm_error: ``fail``, or ``fallback`` to go on without the model.
        max_calls: Of the model, at most; in a journal, those of all processes together.
        max_usd: What they may cost at most, likewise. What is not given here is taken from the environment:
            ``EVOTUNE_LLM_MAX_USD``, and every ``EVOTUNE_<SECTION>_<KEY>`` but those of section ``run``.
        system_message: Template that replaces the shipped system prompt.
        initial_program: Program whose configuration is tried first.
        journal: SQLite file in which every evaluation is kept, and from which the same search goes on: of the
            same seed, space and objective, as :func:`~evotune.fingerprint.fingerprint` tells them apart. None
            keeps nothing.
        key: What the objective is known by in the journal, in place of that: needed where it refers to what
            cannot be told apart, such as an open file, and useful where its inputs are random. Another key
            for whatever gives other scores.
        warm_start: Journal of earlier runs to learn from, on another device or shape: of this objective,
            for all that is known of it. They are believed as far as the scores agree with theirs.
        on_evaluation: Called after each evaluation with its number, configuration and score (None if it
            failed). What it raises ends the search.

    Raises:
        UsageError: An empty space, a parameter without values, a setting out of range, or a journal without a
            key where one is needed. It is a ``ValueError``.
        ImportError: OpenEvolve is not installed.
    """

    @spelt_for_python(ANOTHER)
    def __init__(
        self,
        config_space: Mapping[str, Iterable[Value]] | ConfigSpace,
        objective: Objective,
        max_evaluations: int = 100,
        population_size: int = 20,
        temperature: float = 0.8,
        verbose: bool = True,
        *,
        constraints: Iterable[str] = (),
        provider: str = "auto",
        model: str | None = None,
        base_url: str | None = None,
        seed: int = 0,
        on_llm_error: str = "fail",
        max_calls: int | None = None,
        max_usd: float | None = None,
        system_message: str | None = None,
        initial_program: str | None = None,
        journal: str | Path | None = None,
        key: str | None = None,
        warm_start: str | Path | None = None,
        on_evaluation: Callable[[int, Mapping[str, Value], float | None], None] | None = None,
    ) -> None:
        _check(objective, {"max_evaluations": max_evaluations, "population_size": population_size}, temperature)
        self.config_space = space_of(config_space, constraints)
        self.objective = objective
        self.max_evaluations = max_evaluations
        self.verbose = verbose
        self.on_evaluation = on_evaluation
        self.best_config: dict[str, Value] | None
        self.best_score: float | None
        self.evaluation_count: int
        self.history: list[tuple[dict[str, Value], float | None]]
        self._forget()
        self._is_done = False
        self._warm: WarmStart | None = None
        chosen = {
            "run.seed": seed,
            "islands.population_size": population_size,
            "llm.provider": provider,
            "llm.model": model,
            "llm.base_url": base_url,
            "llm.on_error": on_llm_error,
            "llm.temperature": float(temperature),
            "llm.max_calls": max_calls,
            "llm.max_usd": max_usd,
        }
        self._settings = settings_of(chosen, os.environ)
        self._prompts = open_prompts(self._settings, system_message)
        self._choice = choose_model(self._settings, os.environ, self.config_space)
        if initial_program is not None:
            self.config_space = self._starting_at(initial_program)
        # Built at once, so that what is missing is missed before the first evaluation.
        Islands(self.config_space, seed)
        self._journal = None if journal is None else Path(journal)
        if journal is not None or warm_start is not None:
            self._identify(key, warm_start)

    @spelt_for_python(ANOTHER)
    def tune(self) -> dict[str, Value]:
        """The best configuration found; a second call returns it without evaluating again.

        Raises:
            RuntimeError: No evaluation gave a valid score; the commonest failure is named.
        """
        if not self._is_done:
            with ExitStack() as stack:
                self._search(stack)
            self._is_done = True
        if self.best_config is None:
            reason, count = self._failures.most_common(1)[0]
            raise RuntimeError(
                f"no valid configuration in {self.evaluation_count} evaluations; the commonest failure "
                f"({count} times): {reason}"
            )
        return dict(self.best_config)

    def _search(self, stack: ExitStack) -> None:
        started_s = time.monotonic()
        self._say_who_is_asked()
        run = self._open_run(stack)
        search = self._open_search(run, stack)
        waiting = self._restore(run, search)
        while self.evaluation_count < self.max_evaluations:
            if waiting:
                trial = waiting.pop(0)
            elif (candidate := search.ask(())) is not None:
                trial = Trial(self._next_number, candidate)
            else:
                break
            self._next_number = max(self._next_number, trial.number + 1)
            self._evaluate(trial, run, search)
        if run is not None:
            self._finish(run, time.monotonic() - started_s)

    def _restore(self, run: Run | None, search: Portfolio) -> list[Trial]:
        """Learn what is known from before, of which the journal knows best; the trials that were cut off, to be
        run again."""
        known, cut_off = (self._trials, []) if run is None else (list(run), run.interrupted())
        self._next_number = 1 + max([t.number for t in (*known, *(t for t, _ in cut_off))], default=-1)
        self._forget()
        for trial in known:
            self._learn(search, trial)
        waiting: list[Trial] = []
        for trial, attempts in cut_off:
            if attempts < QUARANTINE_AFTER:
                waiting.append(trial)
                continue
            died = scored(trial, None, f"the process died {attempts} times while this was evaluated")
            assert run is not None
            run.append(died)
            self._learn(search, died)
        return waiting

    def _say_who_is_asked(self) -> None:
        said = f"model {self._choice.reason}"
        if self.verbose:
            print(said)  # noqa: T201 - asked for by the caller
        else:
            log.log(level_of(self._choice, self._settings), said)

    def _evaluate(self, trial: Trial, run: Run | None, search: Portfolio) -> None:
        config = dict(trial.config)
        if run is not None:
            run.begin(trial)
        try:
            score, failure = call(self.objective, config)
        except BaseException:  # not a failure of the configuration: the caller wants to stop
            if run is not None:
                run.withdraw([trial.number])
            raise
        trial = scored(trial, score, failure)
        if run is not None:
            run.append(trial)
        self._learn(search, trial)
        if self.verbose:
            shown = f"failed ({failure})" if score is None else f"{score:.6g}"
            counted = f"Evaluation {self.evaluation_count}/{self.max_evaluations}"
            print(f"{counted}: config={config}, score={shown}")  # noqa: T201 - asked for by the caller
        if self.on_evaluation is not None:
            self.on_evaluation(trial.number, config, score)

    def _forget(self) -> None:
        self.best_config = self.best_score = None
        self.evaluation_count, self.history = 0, []
        self._trials: list[Trial] = []
        self._failures: Counter[str] = Counter()
        self._told: list[Feedback] = []
        self._scores: list[float] = []
        self._next_restating = 1

    def _learn(self, search: Portfolio, trial: Trial) -> None:
        """Keep the result and tell the search, on a scale on which differences of scores mean something."""
        config, score = dict(trial.config), score_of(trial)
        failure = trial.failure.reason if trial.failure else None
        self._trials.append(trial)
        self.history.append((config, score))
        if score is None:
            self._failures[failure or "no score"] += 1
        else:
            self._scores.append(score)
            if self.best_score is None or score > self.best_score:
                self.best_config, self.best_score = config, score
        losses = iter(losses_of(self._scores))
        known = [*self._told, Feedback(self.evaluation_count, trial.candidate, score, failure=failure)]
        self._told = [f if f.loss is None else replace(f, loss=next(losses)) for f in known]
        self.evaluation_count += 1
        search.tell([self._told[-1]])
        if len(self._scores) >= self._next_restating and any(s <= 0 for s in self._scores):
            search.restate(self._told)
            self._next_restating = math.ceil(RESTATE_GROWTH * len(self._scores))

    def _finish(self, run: Run, seconds: float) -> None:
        """Commit what ``evotune show`` tells of a search that ended."""
        failures = Counter([t.failure.failed_stage or "" for t in self._trials if t.failure])
        failures.update(r.stage for r in run.rejections())
        result = Result(
            run_id=run.id,
            kernel=NAME,
            target=PYTHON,
            device=PYTHON,
            provenance="measured",
            best=None,  # a latency is wanted there
            default={"config": dict(self.config_space.default), "latency_ms": None},
            speedup=None,
            speedup_ci95=None,
            evaluations=self.evaluation_count,
            failures=dict(sorted(failures.items())),
            proposals=dict(sorted(Counter(t.candidate.origin for t in self._trials).items())),
            llm=usage(run, self._choice),
            stopped="evaluations" if self.evaluation_count >= self.max_evaluations else "exhausted",
            seconds=round(seconds, 3),
            journal=str(self._journal),
        )
        run.finish(result.stopped, {**result.to_json(), "best_score": self.best_score})

    def _identify(self, key: str | None, warm_start: str | Path | None) -> None:
        """Done before the first evaluation: the objective may change what it refers to."""
        identity = identity_of(self.config_space, self._settings.run.seed, self.objective, key)
        self._source_hash, self._description = identity
        if warm_start is not None:
            self._warm = transfer.warm_start(str(warm_start), self.config_space, [NAME], *identity, losses_of_all)
            self._description = {**self._description, transfer.WARM_START: self._warm.hash}

    def _open_run(self, stack: ExitStack) -> Run | None:
        if self._journal is None:
            return None
        journal = stack.enter_context(Journal(self._journal))
        if (before := self._description.get("function")) is not None:
            stack.callback(carry_over, self.objective, before)
        run = journal.open_run(NAME, self._source_hash, self._description)
        stack.callback(run.release)
        check_legal(run, self.config_space)
        return run

    def _open_search(self, run: Run | None, stack: ExitStack) -> Portfolio:
        def make_model(islands: Islands) -> ModelProposer | None:
            return open_model(
                self._settings,
                self._choice,
                Story(NAME),
                islands,
                space=self.config_space,
                prompts=self._prompts,
                run=run,
                stack=stack,
            )

        source = self._warm.source if self._warm else None
        found = searcher(self.config_space, self._settings, make_model, source=source)
        assert isinstance(found, Portfolio)
        return found

    def _starting_at(self, program: str) -> ConfigSpace:
        """The same space, with what the program returns as its default."""
        with Sandbox(self._settings.run.isolation) as sandbox:
            try:
                config = sandbox.run(program, self.config_space)
            except Rejected as rejected:
                raise UsageError(f"initial_program: {rejected}") from None
        space = self.config_space
        texts = [c.text for c in space.constraints]
        return ConfigSpace(space.parameters, texts, constants=space.constants, default=config)


def _check(objective: Any, counts: Mapping[str, Any], temperature: Any) -> None:
    if not callable(objective):
        raise UsageError(f"objective {objective!r} cannot be called; give a function of a configuration")
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise UsageError(f"{name} = {value!r} must be a whole number, 1 at least")
    if type(temperature) not in (int, float) or not 0.0 <= temperature <= 1.0:
        raise UsageError(f"temperature = {temperature!r} is outside [0, 1]")
