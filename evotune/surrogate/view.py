"""One way of looking at the space: an encoding, a prior, and what they make of the observations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evotune.space import Array
from evotune.surrogate.acquisition import Acquisition, weigh
from evotune.surrogate.features import Encoding
from evotune.surrogate.gp import Data, PoolPosterior, fit
from evotune.surrogate.kernel import Hyper, Prior, Profile
from evotune.surrogate.nearby import PRIOR_SHARE, Nearby
from evotune.surrogate.pool import Pool
from evotune.surrogate.source import Guide, drawn_in

FIRST_ITERATIONS = 40
ITERATIONS = 10
LEAST_STD = 1e-4
# Rows of a pool that are looked at between two fits.
FOCUS = 2000
# Trials of known cost before differences of cost are believed.
LEAST_COSTS = 4
# Standard deviations of the level of a source, on the scale of its losses, and of its weight as a
# share of the agreement: a source that nothing agrees with is left out of the sum.
# Weights of 0.25 to 0.5 at first do as well; see benchmarks/results/transfer.md.
LEVEL_STD = 1.0
WEIGHT_STD = 0.6
# A configuration that failed elsewhere is believed to run this many times as often as others.
FAILED_ELSEWHERE = 0.6


@dataclass(frozen=True)
class Warp:
    """Losses as standardised targets, :func:`~evotune.surrogate.source.drawn_in`."""

    centre: float
    width: float

    @classmethod
    def of(cls, losses: Array) -> Warp:
        """The warp that standardises these losses."""
        return cls(float(losses.mean()), float(losses.std()) or 1.0)

    def __call__(self, loss: Array) -> Array:
        """Targets of losses."""
        return drawn_in((loss - self.centre) / self.width)

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
    of losses (n,), fidelities below the top one (n,), and seconds (n,), nan where they are not known
    or not to be considered."""

    keys: Array
    loss: Array
    variance: Array
    below: Array
    cost_s: Array


@dataclass(frozen=True)
class Rows:
    """A pool and what one view knows of its rows beforehand: indicators (m, u), what a guide expects
    (m,), and the believed chance of running (m,)."""

    pool: Pool
    indicators: Array
    expected: Array
    share: Array

    def only(self, rows: Array) -> Rows:
        """These rows."""
        return Rows(Pool(self.pool.keys[rows]), self.indicators[rows], self.expected[rows], self.share[rows])


class Ran:
    """Where in a pool those are that ran: ``rows``, and ``outside``, value positions (k, d)."""

    def __init__(self, pool: Pool, keys: Array) -> None:
        found = [pool.row(tuple(key)) for key in keys.tolist()]
        self.rows = [row for row in found if row is not None]
        self.outside = keys[[row is None for row in found]]

    def and_also(self, pool: Pool, keys: Array) -> Ran:
        """These, and more of the same pool."""
        more = Ran(pool, keys)
        more.rows, more.outside = self.rows + more.rows, np.concatenate([self.outside, more.outside])
        return more


