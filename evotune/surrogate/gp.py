"""Gaussian-process regression with priors on its hyper-parameters, and a posterior over a pool.

Equation and algorithm numbers are those of Rasmussen & Williams, *Gaussian Processes for Machine
Learning*, 2006 (R&W). Targets are expected to be standardised, features to lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from evotune.space import Array

Profile = Callable[[Array], tuple[Array, Array]]
"""A stationary kernel of the squared scaled distance q: its values and its derivatives by q."""

JITTER = 1e-8
# Logarithms. The least noise is 1 % of the targets' standard deviation: below, the single precision
# of :class:`PoolPosterior` would show.
LENGTH_BOUNDS = (-3.5, 4.0)
SIGNAL_BOUNDS = (-4.0, 4.0)
NOISE_BOUNDS = (-9.0, 0.0)
DECAY_BOUNDS = (-9.0, 2.0)
# What L-BFGS is told where the covariance is not positive definite: worse than anything real.
IMPOSSIBLE = 1e10


def matern52(q: Array) -> tuple[Array, Array]:
    """Matern kernel with nu = 5/2, R&W eq. 4.17."""
    r = np.sqrt(5.0 * q)
    e = np.exp(-r)
    slope = (1.0 + r) * e
    return slope + (5.0 / 3.0) * q * e, (-5.0 / 6.0) * slope


def matern32(q: Array) -> tuple[Array, Array]:
    """Matern kernel with nu = 3/2, R&W eq. 4.17."""
    r = np.sqrt(3.0 * q)
    e = np.exp(-r)
    return (1.0 + r) * e, -1.5 * e


def rbf(q: Array) -> tuple[Array, Array]:
    """Squared exponential kernel, R&W eq. 4.9."""
    k = np.exp(-0.5 * q)
    return k, -0.5 * k


PROFILES: Mapping[str, Profile] = {"matern52": matern52, "matern32": matern32, "rbf": rbf}
"""By the names of ``search.kernel``."""


def squared_distances(a: Array, b: Array, lengths: Array) -> Array:
    """Squared distances between rows of (n, d) and (m, d) in units of length scales (d,), (n, m)."""
    a, b = a / lengths, b / lengths
    q: Array = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * np.matmul(a, np.transpose(b))
    return np.maximum(q, 0.0, out=q)


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters, all as natural logarithms.

    ``lengths`` (d,) in units of the features' ranges; ``signal`` and ``noise`` variances in units of
    the targets'. One fidelity below the top one, correlation falls by ``exp(-exp(decay))``.
    """

    lengths: Array
    signal: float = 0.0
    noise: float = -5.8  # 5 % of the targets' standard deviation
    decay: float = -2.0

    def vector(self) -> Array:
        """All of them, (d + 3,)."""
        return np.concatenate([self.lengths, [self.signal, self.noise, self.decay]])

    @classmethod
    def of(cls, vector: Array) -> Hyper:
        """The inverse of :meth:`vector`."""
        lengths: Array = vector[:-3]
        return cls(lengths, float(vector[-3]), float(vector[-2]), float(vector[-1]))


@dataclass(frozen=True)
class Prior:
    """Independent normal distributions of the logarithms of hyper-parameters."""

    mean: Hyper
    std: Hyper

    @classmethod
    def of(cls, dimensions: int, length: float = 0.6, spread: float = 0.9) -> Prior:
        """Length scales around ``length``, nine in ten within a factor of exp(1.6 ``spread``)."""
        std = Hyper(np.full(dimensions, spread), signal=1.0, noise=1.5, decay=1.0)
        return cls(Hyper(np.full(dimensions, np.log(length))), std)


@dataclass(frozen=True)
class Data:
    """Observations: features (n, d), targets (n,), known noise variances (n,), and how many
    fidelities each lies ``below`` the top one (n,)."""

    x: Array
    y: Array
    variance: Array
    below: Array

    def __len__(self) -> int:
        return len(self.y)


def covariance(data: Data, hyper: Hyper, profile: Profile) -> tuple[Array, Array]:
    """Covariance of the observations without noise, and its derivative by q, each (n, n).

    The product of a kernel of features and one of fidelities (autoregressive: what two fidelities
    share decays with the steps between them).
    """
    k, slope = profile(squared_distances(data.x, data.x, np.exp(hyper.lengths)))
    shared = np.exp(hyper.signal - np.exp(hyper.decay) * _steps(data))
    return k * shared, slope * shared


def objective(vector: Array, data: Data, prior: Prior, profile: Profile) -> tuple[float, Array]:
    """Negative log posterior density of hyper-parameters and its gradient, without constants.

    R&W eq. 2.30 and 5.9, plus the prior's.
    """
    lapack = _scipy("linalg").lapack
    hyper = Hyper.of(vector)
    noise = np.exp(hyper.noise)
    k, slope = covariance(data, hyper, profile)
    noisy = np.array(k)
    noisy[np.diag_indices(len(data))] += noise + data.variance + JITTER
    chol, failed = lapack.dpotrf(noisy, lower=1)
    if failed:
        return IMPOSSIBLE, np.zeros_like(vector)
    alpha = lapack.dpotrs(chol, data.y, lower=1)[0]
    half = np.tril(lapack.dpotri(chol, lower=1)[0])
    inverse = half + np.tril(half, -1).T
    z = (vector - prior.mean.vector()) / prior.std.vector()
    value = 0.5 * (data.y @ alpha) + np.log(np.diag(chol)).sum() + 0.5 * (z @ z)

    by_covariance = 0.5 * (inverse - np.outer(alpha, alpha))
    by_q = by_covariance * slope
    # sum_ij by_q_ij (x_i - x_j)^2 for all features at once, without an (n, n, d) array.
    spread = 2.0 * (by_q.sum(1) @ (data.x**2) - (data.x * (by_q @ data.x)).sum(0))
    by_k = by_covariance * k
    by_decay = -np.exp(hyper.decay) * (by_k * _steps(data)).sum()
    of_likelihood = np.concatenate(
        [-2.0 * np.exp(-2.0 * hyper.lengths) * spread, [by_k.sum(), noise * np.trace(by_covariance), by_decay]]
    )
    return float(value), of_likelihood + z / prior.std.vector()


