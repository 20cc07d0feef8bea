"""Tune GPU kernels with evolving programs, a Gaussian-process screen, and timings you can trust."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evotune.lookup_table import lookup
    from evotune.openevolve_tuner import OpenEvolveTuner
    from evotune.proposers.multifidelity import MultiFidelityBayesianSearch
    from evotune.result import Result
    from evotune.run_function import run
    from evotune.space import ConfigSpace, Parameter
    from evotune.tune_function import Tuned, tune

__version__ = "0.1.0"

# Imported when first used: `evotune --help` and `import evotune` must not wait for numpy.
_LAZY = {
    "ConfigSpace": "evotune.space",
    "MultiFidelityBayesianSearch": "evotune.proposers.multifidelity",
    "OpenEvolveTuner": "evotune.openevolve_tuner",
    "Parameter": "evotune.space",
    "Result": "evotune.result",
    "Tuned": "evotune.tune_function",
    "lookup": "evotune.lookup_table",
    "run": "evotune.run_function",
    "tune": "evotune.tune_function",
}

__all__ = [
    "ConfigSpace",
    "MultiFidelityBayesianSearch",
    "OpenEvolveTuner",
    "Parameter",
    "Result",
    "Tuned",
    "__version__",
    "lookup",
    "run",
    "tune",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'evotune' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
