"""Gaussian processes over the pool of legal configurations: what to measure next."""

from evotune.surrogate.gp import PROFILES
from evotune.surrogate.model import Surrogate

__all__ = ["PROFILES", "Surrogate"]
