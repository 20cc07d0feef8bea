"""Searches for Helion: what it can be given in place of its own.

Each is a subclass of Helion's ``PopulationBasedSearch``. Compiling, checking, timing, limits, logs and the
final selection are Helion's; what to measure next is ours. A generation, in Helion's logs and between the
checks of its wall-clock budget, is a batch.

All begin with what Helion's own begin with at quick effort: given seeds, what its compiler recommends, what
it has in its cache for this kernel, and its reference configuration. They count as evaluations.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUntypedBaseClass=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportUnnecessaryComparison=false
# (helion is optional, and of what it has of types nothing here depends on.)
from __future__ import annotations

import inspect
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from helion.autotuner import cache_classes, search_algorithms
from helion.autotuner.base_search import PopulationBasedSearch, performance
from helion.autotuner.effort_profile import get_effort_profile
from helion.exc import NoConfigFound

from evotune.errors import UsageError
from evotune.helion.line import Asked, Line
from evotune.helion.structure import transplants
from evotune.proposers.base import Searcher
from evotune.proposers.schedule import Schedule

if TYPE_CHECKING:
    from evotune.helion.space import HelionSpace
    from evotune.proposers.islands import Islands
    from evotune.proposers.model import ModelProposer

# Configurations that are compiled together: compiling takes most of the time, and cores are many. But only
# the first of a batch is proposed with all results known.
BATCH_SIZE = 8
# By Helion's effort: about a fifth of what its PatternSearch measures; see benchmarks/results/helion_plugin.md.
MAX_EVALUATIONS = {"quick": 80, "full": 400}
# Share of the evaluations in which what is good in one structure is tried in the others.
TRANSPLANTED = 0.2
# Milliseconds for which Helion repeats a configuration when it is new; nobody can choose them.
FIRST_REP_MS = 50


class _Search(PopulationBasedSearch):
    """Asks a search of ours what to measure, in batches.

    Args:
        kernel: Helion's ``BoundKernel``.
        args: What it is tuned for.
        max_evaluations: Measurements at most, each of one configuration at one fidelity.
        batch_size: Configurations that are compiled together.
        max_generations: Batches at most; None for no limit.
        finishing_rounds: Helion's attempts to make the best configuration simpler.
    """

    def __init__(
        self,
        kernel: Any,
        args: Sequence[object],
        *,
        max_evaluations: int,
        batch_size: int,
        max_generations: int | None,
        finishing_rounds: int,
    ) -> None:
        for name, value in {"max_evaluations": max_evaluations, "batch_size": batch_size}.items():
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} = {value!r} must be a whole number, 1 at least")
        super().__init__(kernel, args, finishing_rounds=finishing_rounds)
        self.max_evaluations = max_evaluations
        self.batch_size = batch_size
        self.max_generations = max_generations
        self._evaluations = 0

    @abstractmethod
    def _open(self, space: HelionSpace, stack: ExitStack) -> Line:
        """A line to the search; what it holds is released by ``stack``."""

    def _autotune(self) -> Any:
        # Late: it may be what imports Helion, and thereby this module.
        from evotune.helion.space import HelionSpace

        seeds = self._generate_best_available_population_flat()
        space = HelionSpace(self.config_gen, [self.config_gen.unflatten(flat) for flat in seeds])
        with ExitStack() as stack:
            line = self._open(space, stack)
            self.log(
                f"Starting {type(self).__name__}: {self.max_evaluations} of {space.space.cardinality:.0e} configs"
            )
            self._evaluate(line, line.first(space.seeds, self.max_evaluations))
            if not self._autotune_budget_exceeded_across_ranks():
                n = min(round(TRANSPLANTED * self.max_evaluations), self._left)
                self._evaluate(line, line.first(transplants(space, line.best), n))
            self.set_adaptive_compile_timeout(self.population, min_seconds=30.0, quantile=0.9)  # as Helion's own
            batches = self.max_evaluations if self.max_generations is None else self.max_generations
            for generation in self._budgeted_range(1, batches + 1):
                batch = line.gather(min(self.batch_size, self._left))
                if not batch:
                    break
                self.set_generation(generation)
                self._evaluate(line, batch)
        if not any(math.isfinite(member.perf) for member in self.population):
            raise self.benchmark_provider.take_no_viable_config_error() or NoConfigFound
        return self._finalize()

    def _evaluate(self, line: Line, batch: Sequence[Asked]) -> None:
        """Measure what is new and promote what was promoted, then tell."""
        new = [asked.member for asked in batch if not asked.member.perfs]
        if new:
            # That none of them runs is no reason to stop, as long as there are others.
            self.benchmark_population(new, raise_if_no_viable_config=False)
            self.population += new
        self._promote([asked for asked in batch if asked.rank > 1 and math.isfinite(asked.member.perf)])
        # What the user's filter drops was neither compiled nor timed.
        self._evaluations += sum(asked.member.status != "filtered" for asked in batch)
        line.tell(batch)
        self.log(f"{self._evaluations} evaluations:", self.statistics)

    def _promote(self, batch: Sequence[Asked]) -> None:
        """Time members more carefully; nothing is above the only fidelity."""

    @property
    def _left(self) -> int:
        return self.max_evaluations - self._evaluations

    @property
    def _seed(self) -> int:
        return self.settings.autotune_random_seed % 2**32

    def _algorithm_cache_policy(self) -> dict[str, object]:
        return {"evotune_version": 1, "max_evaluations": self.max_evaluations, "batch_size": self.batch_size}


class EvoTune(_Search):
    """evotune's search: a screen by Gaussian processes, mutations and crossovers of elites, and chance.

    A model takes part if ``EVOTUNE_LLM_PROVIDER`` says which; that one of its keys is in the environment
    is not enough. Other settings are read from ``EVOTUNE_<SECTION>_<KEY>`` too.
    """

    def __init__(
        self,
        kernel: Any,
        args: Sequence[object],
        *,
        max_evaluations: int = MAX_EVALUATIONS["full"],
        batch_size: int = BATCH_SIZE,
        max_generations: int | None = None,
        finishing_rounds: int = 0,
    ) -> None:
        super().__init__(
            kernel,
            args,
            max_evaluations=max_evaluations,
            batch_size=batch_size,
            max_generations=max_generations,
            finishing_rounds=finishing_rounds,
        )

    @classmethod
    def get_kwargs_from_profile(cls, profile: Any, settings: Any) -> dict[str, object]:
        """What an effort means, for Helion."""
        return {
            "max_evaluations": _most_evaluations(settings),
            **super().get_kwargs_from_profile(profile, settings),
        }

    def _open(self, space: HelionSpace, stack: ExitStack) -> Line:
        # Late: these take a second, and Helion imports this module when it is imported.
        from evotune.asking import choose_model, open_model, open_prompts
        from evotune.proposers.model import Story
        from evotune.session import searcher
        from evotune.settings import load

        chosen = {"run.search": "evotune", "run.seed": self._seed, "run.max_evaluations": self.max_evaluations}
        settings = load(None, chosen, {"EVOTUNE_LLM_PROVIDER": "none", **os.environ})
        choice = choose_model(settings, os.environ, space.space)
        told = self._kernel_metadata
        story = Story(
            told.kernel_name,
            told.kernel_source,
            {"shapes": told.input_shapes, "dtypes": told.dtypes},
            {"name": told.hardware},
        )

        def make_model(islands: Islands) -> ModelProposer | None:
            if choice.provider.name == "none":
                return None
            return open_model(
                settings,
                choice,
                story,
                islands,
                space=space.space,
                prompts=open_prompts(settings),
                run=None,
                stack=stack,
                on_note=self.log,
            )

        search = searcher(space.space, settings, make_model, self.log)
        return Line(space, search, self.make_unbenchmarked)


class MultiFidelityBayesianSearch(_Search):
    """Measures many configurations roughly, and the best of them ever more carefully.

    Helion times a new configuration for 50 ms; this is the low fidelity. A promoted one is timed again by
    Helion's ``rebenchmark``, as many times longer as the fidelity has more repetitions than the low one:
    150 ms, 500 ms and 5 s by default, each time with the others that are promoted, or with the best.

    Args:
        kernel: Helion's ``BoundKernel``.
        args: What it is tuned for.
        n_low_fidelity: Configurations at each fidelity; see :class:`~evotune.proposers.schedule.Schedule`.
        fidelity_low: Repetitions there, in proportion.
        batch_size: Configurations that are compiled together.
        max_generations: Batches at most; None for no limit.
        finishing_rounds: Helion's attempts to make the best configuration simpler.
    """

    def __init__(
        self,
        kernel: Any,
        args: Sequence[object],
        *,
        n_low_fidelity: int = Schedule.n_low_fidelity,
        n_medium_fidelity: int = Schedule.n_medium_fidelity,
        n_high_fidelity: int = Schedule.n_high_fidelity,
        n_ultra_fidelity: int = Schedule.n_ultra_fidelity,
        fidelity_low: int = Schedule.fidelity_low,
        fidelity_medium: int = Schedule.fidelity_medium,
        fidelity_high: int = Schedule.fidelity_high,
        fidelity_ultra: int = Schedule.fidelity_ultra,
        batch_size: int = BATCH_SIZE,
        max_generations: int | None = None,
        finishing_rounds: int = 0,
    ) -> None:
        if fidelity_low < 1:
            raise UsageError(f"fidelity_low = {fidelity_low!r} must be 1 at least")
        numbers = n_low_fidelity, n_medium_fidelity, n_high_fidelity, n_ultra_fidelity
        repetitions = fidelity_low, fidelity_medium, fidelity_high, fidelity_ultra
        self.schedule = Schedule(*numbers, *repetitions)
        super().__init__(
            kernel,
            args,
            max_evaluations=self.schedule.evaluations,
            batch_size=batch_size,
            max_generations=max_generations,
            finishing_rounds=finishing_rounds,
        )
        self._times_longer = [n / fidelity_low for n in repetitions]

    @classmethod
    def get_kwargs_from_profile(cls, profile: Any, settings: Any) -> dict[str, object]:
        """What an effort means, for Helion: the usual schedule, as large as that effort allows."""
        usual = Schedule()
        share = _most_evaluations(settings) / usual.evaluations
        names = ("n_low_fidelity", "n_medium_fidelity", "n_high_fidelity", "n_ultra_fidelity")
        return {
            **{name: round(share * getattr(usual, name)) for name in names},
            **super().get_kwargs_from_profile(profile, settings),
        }

    def _open(self, space: HelionSpace, stack: ExitStack) -> Line:
        # Late: these take a second, and Helion imports this module when it is imported.
        from evotune.proposers import multifidelity

        search: Searcher = multifidelity.MultiFidelityBayesianSearch(
            space.space, self._seed, schedule=self.schedule
        )
        return Line(space, search, self.make_unbenchmarked, [1 / times for times in self._times_longer])

    def _promote(self, batch: Sequence[Asked]) -> None:
        for rank in sorted({asked.rank for asked in batch}):
            members = [asked.member for asked in batch if asked.rank == rank]
            if len(members) == 1:  # Helion times nothing alone
                others = [member for member in self.population if member is not members[0]]
                members.append(min(others, key=performance))
            self.rebenchmark(
                members,
                desc=f"Fidelity {rank}",
                target_ms=FIRST_REP_MS * self._times_longer[rank - 1],
            )

    def _algorithm_cache_policy(self) -> dict[str, object]:
        return {**super()._algorithm_cache_policy(), "schedule": repr(self.schedule)}


def _most_evaluations(settings: Any) -> int:
    # Without any effort nothing is tuned, unless somebody asks for a search outright.
    return MAX_EVALUATIONS.get(settings.autotune_effort, MAX_EVALUATIONS["quick"])


def autotuner(bound_kernel: Any, args: Sequence[object], **options: Any) -> Any:
    """:class:`EvoTune` behind Helion's cache: ``@helion.kernel(autotuner_fn=evotune.helion.autotuner)``.

    Helion's cache knows a result by the kernel, its arguments and the device, not by the search that found it:
    what another search left there is returned, and others will be given what this one finds.
    ``HELION_SKIP_CACHE=1`` searches anew.

    Args:
        bound_kernel: Helion's.
        args: What it is tuned for.
        options: Of :class:`EvoTune`; what is not given follows from ``autotune_effort``.
    """
    settings = bound_kernel.settings
    known = inspect.signature(EvoTune.__init__).parameters
    usual = EvoTune.get_kwargs_from_profile(get_effort_profile(settings.autotune_effort), settings)
    chosen: dict[str, Any] = {**{name: value for name, value in usual.items() if name in known}, **options}

    def search() -> EvoTune:
        return EvoTune(bound_kernel, args, **chosen)

    return cache_classes[settings.autotune_cache](search(), autotuner_factory=search)


# Helion's table of what HELION_AUTOTUNER may name; see evotune.helion.register.
search_algorithms.update(EvoTune=EvoTune, MultiFidelityBayesianSearch=MultiFidelityBayesianSearch)
