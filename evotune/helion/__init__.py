"""Helion and evotune: Helion's own searches as peers of ours.

Helion and torch are imported when a search starts, so that ``import evotune.helion`` needs neither.
"""

from evotune.helion.search import ALGORITHMS, HelionAlgorithm, HelionSearch

__all__ = ["ALGORITHMS", "HelionAlgorithm", "HelionSearch"]
