"""Searches from the literature, to compare with and to run: ``evotune run --search pattern``.

Each has the ``ask`` and ``tell`` of :class:`~evotune.proposers.portfolio.Portfolio`, opens with the
space's default, and proposes legal configurations that were not proposed before, so that all of
them spend a budget of evaluations on the same terms.
"""

from collections.abc import Mapping

from evotune.baselines.annealing import SimulatedAnnealing
from evotune.baselines.base import Baseline
from evotune.baselines.differential import DifferentialEvolution
from evotune.baselines.genetic import GeneticAlgorithm
from evotune.baselines.pattern import PatternSearch
from evotune.baselines.uniform import RandomSearch

BASELINES: Mapping[str, type[Baseline]] = {
    "random": RandomSearch,
    "pattern": PatternSearch,
    "de": DifferentialEvolution,
    "genetic": GeneticAlgorithm,
    "annealing": SimulatedAnnealing,
}
"""By the names of ``--search`` and ``--method``; each is called with a space and a seed."""

__all__ = [
    "BASELINES",
    "Baseline",
    "DifferentialEvolution",
    "GeneticAlgorithm",
    "PatternSearch",
    "RandomSearch",
    "SimulatedAnnealing",
]
