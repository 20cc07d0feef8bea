"""Kernel Tuner's own strategies behind ``ask`` and ``tell``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from evotune.baselines.handover import Handover
from evotune.space import ConfigSpace

OBJECTIVE = "time"


class KernelTunerSearch(Handover):
    """A strategy of Kernel Tuner with its defaults, over exactly the legal configurations.

    Legal configurations and all neighbourhoods are those that Kernel Tuner finds itself when it is given
    the constraints as its restrictions; it is given the table instead, so that no constraint is
    translated. Its annealing fits its schedule to ``budget``. If a strategy ends before, the rest of the
    budget goes to random search.
    """

    def __init__(self, space: ConfigSpace, seed: int, strategy: str, budget: int) -> None:
        super().__init__(space, seed)
        self._strategy = strategy
        self._budget = budget

    def _search(self) -> None:
        util: Any = import_module("kernel_tuner.util")
        make_space: Any = import_module("kernel_tuner.searchspace").Searchspace
        make_options: Any = import_module("kernel_tuner.interface").Options
        options = make_options(
            objective=[OBJECTIVE],
            objective_higher_is_better=[False],
            strategy_options=make_options(max_fevals=self._budget),
            budget=util.TuningBudget(),
            verbose=False,
        )
        tune = import_module(f"kernel_tuner.strategies.{self._strategy}").tune
        searchspace = make_space(None, None, None, from_cache=self._legal())
        with np.errstate(all="ignore"):  # its failures are the largest float, and it divides them
            tune(searchspace, _Runner(self._measure), options)

    def _legal(self) -> dict[str, Any]:
        """The space as Kernel Tuner's cache files give it."""
        configs = [self._space.from_key(row) for row in self._space.keys]
        values = {name: list(p.values) for name, p in self._space.parameters.items()}
        return {"tune_params": values, "cache": dict(enumerate(configs))}

    def _measure(self, elements: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        util: Any = import_module("kernel_tuner.util")
        configs: list[dict[str, Any]] = [dict(zip(self._space.names, e, strict=True)) for e in elements]
        losses = self._evaluate([self._space.key(c) for c in configs])
        return [
            {**config, "__error__": util.RuntimeFailedConfig()}
            if loss is None
            else {**config, OBJECTIVE: math.exp(loss)}
            for config, loss in zip(configs, losses, strict=True)
        ]


class _Runner:
    """The part of Kernel Tuner's runner that strategies use."""

    def __init__(self, measure: Callable[[Sequence[Sequence[Any]]], list[dict[str, Any]]]) -> None:
        self._measure = measure

    def run(self, parameter_space: Sequence[Any], tuning_options: Any) -> list[dict[str, Any]]:
        results = self._measure(parameter_space)
        tuning_options.budget.add_evaluations(len(results))
        return results

    def add_strategy_time(self, seconds: float) -> None:
        """Times are taken elsewhere."""
