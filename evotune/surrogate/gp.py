"""Gaussian-process regression with priors on its hyper-parameters, and a posterior over a pool.

Equation and algorithm numbers are those of Rasmussen & Williams, *Gaussian Processes for Machine
Learning*, 2006 (R&W). Targets are expected to be standardised. Configurations are rows of
indicators, as :meth:`~evotune.surrogate.kernel.Levels.indicate` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from evotune.space import Array
from evotune.surrogate.kernel import Factors, Hyper, Levels, Prior, Profile, matern52

JITTER = 1e-8
# Logarithms. The least noise is 1 % of the targets' standard deviation: below, the single precision
# of :class:`PoolPosterior` would show.
LENGTH_BOUNDS = (-3.5, 4.0)
WEIGHT_BOUNDS = (-6.0, 6.0)
SIGNAL_BOUNDS = (-4.0, 4.0)
NOISE_BOUNDS = (-9.0, 0.0)
DECAY_BOUNDS = (-9.0, 2.0)
# What L-BFGS is told where the covariance is not positive definite: worse than anything real.
IMPOSSIBLE = 1e10


@dataclass(frozen=True)
class Data:
    """Observations: indicators (n, u), targets (n,), known noise variances (n,), how many fidelities
    each lies ``below`` the top one (n,), and values (n, p) of functions of which the target holds
    unknown shares, independently N(0, 1) (R&W section 2.7)."""

    x: Array
    y: Array
    variance: Array
    below: Array
    trend: Array

    def __len__(self) -> int:
        return len(self.y)


def covariance(data: Data, table: Array, hyper: Hyper) -> Array:
    """Covariance of the observations without noise and trend, (n, n).

    The product of a kernel of features and one of fidelities (autoregressive: what two fidelities
    share decays with the steps between them).
    """
    log: Array = np.matmul(data.x @ table, np.transpose(data.x))
    log += hyper.signal - np.exp(hyper.decay) * _steps(data)
    return np.exp(log, out=log)


def objective(vector: Array, data: Data, levels: Levels, prior: Prior, profile: Profile) -> tuple[float, Array]:
    """Negative log posterior density of hyper-parameters and its gradient, without constants.

    R&W eq. 2.30 and 5.9, plus the prior's.
    """
    lapack = _scipy("linalg").lapack
    hyper = Hyper.of(vector)
    noise = np.exp(hyper.noise)
    factors = Factors.of(levels, hyper, profile)
    k = covariance(data, levels.table(factors.log), hyper)
    noisy = k + np.matmul(data.trend, np.transpose(data.trend))
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
    by_log = by_covariance * k
    # Summed over the observations at each pair of levels: no (n, n, d) array.
    pairs = levels.pairs
    by_pair = np.matmul(np.transpose(data.x), by_log @ data.x)[pairs.rows, pairs.columns]
    by_length = np.bincount(pairs.feature, by_pair * factors.by_length, levels.dimensions)
    by_weight = np.bincount(pairs.feature, by_pair * factors.by_weight, levels.dimensions)
    by_decay = -np.exp(hyper.decay) * (by_log * _steps(data)).sum()
    others = [by_log.sum(), noise * np.trace(by_covariance), by_decay]
    return float(value), np.concatenate([by_length, by_weight, others]) + z / prior.std.vector()


def fit(
    data: Data,
    levels: Levels,
    start: Hyper,
    prior: Prior,
    *,
    profile: Profile = matern52,
    iterations: int = 25,
) -> Hyper:
    """Hyper-parameters of greatest posterior density near ``start``, by L-BFGS."""
    d = levels.dimensions
    bounds = [LENGTH_BOUNDS] * d + [WEIGHT_BOUNDS] * d + [SIGNAL_BOUNDS, NOISE_BOUNDS, DECAY_BOUNDS]
    found = _scipy("optimize").minimize(
        objective,
        start.vector(),
        (data, levels, prior, profile),
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

    def __init__(
        self,
        pool: Array,
        pool_trend: Array,
        data: Data,
        levels: Levels,
        hyper: Hyper,
        profile: Profile = matern52,
    ) -> None:
        self._pool, self._pool_trend, self._hyper = pool, pool_trend.astype(np.float32), hyper
        self._table = levels.table(Factors.of(levels, hyper, profile).log)
        n = len(data)
        noisy = covariance(data, self._table, hyper) + np.matmul(data.trend, np.transpose(data.trend))
        noisy[np.diag_indices(n)] += np.exp(hyper.noise) + data.variance + JITTER
        self._below, self._trend = data.below, data.trend
        self._log_of_levels: Array = np.matmul(data.x, self._table)
        self._chol: Array = np.linalg.cholesky(noisy)
        self._b = _solve_lower(self._chol, data.y)
        self._v = np.empty((2 * n + 16, len(pool)), dtype=np.float32)
        self._v[:n] = _solve_lower(
            self._chol.astype(np.float32), self._to_pool(self._log_of_levels, data.below, data.trend)
        )
        self.mean: Array = self._b.astype(np.float32) @ self._v[:n]
        prior: Array = np.float32(np.exp(hyper.signal)) + (self._pool_trend**2).sum(1)
        self.variance: Array = prior - np.einsum("ij,ij->j", self._v[:n], self._v[:n])

    def __len__(self) -> int:
        return len(self._b)

    def focus(self, rows: Array) -> None:
        """Forget all rows of the pool but these, which are numbered anew in their order."""
        self._pool, self._pool_trend = self._pool[rows], self._pool_trend[rows]
        self.mean, self.variance = self.mean[rows], self.variance[rows]
        kept = np.empty((len(self._v), len(rows)), dtype=np.float32)
        kept[: len(self)] = self._v[: len(self), rows]
        self._v = kept

    def predict(self, x: Array, trend: Array, below: float = 0.0) -> tuple[Array, Array]:
        """Posterior mean and variance of any rows (k, u) with trends (k, p) at one fidelity, each (k,)."""
        v = _solve_lower(self._chol, self._to_data(x, trend, below))
        mean: Array = np.matmul(self._b, v)
        prior: Array = np.exp(self._hyper.signal) + (trend**2).sum(1)
        return mean, np.maximum(prior - (v * v).sum(0), JITTER)

    def add(self, x: Array, trend: Array, y: float, variance: float = 0.0, below: float = 0.0) -> None:
        """Condition on one more observation, with indicators (u,) and trends (p,)."""
        n = len(self)
        row = _solve_lower(self._chol, self._to_data(x[None], trend[None], below))[:, 0]
        noise = np.exp(self._hyper.noise) + variance + JITTER
        # Rounding may not make an observation more certain than its noise.
        prior = np.exp(self._hyper.signal) + trend @ trend
        pivot = np.sqrt(max(prior + noise - row @ row, noise))
        chol = np.zeros((n + 1, n + 1))
        chol[:n, :n], chol[n, :n], chol[n, n] = self._chol, row, pivot
        if n == len(self._v):
            self._v = np.concatenate([self._v, np.empty_like(self._v)])
        log_of_levels = np.matmul(x[None], self._table)
        k = self._to_pool(log_of_levels, np.array([below]), trend[None])[0]
        v = (k - row.astype(np.float32) @ self._v[:n]) / np.float32(pivot)
        self._v[n] = v
        b = (y - row @ self._b) / pivot
        self._chol, self._b = chol, np.append(self._b, b)
        self._log_of_levels = np.vstack([self._log_of_levels, log_of_levels])
        self._below = np.append(self._below, below)
        self._trend = np.vstack([self._trend, trend])
        self.mean = self.mean + np.float32(b) * v
        self.variance = self.variance - v * v

    def imagine(self, x: Array, trend: Array) -> None:
        """Condition on k observations at the top fidelity that are what is expected of them, with indicators
        (k, u) and trends (k, p): the mean stays, and doubt falls (Ginsbourger, Le Riche & Carraro 2010).

        One block instead of k rows, as dozens are in flight where many devices measure.
        """
        n, k = len(self), len(x)
        log_of_levels = np.matmul(x, self._table)
        rows = _solve_lower(self._chol, self._to_data(x, trend, 0.0))
        own: Array = np.exp(np.matmul(log_of_levels, np.transpose(x)) + self._hyper.signal)
        own += np.matmul(trend, np.transpose(trend)) - np.matmul(np.transpose(rows), rows)
        own[np.diag_indices(k)] += np.exp(self._hyper.noise) + JITTER
        pivots: Array = np.linalg.cholesky(own)
        chol = np.zeros((n + k, n + k))
        chol[:n, :n], chol[n:, :n], chol[n:, n:] = self._chol, np.transpose(rows), pivots
        self._chol = chol
        if n + k > len(self._v):
            self._v = np.concatenate([self._v, np.empty((n + k, len(self.mean)), dtype=np.float32)])
        left = self._to_pool(log_of_levels, np.zeros(k), trend)
        left -= np.matmul(np.transpose(rows).astype(np.float32), self._v[:n])
        v = _solve_lower(pivots.astype(np.float32), left)
        self._v[n : n + k] = v
        self._b = np.append(self._b, np.zeros(k))
        self._log_of_levels = np.vstack([self._log_of_levels, log_of_levels])
        self._below = np.append(self._below, np.zeros(k))
        self._trend = np.vstack([self._trend, trend])
        self.variance = self.variance - (v * v).sum(0)

    def _to_pool(self, log_of_levels: Array, below: Array, trend: Array) -> Array:
        log: Array = np.matmul(log_of_levels.astype(np.float32), np.transpose(self._pool))
        log += (self._hyper.signal - np.exp(self._hyper.decay) * below)[:, None].astype(np.float32)
        k: Array = np.exp(log, out=log)
        if trend.size:
            k += np.matmul(trend.astype(np.float32), np.transpose(self._pool_trend))
        return k

    def _to_data(self, x: Array, trend: Array, below: float) -> Array:
        log: Array = np.matmul(self._log_of_levels, np.transpose(x))
        steps = np.abs(self._below - below)
        log += (self._hyper.signal - np.exp(self._hyper.decay) * steps)[:, None]
        k: Array = np.exp(log, out=log)
        return k + np.matmul(self._trend, np.transpose(trend))


def _steps(data: Data) -> Array:
    return np.abs(data.below[:, None] - data.below[None, :])


def _solve_lower(chol: Any, b: Any) -> Array:
    return _scipy("linalg").solve_triangular(chol, b, lower=True, check_finite=False)


def _scipy(module: str) -> Any:
    """A part of scipy, imported when it is first needed: `evotune --help` should not wait for it."""
    return import_module(f"scipy.{module}")
