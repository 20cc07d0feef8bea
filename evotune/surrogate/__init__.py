"""Gaussian processes over the pool of legal configurations: what to measure next."""

from evotune.surrogate.acquisition import ACQUISITIONS
from evotune.surrogate.kernel import PROFILES
from evotune.surrogate.model import Surrogate
from evotune.surrogate.source import Source

__all__ = ["ACQUISITIONS", "PROFILES", "Source", "Surrogate"]
