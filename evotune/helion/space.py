"""The space that Helion derives from a kernel, as a :class:`~evotune.space.ConfigSpace`, there and back.

Helion has a configuration in two forms: ``Config``, which a kernel is compiled with, and a flat list of
one value for each fragment of the space. Here it has a third, one value for each parameter:

=====================  ==================================================================================
fragment               parameters
=====================  ==================================================================================
numbers                one of all values, or of so many over the range that none is far from one
booleans, choices      one of all values; what is no number, boolean or text becomes text: ``"None"``
a list of fragments    one for each element: ``indexing_0``, ``indexing_1``
a permutation          one for each place but the last: which of the items that are left comes there
=====================  ==================================================================================

Helion repairs silently: where ``pid_type`` is ``"flat"``, say, ``maxnreg`` becomes ``None``. So several
configurations can be one. :meth:`HelionSpace.canonical` names the one that is left, and constraints
(:mod:`evotune.helion.rules`) keep most of the others out of the space.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# (helion is optional, and of what it has of types nothing here depends on.)
from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from helion.autotuner.config_fragment import BaseIntegerFragment, ListOf, PermutationFragment
from helion.exc import InvalidConfig

from evotune.errors import UsageError
from evotune.helion.rules import find_rules
from evotune.space import Config, ConfigSpace, Parameter, Value

# Values of a number whose range has more: 32 over 1 to 10 000 are steps of a third.
MOST_NUMBERS = 32
# Of a tile to a thread: as Helion limits its own mutants, because more takes long to compile, and spills.
MOST_ELEMENTS = 8192
EVERY_CHOICE = 1_000_000  # as Helion asks for a limit where none is meant


class HelionSpace:
    """What Helion may choose for a kernel.

    Args:
        config_gen: Helion's ``ConfigGeneration`` of the kernel.
        seeds: Configurations (Helion's) that must have a place in the space even if no fragment has
            their values. Its default and those of its compiler have one in any case.

    Raises:
        UsageError: A fragment is of a kind that cannot be listed.
    """

    def __init__(self, config_gen: Any, seeds: Sequence[Any] = ()) -> None:
        self._config_gen = config_gen
        spec = config_gen.config_spec
        self._seeds = [
            config
            for _, config in config_gen.user_seed_flat_config_pairs(
                [spec.default_config(), config_gen.unflatten(config_gen.default_flat()), *seeds]
            )
        ]
        self._seeds += [config for _, config in config_gen.seed_flat_config_pairs() if config not in self._seeds]
        self._tunables = self._find_tunables()
        plain = ConfigSpace(self._parameters)
        default = self.from_config(self._seeds[0])
        order, rules = find_rules(plain, self._canonical_values, self._sizes(), self.seeds)
        parameters = {name: plain.parameters[name] for name in order}
        self.space = ConfigSpace(parameters, rules, default={name: default[name] for name in order})

    @property
    def seeds(self) -> list[Config]:
        """Helion's default first, then what it starts from: its reference, given seeds, its compiler's."""
        return [self.from_config(config) for config in self._seeds]

    def names_of(self, key: str) -> list[str]:
        """The parameters of one of Helion's keys, in order; none if this kernel has none."""
        places, _ = self._config_gen._key_to_flat_indices.get(key, ((), False))
        return [name for i in places for name in self._tunables[i].parameters]

    def config(self, config: Config) -> Any:
        """Helion's configuration, repaired where it must be.

        Raises:
            InvalidConfig: Helion's; it cannot be repaired.
        """
        return self._config_gen.unflatten(self.flat(config))

    def flat(self, config: Config) -> list[Any]:
        """Helion's flat form, before any repair."""
        return [tunable.join([config[name] for name in tunable.parameters]) for tunable in self._tunables]

    def from_config(self, config: Any) -> Config:
        """The configuration that :meth:`config` made this one of, or the nearest that the space has.

        Raises:
            UsageError: It has a choice that the space has not.
        """
        flat = self._config_gen.flatten(config)
        out: dict[str, Value] = {}
        for tunable, value in zip(self._tunables, flat, strict=True):
            out.update(zip(tunable.parameters, tunable.split(value), strict=True))
        return out

    def canonical(self, config: Config) -> Config | None:
        """The configuration that Helion makes of one; None if it refuses it."""
        found = self._canonical_values(config)
        return None if found is None or self.space.violations(found) else found

    def _canonical_values(self, config: Config) -> Config | None:
        try:
            return self.from_config(self.config(config))
        except (InvalidConfig, UsageError):
            return None

    # -- what there is to tune ----------------------------------------------------------------

    def _find_tunables(self) -> list[_Tunable]:
        generation = self._config_gen
        seeds = [generation.flatten(config) for config in self._seeds]
        fixed = generation.overridden_flat_indices
        found: list[_Tunable] = []
        names: set[str] = set()
        for name, i in _named_slots(generation):
            fragment, values = generation.flat_spec[i], [flat[i] for flat in seeds]
            tunable = _tunable(_unused(name, names), fragment, values, is_fixed=i in fixed)
            names |= set(tunable.parameters)
            found.append(tunable)
        return found

    @property
    def _parameters(self) -> dict[str, Parameter]:
        return {name: parameter for t in self._tunables for name, parameter in t.parameters.items()}

    def _sizes(self) -> list[str]:
        """Limits on tiles, which also tell the surrogate which products matter."""
        generation = self._config_gen
        names = [next(iter(self._tunables[i].parameters)) for i in generation.block_size_indices]
        most = generation.config_spec.backend.max_tensor_numel
        out: list[str] = []
        if most is not None:
            for limit in generation.config_spec.tensor_numel_constraints:
                inside = [names[i] for i in limit.block_indices]
                # A sum, or a quotient, bounds no product.
                if len(inside) > 1 and re.fullmatch(r"[\w* ]+ <= \d+", limit.expr_str):
                    out.append(f"{' * '.join(inside)} <= {most}")
        if names and generation.num_warps_index >= 0:
            warps = next(iter(self._tunables[generation.num_warps_index].parameters))
            needed = (math.prod(int(seed[n]) for n in names) // (32 * int(seed[warps])) for seed in self.seeds)
            out.append(f"{' * '.join(names)} <= {32 * max(MOST_ELEMENTS, *needed)} * {warps}")
        return list(dict.fromkeys(out))


# -- one fragment ---------------------------------------------------------------------------------


class _Tunable(Protocol):
    """A fragment as parameters."""

    @property
    def parameters(self) -> Mapping[str, Parameter]: ...

    def join(self, values: Sequence[Value]) -> Any:
        """Helion's value for one of each parameter."""
        ...

    def split(self, value: Any) -> list[Value]:
        """The parameters' values for Helion's."""
        ...


@dataclass(frozen=True)
class _Choice:
    """One parameter; ``raw`` is what Helion has for each of its values."""

    name: str
    parameter: Parameter
    raw: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, raw: Sequence[Any]) -> _Choice:
        labels = tuple(v if _is_plain(v) else str(v) for v in raw)
        if len({(type(v), v) for v in labels}) < len(labels):
            labels = tuple(repr(v) for v in raw)
        return cls(name, Parameter.of(labels), tuple(raw))

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {self.name: self.parameter}

    def join(self, values: Sequence[Value]) -> Any:
        i = self.parameter.index(values[0])
        if i is None:
            raise UsageError(f"{self.name} = {values[0]!r} is not one of {list(self.parameter.values)}")
        return self.raw[i]

    def split(self, value: Any) -> list[Value]:
        for label, raw in zip(self.parameter.values, self.raw, strict=True):
            if type(raw) is type(value) and raw == value:
                return [label]
        if not (self.parameter.ordered and _is_number(value)):
            raise UsageError(f"{self.name} = {value!r} is not one of {list(self.raw)}")
        return [min(self.parameter.values, key=lambda v: abs(float(v) - float(value)))]


@dataclass(frozen=True)
class _List:
    """One parameter for each element of a list."""

    elements: tuple[_Choice, ...]

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {element.name: element.parameter for element in self.elements}

    def join(self, values: Sequence[Value]) -> Any:
        return [element.join([value]) for element, value in zip(self.elements, values, strict=True)]

    def split(self, value: Any) -> list[Value]:
        return [element.split(v)[0] for element, v in zip(self.elements, value, strict=True)]


@dataclass(frozen=True)
class _Permutation:
    """Which of the items that are left comes next, by its place among them: Lehmer's code."""

    name: str
    length: int

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        places = range(self.length - 1)
        return {f"{self.name}_{i}": Parameter(tuple(range(self.length - i)), ordered=False) for i in places}

    def join(self, values: Sequence[Value]) -> Any:
        left = list(range(self.length))
        return [left.pop(int(i)) for i in [*values, 0]] if self.length else []

    def split(self, value: Any) -> list[Value]:
        left = list(range(self.length))
        out: list[Value] = []
        for item in value[:-1]:
            out.append(left.index(item))
            left.remove(item)
        return out


def _tunable(name: str, fragment: Any, seeds: Sequence[Any], *, is_fixed: bool) -> _Tunable:
    """A fragment that takes the values of ``seeds`` too; only the first one's if it is fixed."""
    if isinstance(fragment, PermutationFragment) and not is_fixed:
        return _Permutation(name, fragment.length)
    if isinstance(fragment, ListOf):
        inner = [_Values(fragment.inner, [seed[j] for seed in seeds], is_fixed) for j in range(fragment.length)]
        return _List(tuple(_Choice.of(f"{name}_{j}", values.all(name)) for j, values in enumerate(inner)))
    return _Choice.of(name, _Values(fragment, seeds, is_fixed).all(name))


@dataclass(frozen=True)
class _Values:
    """What a fragment that is no list may be."""

    fragment: Any
    seeds: Sequence[Any]
    is_fixed: bool

    def all(self, name: str) -> list[Any]:
        """Those of the fragment, and of seeds."""
        found = [] if self.is_fixed else self._listed(name)
        for value in self.seeds[:1] if self.is_fixed else self.seeds:
            if not any(type(v) is type(value) and v == value for v in found):
                found.append(value)
        return sorted(found) if all(_is_number(v) for v in found) else found

    def _listed(self, name: str) -> list[Any]:
        is_range = isinstance(self.fragment, BaseIntegerFragment)
        found = self.fragment.search_values(MOST_NUMBERS if is_range else EVERY_CHOICE)
        if found is None and is_range:
            return _spread(self.fragment.low, self.fragment.high)
        if found is None:
            raise UsageError(f"{name}: a {type(self.fragment).__name__} cannot be listed; override it")
        return found


def _named_slots(config_gen: Any) -> Iterable[tuple[str, int]]:
    """A name for each place of a flat configuration, in order."""
    for key, (places, is_sequence) in config_gen._key_to_flat_indices.items():
        for j, i in enumerate(places):
            yield (f"{key}_{j}" if is_sequence else key), i


def _unused(name: str, names: set[str]) -> str:
    """An identifier like a name; users name tunables as they like."""
    name = re.sub(r"\W|^(?=\d)", "_", name)
    return _unused(f"{name}_", names) if any(n.startswith(name) for n in names) else name


def _spread(low: int, high: int) -> list[int]:
    """Whole numbers from one end to the other, in steps that grow with their distance from 0."""

    def bend(x: float) -> float:
        return math.copysign(math.log1p(abs(x)), x)

    step = (bend(high) - bend(low)) / (MOST_NUMBERS - 1)
    bent = [bend(low) + i * step for i in range(MOST_NUMBERS)]
    return sorted({round(math.copysign(math.expm1(abs(b)), b)) for b in bent} | {low, high})


def _is_plain(value: object) -> bool:
    return type(value) in (bool, str) or _is_number(value)


def _is_number(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))
