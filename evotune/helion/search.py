"""Helion's own searches behind ``ask`` and ``tell``, unmodified and with their full effort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from evotune.baselines.base import Move
from evotune.baselines.handover import Handover
from evotune.space import ConfigSpace


@dataclass(frozen=True)
class HelionAlgorithm:
    """A search by Helion's name, and how it is shown ordered parameters."""

    name: str
    in_steps: bool
    """See :mod:`evotune.helion.fragments`; what serves the search better on recordings."""


ALGORITHMS: Mapping[str, HelionAlgorithm] = {
    "pattern": HelionAlgorithm("PatternSearch", in_steps=True),
    "lfbo-pattern": HelionAlgorithm("LFBOPatternSearch", in_steps=False),
    "lfbo-tree": HelionAlgorithm("LFBOTreeSearch", in_steps=False),
    "de": HelionAlgorithm("DifferentialEvolutionSearch", in_steps=True),
    "random": HelionAlgorithm("RandomSearch", in_steps=True),
}
"""By our names."""


class HelionSearch(Handover):
    """One of Helion's searches with Helion's defaults.

    It starts with the space's default, as it does with a kernel's. It ends when Helion's search ends,
    which may be before a budget is spent: :meth:`ask` then returns None.
    """

    def __init__(self, space: ConfigSpace, seed: int, algorithm: HelionAlgorithm) -> None:
        super().__init__(space, seed)
        self._algorithm = algorithm

    def _search(self) -> None:
        fragments: Any = import_module("evotune.helion.fragments")
        adapter: Any = import_module("evotune.helion.adapter")
        seen = fragments.Fragments(self._space, in_steps=self._algorithm.in_steps)
        try:
            adapter.run(self._algorithm.name, self._space, seen, self._seed, self._evaluate)
        except AssertionError:  # what RandomSearch ends with when nothing ran
            if any(loss is not None for loss in self._known.values()):
                raise

    def _anything(self) -> Move | None:
        return None if self._ended else super()._anything()
