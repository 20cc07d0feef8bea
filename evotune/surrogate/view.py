"""One way of looking at the space: an encoding, a prior, and what they make of the observations."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from evotune.space import Array
from evotune.surrogate.acquisition import Acquisition, weigh
from evotune.surrogate.feasibility import Feasibility
from evotune.surrogate.features import Encoding
from evotune.surrogate.gp import Data, Hyper, PoolPosterior, Prior, Profile, fit
from evotune.surrogate.pool import Pool

FIRST_ITERATIONS = 40
ITERATIONS = 20
LEAST_STD = 1e-4


@dataclass(frozen=True)
class Warp:
    """Losses as standardised targets, with those worse than the mean drawn in logarithmically.

    How bad the bad ones are is of no use to the search, but would govern the fit.
    """

    centre: float
    width: float

    @classmethod
    def of(cls, losses: Array) -> Warp:
        """The warp that standardises these losses."""
        return cls(float(losses.mean()), float(losses.std()) or 1.0)

    def __call__(self, loss: Array) -> Array:
        """Targets of losses."""
        z = (loss - self.centre) / self.width
        return np.where(z > 0, np.log1p(np.maximum(z, 0.0)), z)

    def variance(self, target: Array, variance: Array) -> Array:
        """A loss's variance in units of targets, to first order."""
        return variance * (np.exp(-np.maximum(target, 0.0)) / self.width) ** 2

    def inverse(self, target: Array, std: Array) -> tuple[Array, Array]:
        """Losses of targets, and their standard deviations to first order."""
        z = np.where(target > 0, np.expm1(np.maximum(target, 0.0)), target)
        return self.centre + self.width * z, self.width * np.exp(np.maximum(target, 0.0)) * std


@dataclass(frozen=True)
class Seen:
    """Observations up to now: value positions (n, d), losses (n,) with nan for failures, variances
    of losses (n,), and fidelities below the top one (n,)."""

    keys: Array
    loss: Array
    variance: Array
    below: Array


class View:
    """A Gaussian process over one encoding, and a posterior over the pool while the fit stands."""

    def __init__(self, encoding: Encoding, prior: Prior, profile: Profile) -> None:
        self._encoding, self._prior, self._profile = encoding, prior, profile
        self._hyper: Hyper | None = None
        self._pool: Pool | None = None

    def refit(self, pool: Pool, seen: Seen) -> None:
        """Learn hyper-parameters from everything seen, beginning at the last ones."""
        if pool is not self._pool:
            self._pool, self._features = pool, self._encoding(pool.keys)
        ok = np.isfinite(seen.loss)
        x = self._encoding(seen.keys)
        self.warp = Warp.of(seen.loss[ok])
        y = self.warp(seen.loss[ok])
        data = Data(x[ok], y, self.warp.variance(y, seen.variance[ok]), seen.below[ok])
        start, iterations = (self._hyper, ITERATIONS) if self._hyper else (self._prior.mean, FIRST_ITERATIONS)
        self._hyper = fit(data, start, self._prior, profile=self._profile, iterations=iterations)
        self._posterior = PoolPosterior(self._features, data, self._hyper, self._profile)
        self._feasibility = None
        if not ok.all():
            self._feasibility = Feasibility(self._features, x, ok, self._prior)

    def add(self, seen: Seen) -> None:
        """Condition on the last observation, keeping the hyper-parameters."""
        assert self._hyper is not None
        x, loss = self._encoding(seen.keys[-1:])[0], seen.loss[-1:]
        ok = bool(np.isfinite(loss[0]))
        if ok:
            y = self.warp(loss)
            variance = self.warp.variance(y, seen.variance[-1:])
            self._posterior.add(x, float(y[0]), float(variance[0]), float(seen.below[-1]))
        if self._feasibility is not None:
            self._feasibility.add(x, ok)
        elif not ok:
            known = np.isfinite(seen.loss)
            self._feasibility = Feasibility(self._features, self._encoding(seen.keys), known, self._prior)

    def predict(self, keys: Array, below: float = 0.0) -> tuple[Array, Array]:
        """Posterior mean and standard deviation of the target at rows of value positions, each (k,)."""
        mean, variance = self._posterior.predict(self._encoding(keys), below)
        return mean, np.sqrt(variance)

    def best(self, keys: Array) -> float:
        """Least posterior mean of the target among these; not the least observed, which had luck."""
        assert self._pool is not None
        rows = [self._pool.row(tuple(k)) for k in keys.tolist()]
        inside = [r for r in rows if r is not None]
        outside = keys[[r is None for r in rows]]
        means = [self._posterior.mean[inside]] + ([self.predict(outside)[0]] if len(outside) else [])
        return float(np.concatenate(means).min())

    def utility(self, keys: Array, best: float, acquisition: Acquisition) -> Array:
        """Log utility of measuring rows of value positions, (k,)."""
        utility = acquisition(*self.predict(keys), best)
        return utility if self._feasibility is None else weigh(utility, self._feasibility.at(self._encoding(keys)))

    def pool_utility(self, best: float, acquisition: Acquisition) -> Array:
        """Log utility of measuring each row of the pool, (m,)."""
        mean, variance = (a.astype(float) for a in (self._posterior.mean, self._posterior.variance))
        utility = acquisition(mean, np.sqrt(np.maximum(variance, LEAST_STD**2)), best)
        return utility if self._feasibility is None else weigh(utility, self._feasibility.over_pool.astype(float))

    def imagining(self, keys: Array) -> View:
        """A copy that has seen its own predictions come true there, and looks elsewhere next.

        It is to be used before this view learns more: both write beyond the same rows.
        """
        other = copy.copy(self)
        other._posterior = copy.copy(self._posterior)
        for x in self._encoding(keys):
            other._posterior.add(x, float(other._posterior.predict(x[None])[0][0]))
        return other
