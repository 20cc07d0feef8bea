"""How likely a configuration is to compile and run, judged by those tried near it."""

from __future__ import annotations

import numpy as np

from evotune.space import Array
from evotune.surrogate.gp import Data, Prior, fit, matern52, squared_distances

# What is believed far from everything that was tried, and how many trials that belief is worth.
# Recorded spaces run in 79-100 % of their legal configurations.
PRIOR_SHARE = 0.9
PRIOR_TRIALS = 0.5
ITERATIONS = 20


class Feasibility:
    """Share of successes among the tried, weighted by a kernel (Nadaraya 1964, Watson 1964).

    The kernel's length scales are those of a Gaussian process of the outcomes: what decides whether
    a configuration runs is not what decides how fast. That process itself is not used to predict:
    it strays beyond 0 and 1, and forgets all failures at some distance.

    Args:
        pool: Features (m, d) to know it for.
        x: Features (n, d) of what was tried.
        ok: Which of them ran, (n,).
        prior: Of the length scales.
    """

    def __init__(self, pool: Array, x: Array, ok: Array, prior: Prior) -> None:
        self._pool, self._x, self._ok = pool.astype(np.float32), x, ok.astype(float)
        n, outcome = len(x), (self._ok - self._ok.mean()) / (self._ok.std() or 1.0)
        data = Data(x, outcome, np.zeros(n), np.zeros(n))
        self._lengths = np.exp(fit(data, prior.mean, prior, iterations=ITERATIONS).lengths)
        near = self._near(self._pool, x)
        self._tried, self._ran = near.sum(1), near @ self._ok.astype(np.float32)

    @property
    def over_pool(self) -> Array:
        """Probability of running for all rows of the pool, (m,), in (0, 1)."""
        return _share(self._ran, self._tried)

    def add(self, x: Array, ok: bool) -> None:
        """One more was tried, with features (d,)."""
        near = self._near(self._pool, x[None])[:, 0]
        self._tried, self._ran = self._tried + near, self._ran + near * float(ok)
        self._x, self._ok = np.vstack([self._x, x]), np.append(self._ok, float(ok))

    def at(self, x: Array) -> Array:
        """Probability of running for any features (k, d), (k,)."""
        near = self._near(x, self._x)
        return _share(near @ self._ok, near.sum(1))

    def _near(self, a: Array, b: Array) -> Array:
        lengths = self._lengths.astype(a.dtype)
        return matern52(squared_distances(a, b.astype(a.dtype), lengths))[0]


def _share(ran: Array, tried: Array) -> Array:
    return (PRIOR_TRIALS * PRIOR_SHARE + ran) / (PRIOR_TRIALS + tried)
