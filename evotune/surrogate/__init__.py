"""Gaussian processes over the pool of legal configurations: what to measure next."""

from evotune.surrogate.model import Surrogate

__all__ = ["Surrogate"]
