"""How a multi-fidelity search divides its budget: many rough measurements, few careful ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evotune.errors import UsageError

# Shares that give the default schedule's 20 random and 10 guided, 8 promoted and 5 new, 5 promoted and 3
# new, and that the presets and settings of other sizes follow. At the highest fidelity all are promoted.
RANDOM_SHARE = 2 / 3
PROMOTED_SHARE = 5 / 8


@dataclass(frozen=True)
class Phase:
    """What is to be measured at one fidelity: configurations ``promoted`` from below, then new ones,
    first ``random`` and then ``guided`` by the surrogate."""

    rank: int
    promoted: int
    random: int
    guided: int


@dataclass(frozen=True)
class Schedule:
    """How many configurations are measured at each fidelity, and with how many repetitions.

    The names are those of the settings; a configuration that is promoted counts at each fidelity.
    """

    n_low_fidelity: int = 30
    n_medium_fidelity: int = 13
    n_high_fidelity: int = 8
    n_ultra_fidelity: int = 3
    fidelity_low: int = 5
    fidelity_medium: int = 15
    fidelity_high: int = 50
    fidelity_ultra: int = 500

    def __post_init__(self) -> None:
        repetitions = [self.fidelity_low, self.fidelity_medium, self.fidelity_high, self.fidelity_ultra]
        if repetitions != sorted(repetitions):
            raise UsageError(f"repetitions of low, medium, high and ultra must not fall, found {repetitions}")

    @classmethod
    def of(cls, preset: str, **changes: int | None) -> Schedule:
        """A preset with some numbers changed; those that are None are the preset's."""
        return replace(PRESETS[preset], **{name: n for name, n in changes.items() if n is not None})

    @property
    def evaluations(self) -> int:
        """Measurements in all, each of one configuration at one fidelity."""
        return sum(self._numbers)

    def fitted(self, budget: int) -> Schedule:
        """The schedule in proportion to a budget that is too small for it; itself if it is not."""
        if budget >= self.evaluations:
            return self
        medium, high, ultra = (round(n * budget / self.evaluations) for n in self._numbers[1:])
        low = max(1, budget - medium - high - ultra)
        return replace(
            self, n_low_fidelity=low, n_medium_fidelity=medium, n_high_fidelity=high, n_ultra_fidelity=ultra
        )

    def phases(self, ranks: Sequence[int]) -> list[Phase]:
        """One phase for each fidelity of a ladder, given by its rising ``ranks``.

        What is wanted at a fidelity that the ladder lacks is done at the next higher one, or at its
        highest. Promotion within one fidelity is free: its result is known.
        """
        found: dict[int, Phase] = {}
        for wanted, n in enumerate(self._numbers, start=1):  # ranks of Fidelity: 0 is static
            rank = next((r for r in ranks if r >= wanted), ranks[-1])
            promoted = {1: 0, 4: n}.get(wanted, round(PROMOTED_SHARE * n))
            random = round(RANDOM_SHARE * n) if wanted == 1 else 0
            before = found.get(rank, Phase(rank, 0, 0, 0))
            found[rank] = Phase(
                rank,
                max(before.promoted, promoted),
                before.random + random,
                before.guided + n - promoted - random,
            )
        return list(found.values())

    @property
    def _numbers(self) -> tuple[int, int, int, int]:
        return self.n_low_fidelity, self.n_medium_fidelity, self.n_high_fidelity, self.n_ultra_fidelity


PRESETS: Mapping[str, Schedule] = {
    "default": Schedule(),
    # Of the study that introduced the search for Helion's kernels; its repeat took 50 at the end.
    "study": Schedule(600, 300, 80, 20, fidelity_ultra=50),
}
"""By the names of ``mfbo.preset``."""
