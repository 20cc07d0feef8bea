"""What the measurements so far say about all legal configurations, and which to measure next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import cast

import numpy as np

from evotune.errors import UsageError
from evotune.space import Array, Config, ConfigSpace
from evotune.surrogate.acquisition import Acquisition, log_expected_improvement
from evotune.surrogate.explore import far_apart, wander
from evotune.surrogate.features import Encoding
from evotune.surrogate.kernel import Prior, Profile, matern52
from evotune.surrogate.pool import Key, PoolSource
from evotune.surrogate.source import Guide, Source
from evotune.surrogate.view import Seen, View

# Refits happen at 4, 6, 8, ... and then whenever this share has been added: 15 times in 200 trials.
FIRST_FIT = 4
REFIT_GROWTH = 1.25
# Trials that a fit learns from: its time grows with their cube, and what is kept of a pool with their number.
MEMORY = 600
# Configurations whose neighbors join a pool that is a sample.
NEIGHBORHOODS = 5
# The check of one-step-ahead predictions: how many are kept, and how many make a verdict.
CHECKED = 24
VERDICT = 12
# Rows drawn by chance for each point of the opening, which are then those far apart. Among all rows
# they would be corners, which are seldom fast: the worst recorded space scores 0.54 so, and 0.42
# otherwise, with the same mean; see benchmarks/results/search_log.md.
ROWS_PER_POINT = 5


@dataclass(frozen=True, slots=True)
class Observation:
    """A trial: its configuration, its loss or None if it failed, that loss's variance, its fidelity,
    and the seconds it took or None if they are not known."""

    key: Key
    loss: float | None
    variance: float
    rank: int
    cost_s: float | None


class Surrogate:
    """A model of the loss over a space, asked for what to measure next.

    Two Gaussian processes look at the same observations through different encodings and take turns
    (Hoffman, Brochu & de Freitas 2011 have acquisitions take turns): where one is blind, the other
    moves the search on, and its finding corrects both.

    It is a function of the seed and the observations, in their order: questions leave no trace in
    it, and any process gives the same answers as long as the BLAS adds in the same order (the same
    library with the same number of threads).

    Args:
        space: The legal configurations.
        seed: Fixes all that is drawn.
        acquisition: What is to be gained from measuring.
        profile: The kernel as a function of distance.
        is_cost_aware: Whether utility is per second of evaluation, where trials tell their cost.
        source: What was measured elsewhere, believed as far as measurements agree with it.
    """

    def __init__(
        self,
        space: ConfigSpace,
        *,
        seed: int,
        acquisition: Acquisition = log_expected_improvement,
        profile: Profile = matern52,
        is_cost_aware: bool = False,
        source: Source | None = None,
    ) -> None:
        self._space, self._seed = space, seed
        self._acquisition, self._profile = acquisition, profile
        self._is_cost_aware = is_cost_aware
        self._source = source
        self._pools = PoolSource(space, seed)
        self._observations: list[Observation] = []
        self._seen_keys: set[Key] = set()
        self._top = 0
        self._forget()

    # -- learning ---------------------------------------------------------------------------

    def observe(
        self,
        config: Config,
        loss: float | None,
        *,
        fidelity_rank: int = 0,
        variance: float = 0.0,
        cost_s: float | None = None,
    ) -> None:
        """Take in one trial.

        Args:
            config: A configuration of the space.
            loss: Lower is better, on a scale where differences mean something (log latency, say);
                None if the trial failed.
            fidelity_rank: Higher is more careful; the highest seen is what is predicted.
            variance: That of the loss, as far as the measurement could tell.
            cost_s: Seconds that the trial took; None if that is not known.

        Raises:
            UsageError: The configuration or a number cannot be used.
        """
        if loss is not None and not (math.isfinite(loss) and math.isfinite(variance) and variance >= 0):
            raise UsageError(
                f"loss {loss!r} and variance {variance!r} must be finite, and the variance not negative"
            )
        if cost_s is not None and not (math.isfinite(cost_s) and cost_s > 0):
            raise UsageError(f"cost_s {cost_s!r} must be finite and positive, or None if it is not known")
        observation = Observation(self._space.key(config), loss, variance, fidelity_rank, cost_s)
        if not self._observations or fidelity_rank > self._top:
            self._top = fidelity_rank
            self._forget()
        self._observations.append(observation)
        self._seen_keys.add(observation.key)

    def restate(self, losses: Sequence[float | None]) -> None:
        """Replace the losses of all observations, in order, by those on another scale."""
        if [loss is None for loss in losses] != [o.loss is None for o in self._observations]:
            raise UsageError("restated losses must match the observations in number and in which failed")
        kept = zip(self._observations, losses, strict=True)
        self._observations = [replace(o, loss=loss) for o, loss in kept]
        self._forget()

    def look_back(self) -> bool:
        """Learn from all observations at once, without checking predictions on the way, as a search has to;
        whether there are enough to predict from."""
        self._learned = len(self._observations)
        self._window = list(self._observations)
        if _succeeded(self._window) >= FIRST_FIT:
            self._refit()
        return self._is_ready

    @property
    def is_trusted(self) -> bool:
        """Whether predictions have lately been better than the mean of what was known.

        False before there is anything to predict from. While it is False, :meth:`suggest` walks
        between the incumbent's neighbors and chance, and predictions go on being checked.
        """
        self._learn()
        return self._is_ready and self._has_skill

    @property
    def is_set_aside(self) -> bool:
        """Whether there are predictions, but lately no better than the mean of what was known."""
        self._learn()
        return self._is_ready and not self._has_skill

    @property
    def agreement(self) -> float | None:
        """Expected rank correlation, in [0, 1], of the source with what was measured; None without a
        source, or before anything was."""
        self._learn()
        return None if self._source is None or not self._is_ready else self._views[0].agreement

    # -- asking -----------------------------------------------------------------------------

    def favourites_elsewhere(self, n: int) -> list[Config]:
        """Up to ``n`` of the source's best legal configurations, the best first, not all near it."""
        if self._source is None:
            return []
        keys = np.array(self._source.favourites(n, self._encodings[0]))
        return [self._space.from_key(key) for key in keys[self._space.holds(keys)]]

    def start(self, n: int, *, given: Sequence[Config] = ()) -> list[Config]:
        """``n`` configurations to begin with, far from each other and from those ``given``."""
        pool = self._pools.draw(0, ())
        rng = np.random.default_rng([self._seed, len(self._observations)])
        keys = pool.keys[rng.choice(len(pool), min(len(pool), ROWS_PER_POINT * n), replace=False)]
        encode = self._encodings[0]
        taken = [*self._seen_keys, *(self._space.key(c) for c in given)]
        placed = encode.features(np.array(sorted(taken))) if taken else np.empty((0, encode.dimensions))
        return [self._space.from_key(keys[i]) for i in far_apart(encode.features(keys), n, placed)]

    def suggest(self, n: int, pending: Sequence[Config] = ()) -> list[Config]:
        """Up to ``n`` different configurations worth measuring, the best first; none of them was
        observed or is ``pending``. Fewer if not so many are left."""
        self._learn()
        waiting = [self._space.key(c) for c in pending]
        if not self.is_trusted:
            return self._unguided(n, waiting)
        view = self._view
        taken = np.zeros(len(view.pool), dtype=bool)
        taken[self._rows({*self._seen_keys, *waiting})] = True
        if waiting:
            view = view.imagining(np.array(waiting))
        out: list[Config] = []
        while len(out) < n and not taken.all():
            utility = np.where(taken, -np.inf, view.utility_of_pool())
            row = int(np.argmax(utility))
            taken[row] = True
            out.append(self._space.from_key(view.pool.key(row)))
            if len(out) < n:
                view = view.imagining(view.pool.keys[row : row + 1])
        return out

    def score(self, configs: Sequence[Config]) -> Array:
        """Log utility of measuring configurations, (k,), comparable to :attr:`best_score` until the
        next observation. Zeros while there is nothing to predict from."""
        self._learn()
        if not self._is_ready or not configs:
            return np.zeros(len(configs))
        return self._view.utility(self._keys(configs))

    @property
    def best_score(self) -> float:
        """The greatest log utility among configurations of the pool that were not observed."""
        self._learn()
        if not self._is_ready:
            return 0.0
        utility = self._view.utility_of_pool()
        utility[self._rows(self._seen_keys)] = -np.inf
        return float(utility.max())

    def predict(self, configs: Sequence[Config]) -> tuple[Array, Array]:
        """Mean and standard deviation of the loss at the top fidelity, each (k,): the mixture of views.

        Raises:
            UsageError: Too few trials have succeeded to predict anything.
        """
        self._learn()
        if not self._is_ready:
            raise UsageError(f"nothing to predict from: {FIRST_FIT} trials must have succeeded")
        keys = self._keys(configs)
        found = [view.warp.inverse(*view.predict(keys)) for view in self._views]
        means, stds = np.array([m for m, _ in found]), np.array([s for _, s in found])
        mean = means.mean(0)
        return mean, np.sqrt((stds**2 + (means - mean) ** 2).mean(0))

    # -- inside -----------------------------------------------------------------------------

    @cached_property
    def _encodings(self) -> tuple[Encoding, Encoding]:
        reference = self._pools.draw(0, ()).keys
        return (
            Encoding(self._space, reference, "log2"),
            Encoding(self._space, reference, "declared", products=False),
        )

    def _forget(self) -> None:
        """Begin learning from the first observation again."""
        self._views: list[View] = []
        self._learned = 0
        self._window: list[Observation] = []
        self._next_fit = FIRST_FIT if self._source is None else 1
        self._errors: deque[tuple[float, float]] = deque(maxlen=CHECKED)

    def _learn(self) -> None:
        """Catch up with the observations one by one, whenever the last question was."""
        while self._learned < len(self._observations):
            self._window.append(self._observations[self._learned])
            self._learned += 1
            seen = self._seen()
            if self._is_ready:
                self._check(seen)
            if _succeeded(self._window) >= self._next_fit:
                self._refit()
            elif self._is_ready:
                for view in self._views:
                    view.add(seen)

    def _refit(self) -> None:
        """Learn hyper-parameters anew, from what is worth remembering."""
        self._window = _memorable(self._window)
        succeeded = _succeeded(self._window)
        self._next_fit = max(succeeded + 2, math.ceil(succeeded * REFIT_GROWTH))
        seen = self._seen()
        if not self._views:
            # A source tells of the effects of single features already; what it leaves over is local.
            first = Prior.additive if self._source is None else Prior.local
            priors = [
                first(self._encodings[0].dimensions),
                # Positions are a coarser measure than sizes: expect less of a change from one to the next.
                Prior.local(self._encodings[1].dimensions, length=1.2, spread=0.7),
            ]
            self._views = [self._look(e, p) for e, p in zip(self._encodings, priors, strict=True)]
        order: list[int] = np.argsort(seen.loss, kind="stable")[:NEIGHBORHOODS].tolist()
        pool = self._pools.draw(self._learned, [self._window[i].key for i in order])
        for view in self._views:
            view.refit(pool, seen)

    def _look(self, encoding: Encoding, prior: Prior) -> View:
        guide = None if self._source is None else Guide(self._source, encoding, prior, self._profile)
        return View(encoding, prior, self._profile, self._acquisition, guide)

    def _check(self, seen: Seen) -> None:
        """Compare the last loss with what was predicted, and with the mean of those before."""
        if np.isnan(seen.loss[-1]):
            return
        before = seen.loss[:-1][np.isfinite(seen.loss[:-1])]
        for view in self._views:
            target = view.warp(seen.loss[-1:])[0]
            predicted, _ = view.predict(seen.keys[-1:], float(seen.below[-1]))
            self._errors.append((float(predicted[0] - target) ** 2, float(view.warp(before).mean() - target) ** 2))

    @property
    def _has_skill(self) -> bool:
        if len(self._errors) < VERDICT:
            return True
        return sum(of_model for of_model, _ in self._errors) <= sum(of_mean for _, of_mean in self._errors)

    @property
    def _is_ready(self) -> bool:
        return bool(self._views)

    @property
    def _view(self) -> View:
        """The view whose turn it is."""
        return self._views[len(self._observations) % len(self._views)]

    def _seen(self) -> Seen:
        window = self._window
        cost_s = [o.cost_s if self._is_cost_aware and o.cost_s is not None else math.nan for o in window]
        return Seen(
            keys=np.array([o.key for o in window]),
            loss=np.array([_loss(o) for o in window]),
            variance=np.array([o.variance for o in window]),
            below=np.array([float(self._top - o.rank) for o in window]),
            cost_s=np.array(cost_s),
        )

    def _rows(self, keys: set[Key]) -> list[int]:
        pool = self._view.pool
        return [row for key in keys if (row := pool.row(key)) is not None]

    def _keys(self, configs: Sequence[Config]) -> Array:
        return np.array([self._space.key(c) for c in configs])

    def _unguided(self, n: int, waiting: Sequence[Key]) -> list[Config]:
        count = len(self._observations)
        succeeded = [o for o in self._observations if o.loss is not None]
        incumbent = min(succeeded, key=lambda o: cast(float, o.loss)).key if succeeded else None
        rng = np.random.default_rng([self._seed, count])
        pool = self._pools.draw(count, ())
        found = wander(self._space, pool, incumbent, {*self._seen_keys, *waiting}, rng)
        return [self._space.from_key(key) for key in islice(found, n)]


def _loss(observation: Observation) -> float:
    return math.nan if observation.loss is None else observation.loss


def _succeeded(observations: Sequence[Observation]) -> int:
    return sum(o.loss is not None for o in observations)


def _memorable(observations: list[Observation]) -> list[Observation]:
    """Those from which the model goes on to learn: the best, and a fair sample of the others."""
    if len(observations) <= MEMORY:
        return observations
    by_loss = np.argsort([_loss(o) for o in observations], kind="stable")  # failures come last
    best, others = by_loss[: MEMORY // 2], by_loss[MEMORY // 2 :]
    spread = others[np.linspace(0, len(others) - 1, MEMORY - len(best)).round().astype(int)]
    return [observations[i] for i in sorted([*best.tolist(), *spread.tolist()])]
