"""Helion and evotune: our searches for Helion's kernels, and Helion's own as peers of ours.

With Helion installed there are three ways to tune one of its kernels::

    @helion.kernel(autotuner_fn=evotune.helion.autotuner)

    import evotune.helion  # before or after helion; then HELION_AUTOTUNER=EvoTune is known to it

    config = evotune.helion.MultiFidelityBayesianSearch(kernel.bind(args), args).autotune()

Without this import, Helion says ``Unknown HELION_AUTOTUNER value: EvoTune`` and lists its own.

Helion and torch are imported when a search is asked for, so that ``import evotune.helion`` needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evotune.helion.register import register
from evotune.helion.search import ALGORITHMS, HelionAlgorithm, HelionSearch

if TYPE_CHECKING:
    from evotune.helion.plugin import EvoTune, MultiFidelityBayesianSearch, autotuner
    from evotune.helion.space import HelionSpace

__all__ = [
    "ALGORITHMS",
    "EvoTune",
    "HelionAlgorithm",
    "HelionSearch",
    "HelionSpace",
    "MultiFidelityBayesianSearch",
    "autotuner",
]

_LATE = {
    "EvoTune": "evotune.helion.plugin",
    "HelionSpace": "evotune.helion.space",
    "MultiFidelityBayesianSearch": "evotune.helion.plugin",
    "autotuner": "evotune.helion.plugin",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


register()
