"""What was measured elsewhere, on another device or shape, as a prediction for this space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from evotune.errors import UsageError
from evotune.space import Array, Config, ConfigSpace
from evotune.surrogate.explore import far_apart
from evotune.surrogate.features import Encoding
from evotune.surrogate.gp import Data, PoolPosterior, fit
from evotune.surrogate.kernel import Prior, Profile

LEAST_TIMED = 4
# Rows that a source's own process is fitted to, half of them its best: a third of a second.
FITTED = 200
FIT_ITERATIONS = 40
# Rank correlation that is expected of a source, and how many trials that expectation is worth. Pairs of
# devices in the recordings have 0.08-0.89; see benchmarks/results/transfer.md.
EXPECTED = 0.8
EXPECTED_TRIALS = 6
# How many trials the spread of a source's losses is worth as a guess of this space's, if it is trusted
# fully.
SPREAD_TRIALS = 6
# How far the length scales go from what is usual to the source's, if it is trusted fully.
LENGTHS_SHARE = 0.6
# Among how many of its best rows a source's favourites are those far apart.
BEST_ROWS = 30


@dataclass(frozen=True)
class Source:
    """Trials made elsewhere, as value positions of this space.

    ``keys`` (n, d), distinct, with the default's value where the source lacks a parameter; ``loss``
    (n,), nan where all trials failed; ``shared``, the columns that the source knows.
    """

    keys: Array
    loss: Array
    shared: Array

    @classmethod
    def of(cls, space: ConfigSpace, trials: Sequence[tuple[Config, float | None]]) -> Source:
        """Trials matched by the names and values of parameters. Several of one configuration, as far
        as this space tells configurations apart, are averaged; values that it lacks leave a trial out.

        Raises:
            UsageError: No parameter in common, or too few timed configurations.
        """
        shared = [name for name in space.names if all(name in config for config, _ in trials)]
        if not shared:
            has = sorted({name for config, _ in trials for name in config})
            raise UsageError(f"no parameter in common: it has {has}, wanted are some of {list(space.names)}")
        default = dict(space.default)
        found: dict[tuple[int, ...], list[float]] = {}
        for config, loss in trials:
            if any(space.parameters[n].index(config[n]) is None for n in shared):
                continue
            key = space.key({**default, **{n: config[n] for n in shared}})
            found.setdefault(key, []).extend([] if loss is None else [loss])
        losses = np.array([np.mean(v) if v else np.nan for v in found.values()])
        if (timed := int(np.isfinite(losses).sum())) < LEAST_TIMED:
            raise UsageError(
                f"{timed} of its configurations ran and have values of this space; {LEAST_TIMED} are wanted"
            )
        columns = np.array([space.names.index(n) for n in shared])
        return cls(np.array(list(found)), losses, columns)

    @cached_property
    def standard(self) -> Array:
        """Standardised losses, (n,), nan where failed."""
        return (self.loss - np.nanmean(self.loss)) / self.spread

    @property
    def spread(self) -> float:
        """Standard deviation of the losses."""
        return float(np.nanstd(self.loss)) or 1.0

    def rows(self, keys: Array) -> Array:
        """Row of the source that tells of each of ``keys`` (k, d), (k,); -1 where none does."""
        listed: list[list[int]] = keys[:, self.shared].tolist()
        return np.array([self._row.get(tuple(key), -1) for key in listed], dtype=int)

    def failed(self, keys: Array) -> Array:
        """Which of ``keys`` (k, d) failed elsewhere, (k,) of bool."""
        rows = self.rows(keys)
        return (rows >= 0) & np.isnan(self.loss[rows])

    def favourites(self, n: int, encoding: Encoding) -> list[tuple[int, ...]]:
        """Up to ``n`` of the source's best configurations: its best, and others far from it."""
        order = np.argsort(self.loss, kind="stable")[: min(max(n, BEST_ROWS), int(np.isfinite(self.loss).sum()))]
        chosen = far_apart(encoding.features(self.keys[order]), n, np.empty((0, encoding.dimensions)))
        listed: list[list[int]] = self.keys[order[chosen]].tolist()
        return [tuple(key) for key in listed]

    @cached_property
    def _row(self) -> dict[tuple[int, ...], int]:
        listed: list[list[int]] = self.keys[:, self.shared].tolist()
        return {tuple(key): i for i, key in enumerate(listed)}


