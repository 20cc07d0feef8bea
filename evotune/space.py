"""The configurations that are legal: parameters, their values, and constraints between them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, cast

import numpy as np

from evotune.constraint import Array, Constraint
from evotune.errors import UsageError, nearest

Value = bool | int | float | str
Config = Mapping[str, Value]

# Partial assignments held at once while enumerating: two million rows of int16 are 40 MB for ten
# parameters and take about a second. Larger spaces are sampled instead.
ENUMERATION_LIMIT = 2_000_000
MAX_CODES = 2**63 - 1  # combinations that an int64 can number


def text_of(config: Config) -> str:
    """The same for equal configurations, and no other."""
    return json.dumps(dict(config), sort_keys=True)


@dataclass(frozen=True)
class Parameter:
    """The values that one tunable can take, in order.

    ``ordered`` says whether neighbouring values resemble each other (tile sizes) or not (layouts).
    """

    values: tuple[Value, ...]
    ordered: bool

    @classmethod
    def of(cls, values: Iterable[Value]) -> Parameter:
        """Numbers are ordered; booleans and strings are not."""
        found = tuple(values)
        return cls(found, all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found))

    @property
    def is_log(self) -> bool:
        """True for positive powers of two: distance between them is a ratio."""
        return self.ordered and all(
            isinstance(v, (int, float)) and v > 0 and math.log2(v).is_integer() for v in self.values
        )

    def index(self, value: object) -> int | None:
        """Position of a value of exactly this type: ``True`` is not 1 and 128.0 is not 128."""
        for i, v in enumerate(self.values):
            if type(v) is type(value) and v == value:
                return i
        return None


class ConfigSpace:
    """All legal configurations of a kernel.

    Args:
        parameters: Name to values, in the order in which they are shown.
        constraints: Python expressions over parameter and constant names; all must hold.
        constants: Further names that constraints may use (sizes of the problem, device limits).
        default: The configuration to compare with; if not given, the legal one nearest to the middle of
            all ordered parameters, with the first value of the others.

    Raises:
        UsageError: Nothing to choose from, a constraint with unknown names or that cannot be computed, or an
            illegal default.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        constraints: Sequence[str] = (),
        *,
        constants: Config | None = None,
        default: Config | None = None,
    ) -> None:
        if not parameters:
            raise UsageError("the configuration space has no parameters; give at least one")
        for name, parameter in parameters.items():
            _check_parameter(name, parameter)
        self.parameters = dict(parameters)
        self.names = tuple(self.parameters)
        self.constants = dict(constants or {})
        if clash := sorted(set(self.constants) & set(self.names)):
            raise UsageError(f"{clash} are both parameters and constants; rename one of each")
        known = [*self.names, *self.constants]
        self.constraints = tuple(Constraint(text, known, self.constants) for text in constraints)
        self._values = [_column(p.values) for p in self.parameters.values()]
        # Tried on rows in which each value occurs: what cannot be computed is told of here.
        tried = max(map(len, self._values))
        columns = {n: np.resize(column, tried) for n, column in zip(self.names, self._values, strict=True)}
        for constraint in self.constraints:
            constraint.holds_all(columns, tried)
        self._given_default = dict(default) if default is not None else None
        if self._given_default is not None:
            self.validate(self._given_default)

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Iterable[Value]],
        constraints: Sequence[str] = (),
        *,
        constants: Config | None = None,
        default: Config | None = None,
    ) -> ConfigSpace:
        """A space from plain lists: ``{"block": [32, 64], "layout": ["nt", "tn"]}``."""
        for name, given in cast(Mapping[str, Any], values).items():
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise UsageError(f"{name}: {given!r} is no list of values; for this value alone give [{given!r}]")
        parameters = {name: Parameter.of(v) for name, v in values.items()}
        return cls(parameters, constraints, constants=constants, default=default)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{n}[{len(p.values)}]" for n, p in self.parameters.items())
        return f"ConfigSpace({sizes}, {len(self.constraints)} constraints)"

    # -- one configuration ------------------------------------------------------------------

    def violations(self, config: Mapping[str, object]) -> list[str]:
        """Everything that is wrong with a configuration, in words for a person or a model."""
        out = [f"unknown parameter {n!r}{nearest(n, self.names)}" for n in config if n not in self.parameters]
        key: list[int] = []
        for name, parameter in self.parameters.items():
            if name not in config:
                out.append(f"parameter {name!r} is missing")
            elif (position := parameter.index(config[name])) is None:
                out.append(f"{name} = {config[name]!r} is not one of {list(parameter.values)}")
            else:
                key.append(position)
        if not out and not self._is_listed(key):
            out = [f"constraint {c.text!r} does not hold" for c in self.constraints if not c.holds(config)]
        return out

    def validate(self, config: Mapping[str, object]) -> None:
        """Raise :class:`UsageError` with all violations, if there are any."""
        if found := self.violations(config):
            raise UsageError(f"configuration {dict(config)} is not legal: " + "; ".join(found))

    @cached_property
    def default(self) -> Config:
        """The configuration to compare with.

        Raises:
            UsageError: No configuration satisfies all constraints.
        """
        if self._given_default is not None:
            return self._given_default
        keys = self.keys if self.is_enumerable else np.array([self.key(c) for c in self.sample(Random(0), 1000)])
        return self.from_key(keys[int(np.argmin(((keys - self._middle) ** 2 / self._spans**2).sum(1)))])

    @cached_property
    def _middle(self) -> Array:
        """Middle position of ordered parameters, the first of others."""
        return np.array([(len(p.values) - 1) / 2 if p.ordered else 0.0 for p in self.parameters.values()])

    @cached_property
    def _spans(self) -> Array:
        return np.array([max(1, len(p.values) - 1) for p in self.parameters.values()])

    def key(self, config: Config) -> tuple[int, ...]:
        """Position of each value in its parameter: a hashable name for a legal configuration."""
        out: list[int] = []
        for name, parameter in self.parameters.items():
            i = parameter.index(config[name])
            if i is None:
                raise UsageError(f"{name} = {config[name]!r} is not one of {list(parameter.values)}")
            out.append(i)
        return tuple(out)

    def from_key(self, key: Sequence[int]) -> dict[str, Value]:
        """The configuration that :meth:`key` named."""
        return {n: p.values[int(i)] for (n, p), i in zip(self.parameters.items(), key, strict=True)}

    def neighbors(self, config: Config) -> list[dict[str, Value]]:
        """Legal configurations that differ from this one in exactly one parameter."""
        key = self.key(config)
        rows = [
            (*key[:j], i, *key[j + 1 :])
            for j, p in enumerate(self.parameters.values())
            for i in range(len(p.values))
            if i != key[j]
        ]
        if not rows:
            return []
        table = np.array(rows, dtype=np.int64)
        return [self.from_key(k) for k in table[self.holds(table)]]

    # -- many configurations ----------------------------------------------------------------

    def holds(self, keys: Array) -> Array:
        """Which rows of value positions (n, d) satisfy every constraint, (n,) of bool."""
        ok = np.ones(len(keys), dtype=bool)
        columns = self.columns(keys)
        for constraint in self.constraints:
            ok &= constraint.holds_all(columns, len(keys))
        return ok

    def columns(self, keys: Array) -> dict[str, Array]:
        """Each parameter's values along rows of value positions (n, d)."""
        return {n: self._values[j][keys[:, j]] for j, n in enumerate(self.names)}

    @property
    def cartesian(self) -> int:
        """How many configurations there would be without constraints."""
        return math.prod(len(p.values) for p in self.parameters.values())

    @property
    def is_enumerable(self) -> bool:
        """Whether all legal configurations fit into memory as a table."""
        return self._enumerated is not None

    @property
    def cardinality(self) -> int:
        """How many configurations are legal; an upper bound if they cannot be enumerated."""
        return len(self.keys) if self.is_enumerable else self.cartesian

    @property
    def keys(self) -> Array:
        """Value positions of all legal configurations in declared order, (n, d) of int16.

        Raises:
            UsageError: No configuration is legal, or there are too many to enumerate.
        """
        if self._enumerated is None:
            raise UsageError(f"{self.cartesian:.1e} configurations are too many to enumerate; use sample()")
        if not len(self._enumerated):
            listed = "; ".join(c.text for c in self.constraints)
            raise UsageError(f"no legal configuration: {self.cartesian} combinations, none satisfies {listed}")
        return self._enumerated

    def config(self, row: int) -> dict[str, Value]:
        """The configuration in a row of :attr:`keys`."""
        return self.from_key(self.keys[row])

    def sample(self, rng: Random, n: int) -> list[dict[str, Value]]:
        """``n`` legal configurations, with replacement; uniform where the space is enumerable.

        Raises:
            UsageError: No configuration satisfies all constraints.
        """
        if self.is_enumerable:
            return [self.config(rng.randrange(len(self.keys))) for _ in range(n)]
        return [self.from_key(self._sample_one(rng)) for _ in range(n)]

    # -- as vectors -------------------------------------------------------------------------

    def encode(self, configs: Sequence[Config]) -> Array:
        """Configurations as rows in [0, 1], (n, d): log2 of powers of two, rank of other ordered
        values, one column per value for unordered ones, one for a boolean."""
        keys = np.array([self.key(c) for c in configs], dtype=np.int64).reshape(len(configs), -1)
        return np.concatenate([_code_table(p)[keys[:, j]] for j, p in enumerate(self.parameters.values())], axis=1)

    def decode(self, x: Array) -> list[dict[str, Value]]:
        """The nearest value of each parameter to rows of :meth:`encode`; may break constraints."""
        out: list[dict[str, Value]] = [{} for _ in range(len(x))]
        start = 0
        for name, parameter in self.parameters.items():
            table = _code_table(parameter)
            part = x[:, start : start + table.shape[1]]
            start += table.shape[1]
            nearest_i = np.argmin(((part[:, None, :] - table[None]) ** 2).sum(2), axis=1)
            for config, i in zip(out, nearest_i, strict=True):
                config[name] = parameter.values[int(i)]
        return out

    # -- inside -----------------------------------------------------------------------------

    def _is_listed(self, key: Sequence[int]) -> bool:
        """Whether value positions are known to be legal, without evaluating the constraints."""
        if not self.is_enumerable or self.cartesian > MAX_CODES:
            return False
        code = int(np.dot(key, self._radix))
        row = int(np.searchsorted(self._codes, code))
        return row < len(self._codes) and bool(self._codes[row] == code)

    @cached_property
    def _enumerated(self) -> Array | None:
        """Grow the table one parameter at a time, dropping rows as soon as a constraint can be
        decided, so that constrained spaces far above the limit are still enumerated."""
        table = np.zeros((1, 0), dtype=np.int16)
        decided: set[int] = set()
        for j in range(len(self.names)):
            width = len(self.parameters[self.names[j]].values)
            if len(table) * width > ENUMERATION_LIMIT:
                return None
            grown = np.repeat(table, width, axis=0)
            column = np.tile(np.arange(width, dtype=np.int16), len(table))
            table = np.column_stack([grown, column])
            known = set(self.names[: j + 1])
            columns = {n: self._values[k][table[:, k]] for k, n in enumerate(self.names[: j + 1])}
            ok = np.ones(len(table), dtype=bool)
            for i, constraint in enumerate(self.constraints):
                if i not in decided and constraint.names <= known:
                    decided.add(i)
                    ok &= constraint.holds_all(columns, len(table))
            table = table[ok]
        return table

    @cached_property
    def _radix(self) -> Array:
        sizes = [len(p.values) for p in self.parameters.values()]
        return np.cumprod([1, *sizes[:0:-1]], dtype=np.int64)[::-1]

    @cached_property
    def _codes(self) -> Array:
        return self.keys.astype(np.int64) @ self._radix

    def _sample_one(self, rng: Random) -> tuple[int, ...]:
        """Depth-first with random value order; a dead end costs only the values after it."""
        ready = self._decidable_at
        chosen: dict[str, Value] = {}
        stack: list[list[int]] = []
        steps = 0
        while len(chosen) < len(self.names):
            name = self.names[len(chosen)]
            values = self.parameters[name].values
            if len(stack) == len(chosen):
                stack.append(rng.sample(range(len(values)), len(values)))
            advanced = False
            while stack[-1] and not advanced:
                steps += 1
                chosen[name] = values[stack[-1].pop()]
                advanced = all(c.holds(chosen) for c in ready[len(chosen) - 1])
            if not advanced:
                chosen.pop(name, None)
                stack.pop()
                if not chosen or steps > 100_000:
                    raise UsageError("no legal configuration found; relax the constraints")
                chosen.popitem()
        return self.key(chosen)

    @cached_property
    def _decidable_at(self) -> list[list[Constraint]]:
        """Constraints whose last parameter, in declared order, is the j-th."""
        out: list[list[Constraint]] = [[] for _ in self.names]
        for constraint in self.constraints:
            last = max((self.names.index(n) for n in constraint.names), default=0)
            out[last].append(constraint)
        return out


