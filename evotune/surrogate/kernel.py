"""The covariance of configurations: a product over features of one plus a kernel of that feature.

    k(x, x') = prod_d (1 + w_d c_d(x_d, x'_d)) / (1 + w_d)

Multiplied out, this is a sum over all sets of features of the products of their kernels, weighted
by w (an analysis of variance: Stitson et al. 1999; Duvenaud, Nickisch & Rasmussen 2011). Effects of
single features are learned from tens of observations, where a kernel of the distance in all
features at once would see nothing near; interactions are learned as far as they are there.

A feature has few levels, so its kernel is a table of them, the logarithm of a product is a sum, and
the covariance of many rows is ``exp(A T B')``, with rows as indicators of levels and T the tables
along a diagonal: matrix products, whatever the number of features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evotune.space import Array

Profile = Callable[[Array], tuple[Array, Array]]
"""A stationary kernel of the squared scaled distance q: its values and its derivatives by q.

Equation numbers are those of Rasmussen & Williams, *Gaussian Processes for Machine Learning*, 2006.
"""


def matern52(q: Array) -> tuple[Array, Array]:
    """Matern kernel with nu = 5/2, eq. 4.17."""
    r = np.sqrt(5.0 * q)
    e = np.exp(-r)
    slope = (1.0 + r) * e
    return slope + (5.0 / 3.0) * q * e, (-5.0 / 6.0) * slope


def matern32(q: Array) -> tuple[Array, Array]:
    """Matern kernel with nu = 3/2, eq. 4.17."""
    r = np.sqrt(3.0 * q)
    e = np.exp(-r)
    return (1.0 + r) * e, -1.5 * e


def rbf(q: Array) -> tuple[Array, Array]:
    """Squared exponential kernel, eq. 4.9."""
    k = np.exp(-0.5 * q)
    return k, -0.5 * k


PROFILES: Mapping[str, Profile] = {"matern52": matern52, "matern32": matern32, "rbf": rbf}
"""By the names of ``search.kernel``."""


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters, all as natural logarithms.

    ``lengths`` (d,) in units of the features' ranges, ``weights`` (d,) as w above; ``signal`` and
    ``noise`` variances in units of the targets'. One fidelity below the top one, correlation falls
    by ``exp(-exp(decay))``.
    """

    lengths: Array
    weights: Array
    signal: float = 0.0
    noise: float = -5.8  # 5 % of the targets' standard deviation
    decay: float = -2.0

    def vector(self) -> Array:
        """All of them, (2 d + 3,)."""
        return np.concatenate([self.lengths, self.weights, [self.signal, self.noise, self.decay]])

    @classmethod
    def of(cls, vector: Array) -> Hyper:
        """The inverse of :meth:`vector`."""
        lengths, weights = np.split(vector[:-3], 2)
        return cls(lengths, weights, float(vector[-3]), float(vector[-2]), float(vector[-1]))


@dataclass(frozen=True)
class Prior:
    """Independent normal distributions of the logarithms of hyper-parameters."""

    mean: Hyper
    std: Hyper

    @classmethod
    def additive(cls, dimensions: int) -> Prior:
        """Mostly effects of single features, until the observations say otherwise."""
        mean = Hyper(np.full(dimensions, np.log(0.6)), np.full(dimensions, np.log(0.3)))
        return cls(mean, Hyper(np.full(dimensions, 0.5), np.full(dimensions, 1.0), 1.0, 1.5, 1.0))

    @classmethod
    def local(cls, dimensions: int, length: float = 0.6, spread: float = 0.9) -> Prior:
        """What is learned somewhere holds nearby only: all weights are large, so that the kernel is
        the product of the features' kernels. Nine in ten length scales are within a factor of
        exp(1.6 ``spread``) of ``length``."""
        mean = Hyper(np.full(dimensions, np.log(length)), np.full(dimensions, np.log(50.0)))
        return cls(mean, Hyper(np.full(dimensions, spread), np.full(dimensions, 0.05), 1.0, 1.5, 1.0))


@dataclass(frozen=True)
class Levels:
    """The values that each feature takes, (u_d,) each; u is the number of all of them."""

    values: Sequence[Array]

    @property
    def dimensions(self) -> int:
        """Number of features."""
        return len(self.values)

    @cached_property
    def starts(self) -> Array:
        """Where each feature's levels begin among all, (d + 1,); the last is their number."""
        return np.cumsum([0, *(len(v) for v in self.values)])

    def indicate(self, x: Array) -> Array:
        """Rows of features (n, d) as indicators of the nearest levels, (n, u), in single precision."""
        out = np.zeros((len(x), self.starts[-1]), dtype=np.float32)
        rows = np.arange(len(x))
        for column, values, start in zip(np.transpose(x), self.values, self.starts, strict=False):
            between = (values[1:] + values[:-1]) / 2.0
            out[rows, start + np.searchsorted(between, column)] = 1.0
        return out

    def table(self, entries: Array) -> Array:
        """Entries for all pairs of levels of each feature as a block diagonal matrix, (u, u)."""
        out = np.zeros((self.starts[-1], self.starts[-1]))
        out[self.pairs.rows, self.pairs.columns] = entries
        return out

    @cached_property
    def pairs(self) -> Pairs:
        """All pairs of levels of one feature, in the order of the features."""
        found: list[Array] = []
        for j, (values, start) in enumerate(zip(self.values, self.starts, strict=False)):
            a, b = np.indices((len(values), len(values))).reshape(2, -1)
            found.append(np.array([start + a, start + b, np.full(len(a), j), (values[a] - values[b]) ** 2]))
        rows, columns, feature, squared = np.concatenate(found, axis=1)
        return Pairs(rows.astype(int), columns.astype(int), feature.astype(int), squared)


@dataclass(frozen=True)
class Pairs:
    """Pairs of levels: their places among all levels, whose they are, and their squared distance."""

    rows: Array
    columns: Array
    feature: Array
    squared: Array


@dataclass(frozen=True)
class Factors:
    """The logarithm of each feature's factor for its pairs of levels, and its derivatives by the
    logarithms of that feature's length scale and weight."""

    log: Array
    by_length: Array
    by_weight: Array

    @classmethod
    def of(cls, levels: Levels, hyper: Hyper, profile: Profile) -> Factors:
        """Of given hyper-parameters."""
        pairs = levels.pairs
        q = pairs.squared * np.exp(-2.0 * hyper.lengths)[pairs.feature]
        weight = np.exp(hyper.weights)[pairs.feature]
        c, slope = profile(q)
        factor = 1.0 + weight * c
        return cls(
            np.log(factor) - np.log1p(weight),
            -2.0 * weight * q * slope / factor,
            weight * c / factor - weight / (1.0 + weight),
        )