class Guide:
    """A source as one view sees it: a prediction for any configuration, and what to make of it.

    Args:
        source: What was measured elsewhere.
        encoding: The view's.
        prior: Of its hyper-parameters.
        profile: Its kernel.
    """

    def __init__(self, source: Source, encoding: Encoding, prior: Prior, profile: Profile) -> None:
        self._source, self._encoding, self._usual = source, encoding, prior
        timed = np.flatnonzero(np.isfinite(source.loss))
        best = timed[np.argsort(source.loss[timed], kind="stable")[: FITTED // 2]]
        others = np.random.default_rng(0).choice(timed, min(len(timed), FITTED // 2), replace=False)
        rows = np.union1d(best, others)
        x, y = encoding(source.keys[rows]), drawn_in(source.standard[rows])
        self._mean, nothing = float(y.mean()), np.zeros(len(y))
        data = Data(x, y - self._mean, nothing, nothing, np.empty((len(y), 0)))
        hyper = fit(data, encoding.levels, prior.mean, prior, profile=profile, iterations=FIT_ITERATIONS)
        self._found = hyper
        self._posterior = PoolPosterior(x[:1], np.empty((1, 0)), data, encoding.levels, hyper, profile)

    def expect(self, keys: Array) -> Array:
        """The source's loss for ``keys`` (k, d), standardised and drawn in, (k,): what was measured, or
        where nothing was, what its process predicts."""
        rows = self._source.rows(keys)
        expected = np.where(rows >= 0, drawn_in(self._source.standard[rows]), np.nan)
        unknown = np.flatnonzero(np.isnan(expected))
        if len(unknown):
            x = self._encoding(keys[unknown])
            expected[unknown] = self._mean + self._posterior.predict(x, np.empty((len(x), 0)))[0]
        return expected

    def agreement(self, keys: Array, loss: Array) -> float:
        """Expected rank correlation of the source's losses with these (n,), in [0, 1].

        From Kendall's tau by Greiner's relation (Kruskal 1958), drawn towards what is usual: few trials
        tell little.
        """
        n, expected = len(loss), self.expect(keys)
        found = 0.0
        if n > 1:
            pairs = np.sign(expected[:, None] - expected) * np.sign(loss[:, None] - loss)
            found = float(np.sin(0.5 * np.pi * pairs.sum() / (n * (n - 1))))
        told = n if n > 2 else 0
        return max(0.0, (EXPECTED_TRIALS * EXPECTED + told * found) / (EXPECTED_TRIALS + told))

    def scale(self, keys: Array, loss: Array, agreement: float) -> tuple[float, float]:
        """Centre and width that put losses (n,) on the source's scale, as far as it is to be trusted.

        A mean of few trials, chosen to be good, would not be that of the space.
        """
        n, worth = len(loss), SPREAD_TRIALS * agreement
        variance = (worth * self._source.spread**2 + n * float(loss.var())) / (worth + n)
        width = float(np.sqrt(variance)) or 1.0
        expected = float(self.expect(keys).mean())
        return float(loss.mean()) - agreement * width * expected, width

    def prior(self, agreement: float) -> Prior:
        """What is expected of hyper-parameters: what matters there matters here, as far as it is to
        be trusted."""
        usual = self._usual.mean
        share = LENGTHS_SHARE * agreement
        lengths = usual.lengths + share * (self._found.lengths - usual.lengths)
        weights = usual.weights + share * (self._found.weights - usual.weights)
        return Prior(replace(usual, lengths=lengths, weights=weights), self._usual.std)

    def failed(self, keys: Array) -> Array:
        """Which of ``keys`` (k, d) failed elsewhere, (k,) of bool."""
        return self._source.failed(keys)


def drawn_in(z: Array) -> Array:
    """Standardised losses with those worse than the mean drawn in logarithmically.

    How bad the bad ones are is of no use to the search, but would govern the fit.
    """
    return np.where(z > 0, np.log1p(np.maximum(z, 0.0)), z)