def fit(data: Data, start: Hyper, prior: Prior, *, profile: Profile = matern52, iterations: int = 25) -> Hyper:
    """Hyper-parameters of greatest posterior density near ``start``, by L-BFGS."""
    bounds = [LENGTH_BOUNDS] * len(start.lengths) + [SIGNAL_BOUNDS, NOISE_BOUNDS, DECAY_BOUNDS]
    found = _scipy("optimize").minimize(
        objective,
        start.vector(),
        (data, prior, profile),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": iterations},
    )
    return Hyper.of(found.x)


class PoolPosterior:
    """What is known at the top fidelity of all rows of a pool, one observation after another.

    R&W eq. 2.25-2.26 by Cholesky factors (algorithm 2.1). With K the noisy covariance of the data,
    K = L L^T, b = L^-1 y and V = L^-1 k(data, pool), the mean is V^T b and the variance that of the
    prior less the column sums of V^2. An observation adds a row to L and V: O(n) per row of the pool.

    V is kept in single precision, for it is large; L, on whose diagonal errors would grow, is not.

    Attributes:
        mean: Posterior mean over the pool, (m,).
        variance: Posterior variance over the pool without noise, (m,).
    """

    def __init__(self, pool: Array, data: Data, hyper: Hyper, profile: Profile = matern52) -> None:
        self._hyper, self._profile = hyper, profile
        self._scaled_pool = (pool / np.exp(hyper.lengths)).astype(np.float32)
        self._pool_norms = (self._scaled_pool**2).sum(1)
        n = len(data)
        noisy, _ = covariance(data, hyper, profile)
        noisy[np.diag_indices(n)] += np.exp(hyper.noise) + data.variance + JITTER
        self._x, self._below = data.x, data.below
        self._chol = np.linalg.cholesky(noisy)
        self._b = _solve_lower(self._chol, data.y)
        self._v = np.empty((2 * n + 16, len(pool)), dtype=np.float32)
        self._v[:n] = _solve_lower(self._chol.astype(np.float32), self._to_pool(data.x, data.below))
        self.mean: Array = self._b.astype(np.float32) @ self._v[:n]
        self.variance: Array = np.float32(np.exp(hyper.signal)) - np.einsum("ij,ij->j", self._v[:n], self._v[:n])

    def __len__(self) -> int:
        return len(self._b)

    def predict(self, x: Array, below: float = 0.0) -> tuple[Array, Array]:
        """Posterior mean and variance of any features (k, d) at one fidelity, each (k,)."""
        v = _solve_lower(self._chol, self._to_data(x, below))
        mean: Array = np.matmul(self._b, v)
        return mean, np.maximum(np.exp(self._hyper.signal) - (v * v).sum(0), JITTER)

    def add(self, x: Array, y: float, variance: float = 0.0, below: float = 0.0) -> None:
        """Condition on one more observation with features (d,)."""
        n = len(self)
        row = _solve_lower(self._chol, self._to_data(x[None], below))[:, 0]
        noise = np.exp(self._hyper.noise) + variance + JITTER
        # Rounding may not make an observation more certain than its noise.
        pivot = np.sqrt(max(np.exp(self._hyper.signal) + noise - row @ row, noise))
        chol = np.zeros((n + 1, n + 1))
        chol[:n, :n], chol[n, :n], chol[n, n] = self._chol, row, pivot
        if n == len(self._v):
            self._v = np.concatenate([self._v, np.empty_like(self._v)])
        k = self._to_pool(x[None], np.array([below]))[0]
        v = (k - row.astype(np.float32) @ self._v[:n]) / np.float32(pivot)
        self._v[n] = v
        b = (y - row @ self._b) / pivot
        self._chol, self._b = chol, np.append(self._b, b)
        self._x, self._below = np.vstack([self._x, x]), np.append(self._below, below)
        self.mean = self.mean + np.float32(b) * v
        self.variance = self.variance - v * v

    def _to_pool(self, x: Array, below: Array) -> Array:
        a = (x / np.exp(self._hyper.lengths)).astype(np.float32)
        q: Array = np.matmul(a, np.transpose(self._scaled_pool))
        q *= -2.0
        q += self._pool_norms
        q += (a * a).sum(1)[:, None]
        k, _ = self._profile(np.maximum(q, 0.0, out=q))
        k *= np.exp(self._hyper.signal - np.exp(self._hyper.decay) * below)[:, None].astype(np.float32)
        return k

    def _to_data(self, x: Array, below: float) -> Array:
        k, _ = self._profile(squared_distances(self._x, x, np.exp(self._hyper.lengths)))
        steps = np.abs(self._below - below)
        return k * np.exp(self._hyper.signal - np.exp(self._hyper.decay) * steps)[:, None]


def _steps(data: Data) -> Array:
    return np.abs(data.below[:, None] - data.below[None, :])


def _solve_lower(chol: Array, b: Array) -> Array:
    return _scipy("linalg").solve_triangular(chol, b, lower=True, check_finite=False)


def _scipy(module: str) -> Any:
    """A part of scipy, imported when it is first needed: `evotune --help` should not wait for it."""
    return import_module(f"scipy.{module}")
