"""What Helion is given in place of a kernel and a GPU, so that its searches run as they are.

- A ``ConfigSpec`` of the space's parameters (:mod:`evotune.helion.fragments`), as Helion makes one for
  kernels that are not its own. It refuses an illegal configuration with ``InvalidConfig``, which is how
  Helion's own spaces refuse: random draws, neighbours and mutants are then dropped before they are
  measured, so they cost nothing. Of 100 random configurations that a search opens with, the legal ones
  are measured. (Drawing until 100 are legal leaves less of a small budget for the search: PatternSearch
  scored 0.29 instead of 0.39 on ten recordings at 200 evaluations, 6 seeds.)
- A ``BenchmarkProvider`` that asks the caller. Later and finer timings of a configuration are what they
  were the first time, and no final selection times the best again: nothing would change.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUntypedBaseClass=false
# pyright: reportPrivateUsage=false, reportArgumentType=false
# (helion is optional, and of what it has of types nothing here depends on.)
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from helion._compiler.backend import TritonBackend
from helion.autotuner import search_algorithms
from helion.autotuner.benchmark_provider import BenchmarkProvider, BenchmarkResult
from helion.autotuner.effort_profile import get_effort_profile
from helion.autotuner.external import UserConfigSpec, _ExternalKernelAdapter
from helion.exc import InvalidConfig, NoConfigFound, NotEnoughConfigs

from evotune.baselines.base import Key
from evotune.helion.fragments import Fragments
from evotune.space import ConfigSpace

EFFORT = "full"

Evaluate = Callable[[Sequence[Key]], list[float | None]]
"""Losses (log ms) of legal configurations, None for failures."""


def run(algorithm: str, space: ConfigSpace, fragments: Fragments, seed: int, evaluate: Evaluate) -> None:
    """Run one of Helion's searches, by its name there, to its end."""
    kernel = _ExternalKernelAdapter(
        _Spec(space, fragments),
        compile_fn=_never_called,
        args=(),
        device=torch.device("cpu"),
        autotune_effort=EFFORT,
        autotune_random_seed=seed,
        autotune_benchmark_fn=_time_again,
        autotune_log_level=0,
        autotune_progress_bar=False,
    )
    search_class = search_algorithms[algorithm]
    accepted = inspect.signature(search_class.__init__).parameters
    defaults = search_class.get_kwargs_from_profile(get_effort_profile(EFFORT), kernel.settings)
    with suppress(NoConfigFound, NotEnoughConfigs):  # nothing that it drew was legal, or nothing ran
        search = search_class(kernel, (), **{k: v for k, v in defaults.items() if k in accepted})
        # Searches of populations do not take it as an argument.
        search._benchmark_provider_cls = partial(_Provider, fragments, evaluate)
        search.autotune()


class _Spec(UserConfigSpec):
    def __init__(self, space: ConfigSpace, fragments: Fragments) -> None:
        tunables = {name: tunable.fragment for name, tunable in fragments.tunables.items()}
        super().__init__(backend=TritonBackend(), user_defined_tunables=tunables)
        self._space = space
        self._fragments = fragments

    def flat_config(self, fn: Callable[[Any], object], **options: Any) -> Any:
        config = super().flat_config(fn, **options)
        if not self._space.holds(np.array([self._fragments.key(config.config)]))[0]:
            raise InvalidConfig(f"{dict(config.config)} violates a constraint")
        return config


@dataclass(frozen=True)
class _Timed:
    """Stands for a compiled kernel; running it returns the latency that it had."""

    latency_ms: float

    def __call__(self) -> float:
        return self.latency_ms


class _Provider(BenchmarkProvider):
    """Asks for what it is to benchmark."""

    def __init__(self, fragments: Fragments, evaluate: Evaluate, **_: Any) -> None:
        self._fragments = fragments
        self._evaluate = evaluate
        self.mutated_arg_indices: Sequence[int] = ()

    def benchmark(self, configs: list[Any], **_: Any) -> list[BenchmarkResult]:
        losses = self._evaluate([self._fragments.key(c.config) for c in configs])
        return [_result(c, loss) for c, loss in zip(configs, losses, strict=True)]

    def setup(self) -> None:
        """Nothing is held."""

    def cleanup(self) -> None:
        """Nothing is held."""


def _result(config: Any, loss: float | None) -> BenchmarkResult:
    latency_ms = math.inf if loss is None else math.exp(loss)
    status = "error" if loss is None else "ok"
    return BenchmarkResult(config, _Timed(latency_ms), latency_ms, status, compile_time=None)


def _time_again(timed: Sequence[Callable[[], float]], **_: Any) -> list[float]:
    """Helion's hook for a second, finer timing."""
    return [one() for one in timed]


def _never_called(config: object) -> Callable[..., None]:
    raise AssertionError("only a provider compiles, and this one does not")
