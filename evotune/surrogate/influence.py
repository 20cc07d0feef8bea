"""What a surrogate says of single parameters, and of pairs of them beside one configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from evotune.space import Array, Config, ConfigSpace, Value
from evotune.surrogate.model import Surrogate

# Legal configurations over which the influence of parameters is judged.
SAMPLE = 2000
# Of one parameter; of more, so many are shown, evenly spread.
MOST_VALUES = 31


@dataclass(frozen=True)
class Axis:
    """A parameter and the values of it that are shown."""

    name: str
    values: Sequence[Value]


@dataclass(frozen=True)
class Grid:
    """All combinations of two parameters, the others as in one configuration: row by row, a row for each
    value ``down``. ``legal`` are the positions of those that are, to which ``mean`` and ``std`` belong."""

    down: Axis
    across: Axis
    configs: Sequence[Config]
    keys: Sequence[tuple[int, ...]]
    legal: Sequence[int]
    mean: Array
    std: Array

    def placed(self, numbers: Array, digits: int) -> list[float | None]:
        """Numbers of the legal combinations, rounded, and None for the others."""
        known = dict(zip(self.legal, numbers.tolist(), strict=True))
        return [rounded(known[i], digits) if i in known else None for i in range(len(self.configs))]


def influence(surrogate: Surrogate, space: ConfigSpace) -> dict[str, float]:
    """Share of the variance of predicted loss that each tunable parameter explains alone, the greatest first."""
    configs = space.sample(Random(0), SAMPLE)
    mean, _ = surrogate.predict(configs)
    return explained(space, np.array([space.key(c) for c in configs]), mean)


def explained(space: ConfigSpace, keys: Array, loss: Array) -> dict[str, float]:
    """Variance of the mean loss from value to value of each parameter as a share of the loss's, the greatest
    first: the first-order index of Sobol' 1993 where values are drawn independently. Parameters of a
    single value are left out.

    Args:
        space: Names the columns of ``keys``.
        keys: Value positions, (n, d).
        loss: (n,).
    """
    variance = float(loss.var())
    found: dict[str, float] = {}
    for j, name in enumerate(space.names):
        count = np.bincount(keys[:, j])
        if np.count_nonzero(count) > 1:
            effect = np.bincount(keys[:, j], loss) / np.maximum(count, 1) - loss.mean()
            found[name] = float(np.average(effect**2, weights=count)) / variance if variance else 0.0
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def axes(space: ConfigSpace, names: Sequence[str], most_cells: int) -> list[Axis]:
    """Parameters in a given order; as many as have no more than ``most_cells`` in pairs, and two at least."""
    found: list[Axis] = []
    cells = 0
    for name in names:
        axis = Axis(name, _spread(space.parameters[name].values))
        cells += len(axis.values) * sum(len(a.values) for a in found)
        if len(found) > 1 and cells > most_cells:
            break
        found.append(axis)
    return found


def grid(space: ConfigSpace, surrogate: Surrogate, incumbent: Config, pair: tuple[Axis, Axis]) -> Grid:
    """What is predicted of two parameters; the one with fewer values goes down: pages scroll down, not across."""
    down, across = sorted(pair, key=lambda axis: len(axis.values))
    configs = [{**incumbent, down.name: d, across.name: a} for d in down.values for a in across.values]
    keys = [space.key(c) for c in configs]
    legal: list[int] = np.flatnonzero(space.holds(np.array(keys))).tolist()
    # None is where the incumbent's own values are not among those shown and a constraint ties the rest.
    asked = [configs[i] for i in legal]
    mean, std = surrogate.predict(asked) if asked else (np.empty(0), np.empty(0))
    return Grid(down, across, configs, keys, legal, mean, std)


def rounded(x: float, digits: int) -> float:
    """To so many significant digits."""
    return float(f"{x:.{digits}g}")


def _spread(values: Sequence[Value]) -> Sequence[Value]:
    """At most :data:`MOST_VALUES` values, with the first and the last."""
    steps = min(len(values), MOST_VALUES) - 1
    return [values[round(i * (len(values) - 1) / steps)] for i in range(steps + 1)] if steps else values
