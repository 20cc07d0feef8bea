"""Triton's autotuner with a search, a memory, and a distrust of what it launches."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# (triton is optional, and of what it has of types nothing here depends on.)
from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from triton.runtime.autotuner import Autotuner as TritonAutotuner

from evotune.errors import DeviceError, UsageError, nearest
from evotune.kernel import Tolerance
from evotune.space import ConfigSpace
from evotune.triton import environment
from evotune.triton.cache import Cache
from evotune.triton.checking import Results
from evotune.triton.choices import Choices, TritonConfig, space_of
from evotune.triton.launch import Call, say, show, stage_of
from evotune.triton.search import Budget, Timed, decide, search

_log = logging.getLogger(__name__)

QUANTILES = [0.5, 0.2, 0.8]
# What is timed while something else is timed has no time. Re-entrant: a hook may launch a kernel that is tuned.
_TIMING = threading.RLock()

Key = tuple[Any, ...]


def autotune(
    configs: Sequence[Any] | Mapping[str, Sequence[Any]] | ConfigSpace,
    key: Sequence[str],
    prune_configs_by: Mapping[str, Any] | None = None,
    reset_to_zero: Sequence[str] | None = None,
    restore_value: Sequence[str] | None = None,
    pre_hook: Callable[..., Any] | None = None,
    post_hook: Callable[..., Any] | None = None,
    warmup: int | None = None,
    rep: int | None = None,
    use_cuda_graph: bool = False,
    do_bench: Callable[..., Any] | None = None,
    cache_results: bool = True,
    *,
    check: Mapping[str, Tolerance] | None = None,
    max_evaluations: int = 60,
    max_seconds: float = 60.0,
) -> Callable[[Any], Autotuner]:
    """``triton.autotune`` with a search; what is not said here is as there.

    The first launch with new values of ``key`` or new dtypes times configurations, the default one
    first: all of them if they are no more than ``max_evaluations``, else those that a surrogate
    suggests. One that fails is left out. The best few are timed again in alternating rounds; where
    two tie, the one that comes first wins.

    Args:
        configs: ``triton.Config`` objects, of which the first is the default; or the values of each
            parameter by name, or a :class:`~evotune.space.ConfigSpace` with its own default. In these,
            ``num_warps``, ``num_stages``, ``num_ctas`` and ``maxnreg`` are options of the launch.
        key: Arguments with whose values the best configuration may change.
        prune_configs_by: With values by name, ``early_config_prune`` alone, asked of one at a time.
        do_bench: Called with a launch and ``quantiles``, as Triton's own, which flushes the cache.
        cache_results: Keep what was found in ``~/.cache/evotune/triton``, by everything that it depends on.
        check: How far results may be from those of the default configuration, by name of the argument
            that holds them. Arguments that the kernel also reads must be in ``reset_to_zero`` or
            ``restore_value``.
        max_evaluations: Configurations timed per key.
        max_seconds: After which no other is begun.

    Raises:
        UsageError: Something of the above cannot be used. It is a ``ValueError``.
        DeviceError: At a launch: a configuration broke the device.
    """
    options = {
        "reset_to_zero": reset_to_zero, "restore_value": restore_value, "prune_configs_by": prune_configs_by,
        "pre_hook": pre_hook, "post_hook": post_hook,
        "warmup": warmup, "rep": rep, "use_cuda_graph": use_cuda_graph, "do_bench": do_bench,
    }  # fmt: skip
    budget = Budget(max_evaluations, max_seconds)
    return lambda fn: Autotuner(fn, configs, key, options, check=check or {}, budget=budget, keeps=cache_results)


class Autotuner(TritonAutotuner):
    """See :func:`autotune`. It is one of Triton's, with the same attributes.

    ``configs`` has all configurations if all would be timed, else the default alone.
    ``configs_timings`` has those of the last search that ran.
    """

    def __init__(
        self,
        fn: Any,
        given: Any,
        key: Sequence[str],
        options: Mapping[str, Any],
        *,
        check: Mapping[str, Tolerance],
        budget: Budget,
        keeps: bool,
    ) -> None:
        if not hasattr(fn, "arg_names"):
            raise UsageError(f"{fn!r} is no kernel of Triton; put @triton.jit below this decorator")
        if not given:
            raise UsageError(f"configs is {given!r}: nothing to choose from; give a list, or values by name")
        names = {"key": key, "check": check, **{n: options[n] or () for n in ("reset_to_zero", "restore_value")}}
        for what, wanted in names.items():
            if unknown := [f"{n!r}{nearest(n, fn.arg_names)}" for n in wanted if n not in fn.arg_names]:
                raise UsageError(f"{what}: {', '.join(unknown)} is no argument of the kernel ({fn.arg_names})")
        if budget.max_evaluations < 1:
            raise UsageError(f"max_evaluations = {budget.max_evaluations!r} must be 1 at least")
        self.space: ConfigSpace | None = None
        if isinstance(given, Sequence):
            listed = cast(Sequence[TritonConfig], given)
            if odd := [c for c in listed if not hasattr(c, "all_kwargs")]:
                raise UsageError(f"configs: {odd[0]!r} is not a triton.Config")
            configs = list(dict.fromkeys(listed))
            if len(configs) > 1:
                Choices.of_list(configs)  # what is wrong with them is said now
        else:
            self.space = space_of(given, fn.arg_names)
            choices = Choices.of_space(self.space)
            few = choices.count <= budget.max_evaluations
            configs = [choices.pick(c) for c in choices.all()] if few else [choices.default]
            if set(options["prune_configs_by"] or ()) - {"early_config_prune"}:
                raise UsageError("prune_configs_by: perf_model and top_k choose from a list; give a list")
        super().__init__(fn, fn.arg_names, configs, list(key), **options)
        self._budget = budget
        self._check = check
        self._keeps = keeps
        self._kept = Cache(self.base_fn.__name__)
        self._name = self.base_fn.__name__
        self._said: set[str] = set()
        self._unknown: dict[Key, TritonConfig] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        call = Call(self.arg_names, args, kwargs)
        config = self._configuration(call)
        self.best_config = config
        if config.pre_hook is not None:
            config.pre_hook(call.with_options(config))
        return self.fn.run(*args, **kwargs, **config.all_kwargs())

    def warmup(self, *args: Any, **kwargs: Any) -> Any:
        with _TIMING:  # Triton keeps the arguments in this object meanwhile
            return super().warmup(*args, **kwargs)

    # -- which configuration ------------------------------------------------------------------

    def _configuration(self, call: Call) -> TritonConfig:
        mode = environment.mode()
        if mode == "off" or (len(self.configs) == 1 and self.space is None):
            return self.configs[0]
        key = self._key(call)
        if (known := self.cache.get(key)) is not None:
            return known
        if mode == "cached" and (default := self._unknown.get(key)) is not None:
            return default
        with _TIMING:
            if key not in self.cache:
                self.nargs = call.positional  # where Triton's pruning finds them
                try:
                    return self._find(key, mode, call)
                finally:
                    self.nargs = None
            return self.cache[key]

    def _find(self, key: Key, mode: environment.Mode, call: Call) -> TritonConfig:
        """The configuration for a key that this process has not met: from the disk, else by a search."""
        if self.space is None:
            pruned = self.prune_configs(call.kwargs) or self.configs[:1]  # Triton 3.6 may leave none
            if len(pruned) == 1:
                self.cache[key] = pruned[0]
                return pruned[0]
            choices = Choices.of_list(pruned)
        else:
            choices = Choices.of_space(self.space)
        subject = {
            "source": environment.source_hash(self.fn),
            "key": [str(value) for value in key],
            "choices": choices.digest,
            **environment.describe_device(),
        }
        values = self._kept.get(subject) if self._keeps else None
        if values is not None and not choices.space.violations(values):
            self.cache[key] = choices.pick(values)
        elif why := self._why_not(mode):
            if why not in self._said:
                self._said.add(why)
                _log.warning(
                    "%s: nothing is known for %s, and %s; the default configuration is used: %s",
                    self._name,
                    subject["key"],
                    why,
                    show(choices.default),
                )
            self._unknown[key] = choices.default
            return choices.default
        else:
            self.cache[key] = self._search(choices, subject, call)
        return self.cache[key]

    def _why_not(self, mode: environment.Mode) -> str | None:
        """Why there is no search, if so."""
        if mode == "cached":
            return "EVOTUNE=cached"
        if environment.is_interpreting() and self._do_bench is None:
            return "times in Triton's interpreter mean nothing"
        return "nothing can be timed while a CUDA graph is captured" if environment.is_capturing() else None

    def _key(self, call: Call) -> Key:
        """As Triton's: values of the key arguments, and all dtypes."""
        named = {name: value for name, value in call.named.items() if name in self.arg_names}
        dtypes = [str(value.dtype) for value in named.values() if hasattr(value, "dtype")]
        return (*(named[name] for name in self.keys if name in named), *dtypes)

    # -- the search ---------------------------------------------------------------------------

    def _search(self, choices: Choices, subject: Mapping[str, Any], call: Call) -> TritonConfig:
        if clash := sorted(call.kwargs.keys() & choices.default.all_kwargs().keys()):
            raise UsageError(f"{clash} are given at the launch of {self._name} and by its configurations")
        started = time.perf_counter()
        found: list[Timed] = []
        results = self._expected(choices.default, call)
        try:
            search(choices, partial(self._attempt, call, results), self._budget, found)
            self._report_failures(found)
            winner = decide(found, partial(self._attempt, call, None))
        except DeviceError as error:
            self._keep_best_so_far(choices, subject, found, error)
            raise
        finally:
            if results is not None:
                results.put_back()
        self.pre_hook(call.with_options(winner.config), reset_only=True)
        self.bench_time = time.perf_counter() - started
        self.configs_timings = {t.config: list(t.quantiles_ms) for t in found if t.ok}
        self._keep(choices, subject, winner, found)
        level = logging.WARNING if environment.is_told_to_print() else logging.INFO
        counts = f"the best of {len(found)} timed of {choices.count}"
        told = f"{winner.latency_ms:.4g} ms{_against(found[0])}, {counts}, found in {self.bench_time:.1f} s"
        _log.log(level, "%s: %s for %s: %s", self._name, show(winner.config), subject["key"], told)
        return winner.config

    def _attempt(self, call: Call, results: Results | None, config: TritonConfig) -> Timed:
        """Check a configuration, if there is something to check it with, and time it.

        Raises:
            DeviceError: It broke the device: nothing more can be launched in this process.
        """
        launch = partial(self._launch, call, config)
        try:
            if self.space is not None and not self._survives_pruning(config, call):
                return Timed(config, stage="pruned", reason="early_config_prune does not want it")
            if results is not None:
                results.verify(launch)
            times: Any = self.do_bench(launch, quantiles=QUANTILES)
            quantiles_ms = tuple(np.ravel(times).astype(float).tolist())
        except UsageError:
            raise
        except Exception as error:  # Triton, CUDA and hooks raise many kinds
            if environment.is_broken():
                raise DeviceError(f"{self._name}: {show(config)} broke the device: {say(error)}") from error
            return Timed(config, stage=stage_of(error), reason=say(error), error=error)
        if not all(math.isfinite(ms) and ms > 0 for ms in quantiles_ms):
            return Timed(config, stage="launch", reason=f"do_bench returned {quantiles_ms}")
        return Timed(config, quantiles_ms)

    def _survives_pruning(self, config: TritonConfig, call: Call) -> bool:
        prune = self.early_config_prune
        return prune is None or bool(prune([config], call.positional, **call.kwargs))

    def _launch(self, call: Call, config: TritonConfig, then: Callable[[], None] = lambda: None) -> None:
        """One launch between the hooks; ``then`` is called before the second one."""
        everything = call.with_options(config)
        if config.pre_hook is not None:
            config.pre_hook(everything)
        self.pre_hook(everything)
        try:
            self.fn.run(*call.args, **call.kwargs, **config.all_kwargs())
            then()
        except Exception as error:
            self.post_hook(everything, exception=error)
            raise
        self.post_hook(everything, exception=None)

    def _expected(self, default: TritonConfig, call: Call) -> Results | None:
        """What other configurations are held against, if that is wanted."""
        if not self._check:
            return None
        results = Results(self._check, call.named, self.restore_value)
        try:
            results.expect(partial(self._launch, call, default))
        except Exception as error:  # Triton, CUDA and hooks raise many kinds
            results.put_back()
            if isinstance(error, UsageError):
                raise
            said = f"nothing can be checked, for the default configuration fails: {show(default)}: {say(error)}"
            raise RuntimeError(f"{self._name}: {said}") from error
        return results

    def _report_failures(self, found: Sequence[Timed]) -> None:
        failed = [t for t in found if not t.ok]
        if not failed:
            return
        stages = ", ".join(f"{n} {stage}" for stage, n in Counter(t.stage for t in failed).most_common())
        first = f"{show(failed[0].config)}: {failed[0].reason}"
        if len(failed) == len(found):
            raise RuntimeError(
                f"{self._name}: none of {len(found)} configurations runs ({stages}); the first: {first}"
            ) from failed[0].error
        _log.warning("%s: %d of %d configurations fail and are left out (%s); the first: %s",
                     self._name, len(failed), len(found), stages, first)  # fmt: skip

    # -- what is kept -------------------------------------------------------------------------

    def _keep(self, choices: Choices, subject: Mapping[str, Any], winner: Timed, found: Sequence[Timed]) -> None:
        if self._keeps:
            result = {
                "latency_ms": winner.latency_ms,
                "default_ms": found[0].latency_ms if found[0].ok else None,
                "evaluations": len(found),
                "failures": Counter(t.stage for t in found if not t.ok),
            }
            self._kept.put(subject, choices.values(winner.config), result)

    def _keep_best_so_far(
        self, choices: Choices, subject: Mapping[str, Any], found: Sequence[Timed], error: DeviceError
    ) -> None:
        """So that the next process neither searches again nor meets what broke the device."""
        if not any(t.ok for t in found):
            return
        best = min((t for t in found if t.ok), key=lambda t: t.latency_ms)
        self._keep(choices, subject, best, found)
        where = f"kept in {self._kept.path}, and the next process uses it" if self._keeps else "not kept"
        error.args = (f"{error}; start again. The best so far is {where}: {show(best.config)}",)


def _against(default: Timed) -> str:
    return f", {default.latency_ms:.4g} ms with the default" if default.ok else ""
