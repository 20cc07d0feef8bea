"""How much is to be gained from measuring a configuration, as a logarithm.

All functions minimise: they take the posterior mean and standard deviation of a loss (m,) and the
``best`` loss so far, and return the logarithm of a positive utility (m,), greater for better. On
this scale the probability of running at all and the cost of finding out are terms of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from evotune.space import Array

Acquisition = Callable[[Array, Array, float], Array]

LOG_SQRT_2PI = 0.9189385332046727
# Where z Phi(z) + phi(z) has lost 3 digits to cancellation, and its series is exact to 5.
FAR = -30.0


def log_expected_improvement(mean: Array, std: Array, best: float) -> Array:
    """log E[max(best - loss, 0)], finite however unlikely an improvement is.

    Jones, Schonlau & Welch 1998, eq. 15; the tail as in Ament et al. 2023 (LogEI).
    """
    from scipy.special import ndtr

    z = (best - mean) / std
    near = np.maximum(z, FAR)
    # h(z) = z Phi(z) + phi(z)
    log_h = np.log(near * ndtr(near) + np.exp(-0.5 * near * near - LOG_SQRT_2PI))
    far = np.minimum(z, FAR)
    # h(z) = phi(z) / z^2 (1 - 3 / z^2 + ...) for z -> -inf
    tail = -0.5 * far * far - LOG_SQRT_2PI - 2.0 * np.log(-far) + np.log1p(-3.0 / (far * far))
    return np.where(z < FAR, tail, log_h) + np.log(std)


def log_probability_of_improvement(mean: Array, std: Array, best: float) -> Array:
    """log P(loss < best)."""
    from scipy.special import log_ndtr

    return log_ndtr((best - mean) / std)


def log_optimistic_improvement(mean: Array, std: Array, best: float, *, beta: float = 2.0) -> Array:
    """log softplus of the improvement that the lower confidence bound ``mean - beta std`` promises.

    Orders like the bound itself (Srinivas et al. 2010), but is a utility: it can be weighed.
    """
    return np.log(np.logaddexp(0.0, best - (mean - beta * std)))


ACQUISITIONS: Mapping[str, Acquisition] = {
    "ei": log_expected_improvement,
    "ucb": log_optimistic_improvement,
    "pi": log_probability_of_improvement,
}
"""By the names of ``search.acquisition``."""


def weigh(utility: Array, feasible: Array, cost_s: Array | None = None) -> Array:
    """Log utility of configurations that run with probability ``feasible``; per second of evaluation
    if the ``cost_s`` of each is given (Snoek et al. 2012)."""
    weighed = utility + np.log(feasible)
    return weighed if cost_s is None else weighed - np.log(cost_s)
