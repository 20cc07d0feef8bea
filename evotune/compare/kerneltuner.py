"""Kernel Tuner's own strategies behind ``ask`` and ``tell``.

A strategy is a function that calls a runner and returns at the end, so it runs in a thread of its
own; the runner hands over one configuration at a time and waits for the answer.
"""

from __future__ import annotations

import math
import queue
import random
import threading
from collections.abc import Sequence
from importlib import import_module
from random import Random
from typing import Any

import numpy as np

from evotune.baselines import Baseline
from evotune.baselines.base import Key, Move
from evotune.proposers.base import Feedback
from evotune.space import ConfigSpace

OBJECTIVE = "time"


class KernelTunerSearch(Baseline):
    """A strategy of Kernel Tuner with its defaults, over exactly the legal configurations.

    Its annealing fits its schedule to ``budget``. If a strategy ends before, the rest of the budget
    goes to random search. Close it, or its thread waits for ever.
    """

    def __init__(self, space: ConfigSpace, seed: int, strategy: str, budget: int) -> None:
        super().__init__(space, seed)
        self._requests: queue.SimpleQueue[Key | BaseException | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[tuple[float | None] | None] = queue.SimpleQueue()
        self._known: dict[Key, float | None] = {}
        self._awaited: Key | None = None
        self._ended = False
        self._closed = False
        # Kernel Tuner draws from the global generators: they are seeded here and put back by close().
        self._global_state = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        self._thread = threading.Thread(target=self._run, args=(strategy, budget), name=strategy, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the strategy; safe to call twice."""
        if self._closed:
            return
        self._closed = self._ended = True
        self._replies.put(None)
        self._thread.join()
        random.setstate(self._global_state[0])
        np.random.set_state(self._global_state[1])

    def _propose(self, rng: Random, in_flight: int) -> Move | None:
        while self._awaited is None and not self._ended:
            key = self._requests.get()
            if isinstance(key, BaseException):
                raise key
            if key is None:
                self._ended = True
            elif key in self._known:
                self._replies.put((self._known[key],))
            else:
                self._awaited = key
                if key not in self._seen:
                    return key, "mutation", None
        return None

    def _learn(self, key: Key, item: Feedback) -> None:
        self._known[key] = item.loss
        if key == self._awaited:
            self._awaited = None
            self._replies.put((item.loss,))

    # -- in the strategy's thread -----------------------------------------------------------

    def _run(self, strategy: str, budget: int) -> None:
        try:
            util: Any = import_module("kernel_tuner.util")
            make_space: Any = import_module("kernel_tuner.searchspace").Searchspace
            make_options: Any = import_module("kernel_tuner.interface").Options
            options = make_options(
                objective=[OBJECTIVE],
                objective_higher_is_better=[False],
                strategy_options=make_options(max_fevals=budget),
                budget=util.TuningBudget(),
                verbose=False,
            )
            tune = import_module(f"kernel_tuner.strategies.{strategy}").tune
            searchspace = make_space(None, None, None, from_cache=self._legal())
            with np.errstate(all="ignore"):  # its failures are the largest float, and it divides them
                tune(searchspace, _Runner(self._evaluate), options)
            self._requests.put(None)
        except BaseException as error:  # whatever it is, the caller's thread must hear of it
            self._requests.put(error)

    def _legal(self) -> dict[str, Any]:
        """The space as Kernel Tuner's cache files give it, so that no constraint is translated."""
        configs = [self._space.from_key(row) for row in self._space.keys]
        values = {name: list(p.values) for name, p in self._space.parameters.items()}
        return {"tune_params": values, "cache": dict(enumerate(configs))}

    def _evaluate(self, element: Sequence[Any]) -> dict[str, Any]:
        util: Any = import_module("kernel_tuner.util")
        config: dict[str, Any] = dict(zip(self._space.names, element, strict=True))
        self._requests.put(self._space.key(config))
        reply = self._replies.get()
        if reply is None:
            raise util.StopCriterionReached("closed")
        (loss,) = reply
        if loss is None:
            return {**config, "__error__": util.RuntimeFailedConfig()}
        return {**config, OBJECTIVE: math.exp(loss)}


class _Runner:
    """The part of Kernel Tuner's runner that strategies use."""

    def __init__(self, evaluate: Any) -> None:
        self._evaluate = evaluate

    def run(self, parameter_space: Sequence[Any], tuning_options: Any) -> list[dict[str, Any]]:
        results = [self._evaluate(element) for element in parameter_space]
        tuning_options.budget.add_evaluations(len(results))
        return results

    def add_strategy_time(self, seconds: float) -> None:
        """Times are taken elsewhere."""