class View:
    """A Gaussian process over one encoding, and a posterior over the part of a pool that matters.

    Args:
        encoding: Of configurations.
        prior: Of hyper-parameters.
        profile: The kernel of a feature.
        acquisition: What is to be gained from measuring.
        guide: What was measured elsewhere.
    """

    def __init__(
        self,
        encoding: Encoding,
        prior: Prior,
        profile: Profile,
        acquisition: Acquisition,
        guide: Guide | None = None,
    ) -> None:
        self._encoding, self._prior, self._profile, self._acquisition = encoding, prior, profile, acquisition
        self._guide = guide
        self.agreement = 0.0
        self._hyper: Hyper | None = None
        self._whole: Rows | None = None

    def refit(self, pool: Pool, seen: Seen) -> None:
        """Learn hyper-parameters from everything seen, beginning at the last ones."""
        if self._whole is None or pool is not self._whole.pool:
            keys = pool.keys
            self._whole = Rows(pool, self._encoding(keys), self._expected(keys), self._share(keys))
        part, levels, ok = self._whole, self._encoding.levels, np.isfinite(seen.loss)
        x = self._encoding(seen.keys).astype(float)
        self.warp = Warp.of(seen.loss[ok])
        if self._guide is not None:
            self._follow(self._guide, seen.keys[ok], seen.loss[ok])
        y = self.warp(seen.loss[ok])
        mean, trend = self._trend(self._expected(seen.keys[ok]))
        data = Data(x[ok], y - mean, self.warp.variance(y, seen.variance[ok]), seen.below[ok], trend)
        start, iterations = (self._hyper, ITERATIONS) if self._hyper else (self._prior.mean, FIRST_ITERATIONS)
        self._hyper = fit(data, levels, start, self._prior, profile=self._profile, iterations=iterations)
        _, trend = self._trend(part.expected)
        self._posterior = PoolPosterior(part.indicators, trend, data, levels, self._hyper, self._profile)
        self._feasibility = None if ok.all() else Nearby(part.indicators, x, ok, levels)
        known = np.isfinite(seen.cost_s)
        self._log_cost = None
        if known.sum() >= LEAST_COSTS:
            log_cost = np.log(seen.cost_s[known])
            self._usual_log_cost = float(log_cost.mean())
            self._log_cost = Nearby(part.indicators, x[known], log_cost, levels)
        self._part = part
        self._ran = Ran(pool, seen.keys[ok])
        if len(pool) > FOCUS:
            self._focus(seen.keys[ok])

    def _focus(self, ran: Array) -> None:
        """Go on with what ran and the rows that promise most: until the next fit no other will be
        wanted, and an observation costs as much as the rows are many."""
        promising = np.argsort(-self.utility_of_pool(), kind="stable")[:FOCUS]
        rows = np.union1d(promising, np.array(self._ran.rows, dtype=int))
        self._part = self._part.only(rows)
        self._ran = Ran(self.pool, ran)
        self._posterior.focus(rows)
        for nearby in (self._feasibility, self._log_cost):
            if nearby is not None:
                nearby.focus(rows)

    @property
    def pool(self) -> Pool:
        """The rows among which the best are looked for."""
        return self._part.pool

    def add(self, seen: Seen) -> None:
        """Condition on the last observation, keeping the hyper-parameters."""
        x, loss = self._encoding(seen.keys[-1:])[0], seen.loss[-1:]
        ok = bool(np.isfinite(loss[0]))
        if ok:
            self._ran = self._ran.and_also(self.pool, seen.keys[-1:])
            y = self.warp(loss)
            variance = self.warp.variance(y, seen.variance[-1:])
            mean, trend = self._trend(self._expected(seen.keys[-1:]))
            self._posterior.add(x, trend[0], float((y - mean)[0]), float(variance[0]), float(seen.below[-1]))
        if self._feasibility is not None:
            self._feasibility.add(x, float(ok))
        elif not ok:
            ran, levels = np.isfinite(seen.loss), self._encoding.levels
            self._feasibility = Nearby(self._part.indicators, self._encoding(seen.keys), ran, levels)
        if self._log_cost is not None and np.isfinite(seen.cost_s[-1]):
            self._log_cost.add(x, float(np.log(seen.cost_s[-1])))

    def predict(self, keys: Array, below: float = 0.0) -> tuple[Array, Array]:
        """Posterior mean and standard deviation of the target at rows of value positions, each (k,)."""
        prior, trend = self._trend(self._expected(keys))
        mean, variance = self._posterior.predict(self._encoding(keys), trend, below)
        return prior + mean, np.sqrt(variance)

    def utility(self, keys: Array) -> Array:
        """Log utility of measuring rows of value positions, (k,)."""
        x = self._encoding(keys)
        utility = self._acquisition(*self.predict(keys), self._best)
        return self._weigh(utility, self._share(keys), lambda n, b: n.at(x, b))

    def utility_of_pool(self) -> Array:
        """:meth:`utility` for each row of :attr:`pool`, (m,)."""
        mean, std = self._pool_mean, np.sqrt(np.maximum(self._posterior.variance.astype(float), LEAST_STD**2))
        utility = self._acquisition(mean, std, self._best)
        return self._weigh(utility, self._part.share, lambda n, b: n.over_pool(b).astype(float))

    def imagining(self, keys: Array) -> View:
        """A copy that has seen its own predictions come true there, and looks elsewhere next.

        It is to be used before this view learns more: both write beyond the same rows.
        """
        other = copy.copy(self)
        other._posterior = copy.copy(self._posterior)
        _, trend = self._trend(self._expected(keys))
        other._posterior.imagine(self._encoding(keys), trend)
        return other

    @property
    def _best(self) -> float:
        """Least posterior mean of the target among what ran; not the least observed, which had luck."""
        outside = self.predict(self._ran.outside)[0] if len(self._ran.outside) else np.empty(0)
        return float(np.concatenate([self._pool_mean[self._ran.rows], outside]).min())

    @property
    def _pool_mean(self) -> Array:
        mean: Array = self._trend(self._part.expected)[0] + self._posterior.mean
        return mean

    def _follow(self, guide: Guide, keys: Array, loss: Array) -> None:
        """Take from the source what its agreement with what was measured deserves."""
        self.agreement = guide.agreement(keys, loss)
        self._prior = guide.prior(self.agreement)
        self.warp = Warp(*guide.scale(keys, loss, self.agreement))

    def _expected(self, keys: Array) -> Array:
        """What the source says of rows of value positions, (k,); zeros without one."""
        return np.zeros(len(keys)) if self._guide is None else self._guide.expect(keys)

    def _trend(self, expected: Array) -> tuple[Array, Array]:
        """Prior mean (k,) of targets, and functions (k, p) of which they hold unknown shares: the
        source's weight is uncertain, and so is the difference of level."""
        if self._guide is None:
            return expected, np.empty((len(expected), 0))
        shares = [np.full(len(expected), LEVEL_STD), WEIGHT_STD * self.agreement * expected]
        return self.agreement * expected, np.column_stack(shares)

    def _share(self, keys: Array) -> Array:
        """Chance of running that is believed of rows of value positions before any trial, (k,)."""
        share = np.full(len(keys), PRIOR_SHARE)
        if self._guide is not None:
            share[self._guide.failed(keys)] *= FAILED_ELSEWHERE
        return share

    def _weigh(self, utility: Array, share: Array, expect: Callable[[Nearby, Array | float], Array]) -> Array:
        """Log utility by the chance of running, and by the cost where that is known."""
        feasible = share if self._feasibility is None else expect(self._feasibility, share)
        if self._log_cost is None:
            return weigh(utility, feasible)
        return weigh(utility, feasible, np.exp(expect(self._log_cost, self._usual_log_cost)))
