"""What trials near a configuration tell: how likely it is to run, and what evaluating it costs."""

from __future__ import annotations

import numpy as np

from evotune.space import Array
from evotune.surrogate.gp import Data, fit
from evotune.surrogate.kernel import Factors, Levels, Prior, matern52

# What is believed of running far from everything that was tried, and how many trials any such belief
# is worth. Recorded spaces run in 79-100 % of their legal configurations.
PRIOR_SHARE = 0.9
PRIOR_TRIALS = 0.5
ITERATIONS = 8


class Nearby:
    """Mean outcome of trials, weighted by a kernel (Nadaraya 1964, Watson 1964).

    The kernel is that of a Gaussian process of the outcomes: what decides whether a configuration
    runs, or how long it compiles, is not what decides how fast it is. That process itself is not
    used to predict: it strays beyond the outcomes seen, and forgets all failures at some distance.

    Args:
        pool: Indicators (m, u) of what to know it for.
        x: Indicators (n, u) of what was tried.
        outcome: What came of it, (n,).
        levels: Of the features.
    """

    def __init__(self, pool: Array, x: Array, outcome: Array, levels: Levels) -> None:
        self._pool, self._x, self._outcome = pool, x, outcome.astype(float)
        n, standard = len(x), (self._outcome - self._outcome.mean()) / (self._outcome.std() or 1.0)
        data = Data(x, standard, np.zeros(n), np.zeros(n), np.empty((n, 0)))
        prior = Prior.local(levels.dimensions)
        hyper = fit(data, levels, prior.mean, prior, iterations=ITERATIONS)
        self._table = levels.table(Factors.of(levels, hyper, matern52).log)
        near = self._near(self._pool, x)
        self._weight, self._sum = near.sum(1), near @ self._outcome.astype(np.float32)

    def over_pool(self, believed: Array | float) -> Array:
        """Expected outcome for all rows of the pool, (m,); what is ``believed`` far from all trials."""
        return _mean(self._sum, self._weight, believed)

    def focus(self, rows: Array) -> None:
        """Forget all rows of the pool but these, which are numbered anew in their order."""
        self._pool, self._weight, self._sum = self._pool[rows], self._weight[rows], self._sum[rows]

    def add(self, x: Array, outcome: float) -> None:
        """One more was tried, with indicators (u,)."""
        near = self._near(self._pool, x[None])[:, 0]
        self._weight, self._sum = self._weight + near, self._sum + near * np.float32(outcome)
        self._x, self._outcome = np.vstack([self._x, x]), np.append(self._outcome, outcome)

    def at(self, x: Array, believed: Array | float) -> Array:
        """:meth:`over_pool` for any indicators (k, u), (k,)."""
        near = self._near(x, self._x)
        return _mean(near @ self._outcome, near.sum(1), believed)

    def _near(self, a: Array, b: Array) -> Array:
        log: Array = a @ np.transpose((b @ self._table).astype(a.dtype))
        return np.exp(log, out=log)


def _mean(total: Array, weight: Array, believed: Array | float) -> Array:
    return (PRIOR_TRIALS * believed + total) / (PRIOR_TRIALS + weight)
