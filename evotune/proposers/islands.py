"""Sub-populations of good programs, kept by OpenEvolve's database.

OpenEvolve is used as a library: its ``ProgramDatabase`` keeps islands, a MAP-Elites grid, an
archive, and migrates. The loop is ours, because ``run_evolution`` hangs with its pool, reports
success on failure and is not reproducible. Four traps are closed here:

- islands are ``set[str]``, so hash order would change a run: they are replaced by ordered sets;
- construction reseeds the global generator and sampling draws from it: its state is put back;
- a failed program would join as score 0.0 and become a parent: failures never enter;
- the default features (length of the code) tell configurations apart by nothing, and the default
  archive of 100 makes exploitation a uniform draw: features are of the configuration, and
  the archive is small.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Generator, Iterable, Iterator, MutableSet, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from evotune.errors import UsageError
from evotune.proposers.base import Feedback, Seeds
from evotune.space import Config, ConfigSpace, Parameter

if TYPE_CHECKING:
    from openevolve.database import Program

FEATURES = ("volume", "parallelism")


class Islands:
    """Elites of several sub-populations, by what was measured.

    Args:
        space: What the programs configure.
        seed: Fixes which elites are drawn.
        count: Sub-populations; few, since a run has few evaluations.
        population_size: Programs kept in all.
        archive_size: Elites from which a parent is drawn when exploiting.
        migration_interval: Programs that join an island between two migrations.

    Raises:
        ImportError: OpenEvolve is not installed.
    """

    def __init__(
        self,
        space: ConfigSpace,
        seed: int,
        *,
        count: int = 2,
        population_size: int = 60,
        archive_size: int = 4,
        migration_interval: int = 10,
        exploration_ratio: float = 0.1,
        exploitation_ratio: float = 0.9,
    ) -> None:
        try:
            from openevolve.config import DatabaseConfig
            from openevolve.database import ProgramDatabase
        except ImportError as error:
            raise ImportError(
                f"OpenEvolve is needed ({error}); install it with: pip install 'openevolve>=0.4,<0.5'"
            ) from None
        # OpenEvolve reports each program at INFO and each empty island as a warning.
        logging.getLogger("openevolve").setLevel(logging.ERROR)
        self.count = count
        self._space = space
        self._seeds = Seeds(seed, "islands")
        config = DatabaseConfig(
            num_islands=count,
            population_size=population_size,
            archive_size=archive_size,
            migration_interval=migration_interval,
            exploration_ratio=exploration_ratio,
            exploitation_ratio=exploitation_ratio,
            feature_dimensions=list(FEATURES),
            feature_bins=8,
            log_prompts=False,
            random_seed=None,
        )
        with _sealed(self._seeds.next()):
            self._database: Any = ProgramDatabase(config)
        self._database.islands = [_OrderedSet(()) for _ in range(count)]
        self._database.archive = _OrderedSet(())
        # Both ends of each feature are known beforehand, so cells never move under old programs.
        self._database.feature_stats = {f: {"min": 0.0, "max": 1.0, "values": [0.0, 1.0]} for f in FEATURES}
        self._reference_loss: float | None = None
        self._trials: dict[str, tuple[int, Config]] = {}
        self._ids: set[str] = set()

    def __len__(self) -> int:
        return len(self._database.programs)

    def island_of(self, number: int) -> int:
        """The island that a trial without a parent belongs to."""
        return number % self.count

    def sample(self, island: int, n: int = 1) -> list[tuple[int, Config]]:
        """A parent and up to ``n`` inspirations of an island, as (trial number, config).

        Empty while the island is empty.
        """
        if not self._database.islands[island]:
            return []
        with _sealed(self._seeds.next()):
            parent, inspirations = self._database.sample_from_island(island, num_inspirations=n)
        return [self._origin_of(p) for p in [parent, *inspirations]]

    def best(self, island: int, n: int) -> list[tuple[int, Config]]:
        """The best ``n`` of an island, best first."""
        found = self._database.get_top_programs(n, metric="combined_score", island_idx=island)
        return [self._origin_of(p) for p in found]

    def tell(self, feedback: Sequence[Feedback]) -> None:
        """Add what was measured; failures never enter an island."""
        self._seeds.tell(len(feedback))
        for item in feedback:
            if item.loss is not None:
                self._add(item, item.loss)

    def _add(self, item: Feedback, loss: float) -> None:
        from openevolve.database import Program

        if self._reference_loss is None:
            self._reference_loss = loss
        # For log latencies this is the speed-up over the first success: positive, as the
        # database's weighted draw needs it. It is bounded so that one outlier is not drawn always.
        score = math.exp(min(max(self._reference_loss - loss, -7.0), 7.0))
        parent = str(item.candidate.parent) if item.candidate.parent is not None else None
        known = parent in self._ids
        program = Program(
            id=str(item.number),
            code=item.candidate.program,
            parent_id=parent if known else None,
            timestamp=float(item.number),
            metrics={"combined_score": score, **self._features(item.config)},
        )
        self._ids.add(program.id)
        self._trials[program.code] = (item.number, item.config)
        island = None if known else self.island_of(item.number)
        with _sealed(self._seeds.next()):
            self._database.add(program, iteration=item.number, target_island=island)
            if "island" in program.metadata:
                self._database.increment_island_generation(program.metadata["island"])
            if self._database.should_migrate():
                self._database.migrate_programs()

    def _features(self, config: Config) -> dict[str, float]:
        """Where a configuration lies on the grid, each in [0, 1]: the mean of its tile-like
        parameters (powers of two), and the mean of its other ordered ones."""
        table = self._space.parameters
        log = [_position(p, config[n]) for n, p in table.items() if p.is_log and len(p.values) > 1]
        other = [_position(p, config[n]) for n, p in table.items() if not p.is_log and len(p.values) > 1]
        return {"volume": float(np.mean(log or [0.5])), "parallelism": float(np.mean(other or [0.5]))}

    def _origin_of(self, program: Program) -> tuple[int, Config]:
        """The trial behind a program, by its text: a migrant is a copy under another id."""
        return self._trials[program.code]


def _position(parameter: Parameter, value: object) -> float:
    index = parameter.index(value)
    if index is None:
        raise UsageError(f"{value!r} is not one of {list(parameter.values)}")
    return index / (len(parameter.values) - 1)


@contextmanager
def _sealed(rng: random.Random) -> Generator[None]:
    """Let code that draws from the global generator draw from ours, and leave no trace."""
    before = random.getstate()
    random.setstate(rng.getstate())
    try:
        yield
    finally:
        random.setstate(before)


class _OrderedSet(MutableSet[str]):
    """A set that iterates in the order of insertion, whatever the hash seed."""

    def __init__(self, items: Iterable[str]) -> None:
        self._items = dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def add(self, value: str) -> None:
        self._items[value] = None

    def discard(self, value: str) -> None:
        self._items.pop(value, None)

    def copy(self) -> _OrderedSet:
        return _OrderedSet(self._items)
