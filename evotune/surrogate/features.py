"""Configurations as the numbers that a kernel's latency depends on smoothly.

What the declared values do not show, and a model with tens of observations cannot find out: that
48 is aligned to 16 elements only, and that 16 x 32 and 32 x 16 are the same number of threads.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np

from evotune.constraint import evaluate
from evotune.space import Array, ConfigSpace, Parameter
from evotune.surrogate.kernel import Levels

Scale = Literal["log2", "declared"]
Column = Callable[[Mapping[str, Array]], Array]

# Two different values of an unordered parameter are sqrt(2) of this apart: as far as the ends of an ordered one.
INDICATOR = 0.5**0.5
# Levels of a feature that takes more values, such as a product: enough to tell them apart.
MOST_LEVELS = 32
# So many rows at once, or fewer, are asked for again and again: they are remembered.
FEW = 8


class Encoding:
    """Turns rows of value positions into features, each scaled to [0, 1] over a reference, and these
    into indicators of their levels.

    Ordered parameters become ``log2`` of their values, or their ``declared`` positions: the two
    disagree on what is near, and a search that listens to both is misled by neither. Unordered
    ones become one indicator per value. Two things are added:

    * alignment: log2 of the largest power of two that divides an integer;
    * products: log2 of every product of parameters that a constraint speaks of (threads in a block,
      elements in shared memory), where positive; by ``products=False`` not.

    Features that do not vary over the reference are left out.

    Args:
        space: The space.
        reference: Rows of value positions (n, d) over which features are scaled.
        scale: What ordered parameters become.
        products: Whether products in constraints are features too.
    """

    def __init__(
        self, space: ConfigSpace, reference: Array, scale: Scale = "log2", *, products: bool = True
    ) -> None:
        self._space = space
        columns = [c for n, p in space.parameters.items() for c in _of_parameter(n, p, scale)]
        if products:
            columns += _of_products(space)
        raw = self._raw(columns, reference)
        low, span = raw.min(0), np.ptp(raw, axis=0)
        vary = np.flatnonzero(span > 0)
        self._columns = [columns[j] for j in vary]
        self._low, self._span = low[vary], span[vary]
        is_indicator = np.array([isinstance(c, _Indicator) for c in self._columns], dtype=bool)
        self._weight = np.where(is_indicator, INDICATOR, 1.0)
        self.levels = Levels([_levels_of(column) for column in np.transpose(self.features(reference))])
        self._known: dict[bytes, Array] = {}

    @property
    def dimensions(self) -> int:
        """Number of features."""
        return len(self._columns)

    def __call__(self, keys: Array) -> Array:
        """Rows of value positions (n, d) as indicators of the levels of their features, (n, u)."""
        if len(keys) > FEW:
            return self.levels.indicate(self.features(keys))
        named = [(key.tobytes(), key) for key in keys.astype(np.int64)]
        for name, key in named:
            if name not in self._known:
                self._known[name] = self.levels.indicate(self.features(key[None]))[0]
        return np.array([self._known[name] for name, _ in named])

    def features(self, keys: Array) -> Array:
        """Features of rows of value positions, (n, dimensions)."""
        return (self._raw(self._columns, keys) - self._low) / self._span * self._weight

    def _raw(self, columns: list[Column], keys: Array) -> Array:
        positions: dict[str, Array] = {f"#{n}": keys[:, j] for j, n in enumerate(self._space.names)}
        env = {**positions, **_numeric(self._space, keys)}
        out = np.zeros((len(keys), len(columns)))
        for j, column in enumerate(columns):
            out[:, j] = column(env)
        return out


class _Indicator:
    """1 where a parameter is at a position, else 0."""

    def __init__(self, name: str, position: int) -> None:
        self._name, self._position = f"#{name}", position

    def __call__(self, env: Mapping[str, Array]) -> Array:
        return env[self._name] == self._position


def _levels_of(column: Array) -> Array:
    """The values of a feature, or so many steps that none is far from one."""
    values: Array = np.unique(np.round(column, 9))
    if len(values) <= MOST_LEVELS:
        return values
    return np.linspace(float(values[0]), float(values[-1]), MOST_LEVELS)


def alignment(values: Array) -> Array:
    """log2 of the largest power of two that divides each integer: 48 gives 4. Zero gives 0."""
    whole = values.astype(np.int64)
    return np.log2(np.maximum(whole & -whole, 1))


def _of_parameter(name: str, parameter: Parameter, scale: Scale) -> Iterator[Column]:
    values = parameter.values
    if not parameter.ordered and len(values) > 2:
        yield from (_Indicator(name, i) for i in range(len(values)))
        return
    low = min((float(v) for v in values if isinstance(v, (int, float))), default=0.0)
    if not parameter.ordered or scale == "declared" or low < 0 or (low == 0 and len(values) <= 3):
        yield lambda env: env[f"#{name}"]
    else:
        shift = 0.0 if low > 0 else 1.0
        yield lambda env: np.log2(env[name] + shift)
    is_whole = parameter.ordered and all(isinstance(v, int) and v > 0 for v in values)
    if is_whole and not parameter.is_log and len(values) > 2:
        yield lambda env: alignment(env[name])


def _of_products(space: ConfigSpace) -> list[Column]:
    found: dict[str, Column] = {}
    for constraint in space.constraints:
        for node in ast.walk(constraint.tree):
            if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
                continue
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & set(space.names)
            if len(names) >= 2 and _is_arithmetic(node, space):
                found.setdefault(ast.unparse(node), _log2_of(node))
    return list(found.values())


def _log2_of(node: ast.expr) -> Column:
    def column(env: Mapping[str, Array]) -> Array:
        with np.errstate(all="ignore"):
            # A product that is zero or negative somewhere says nothing about size there.
            return np.log2(np.maximum(evaluate(node, env), 1e-9))

    return column


def _numeric(space: ConfigSpace, keys: Array) -> dict[str, Array]:
    """Constants and parameters that are numbers, as floats by name."""
    columns = {n: c.astype(float) for n, c in space.columns(keys).items() if c.dtype != object}
    constants: dict[str, Array] = {
        n: np.array(float(v)) for n, v in space.constants.items() if isinstance(v, (int, float))
    }
    return {**constants, **columns}


_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv)


def _is_arithmetic(node: ast.expr, space: ConfigSpace) -> bool:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, _ARITHMETIC) and _is_arithmetic(left, space) and _is_arithmetic(right, space)
        case ast.Name(id=name):
            known = {**space.constants, **{n: p.values[0] for n, p in space.parameters.items()}}
            return isinstance(known[name], (int, float))
        case ast.Constant(value=value):
            return isinstance(value, (int, float))
        case _:
            return False