# -- encoding of one parameter ------------------------------------------------------------------


def _width(parameter: Parameter) -> int:
    is_binary = all(isinstance(v, bool) for v in parameter.values) or len(parameter.values) <= 2
    return 1 if parameter.ordered or is_binary else len(parameter.values)


def _code_table(parameter: Parameter) -> Array:
    """Encoded row of each value, (values, width)."""
    n = len(parameter.values)
    if _width(parameter) > 1:
        return np.eye(n)
    raw = np.arange(n, dtype=float)
    if parameter.is_log:
        raw = np.log2(np.array(parameter.values, dtype=float))
    span = float(np.ptp(raw))
    return ((raw - raw.min()) / span if span else raw * 0.0)[:, None]


def _column(values: tuple[Value, ...]) -> Array:
    """Values as an array on which comparisons and arithmetic mean what they mean in Python."""
    if all(isinstance(v, bool) for v in values) or all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    ):
        return np.array(values)
    return np.array(values, dtype=object)


def _check_parameter(name: str, parameter: Parameter) -> None:
    if type(name) is not str or not name.isidentifier():
        raise UsageError(f"parameter name {name!r} is not a Python identifier; rename it")
    if not parameter.values:
        raise UsageError(f"parameter {name!r} has no values; give at least one")
    for value in parameter.values:
        if type(value) not in (bool, int, float, str):
            found = type(value).__name__
            hint = "; .tolist() of what it comes from makes them" if hasattr(value, "tolist") else ""
            raise UsageError(f"{name}: value {value!r} is a {found}; use bool, int, float or str{hint}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name}: value {value!r} is not finite; remove it")
    if len({(type(v), v) for v in parameter.values}) < len(parameter.values):
        raise UsageError(f"{name}: values {list(parameter.values)} repeat; list each once")
