"""What a decorator was given to choose from: a list or a space, seen the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from typing import Any, cast

from evotune.decorated import ABSENT, Tunables, encode
from evotune.errors import UsageError, nearest
from evotune.space import Config, ConfigSpace, Value

LAUNCH_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
TritonConfig = Any
"""A ``triton.Config``."""


@dataclass(frozen=True)
class Choices:
    """Configurations as a space, and what each of them is to Triton.

    ``listed`` has those of a list, by their key in the space; it is None where all of the space is meant.
    """

    space: ConfigSpace
    default: TritonConfig
    listed: Mapping[tuple[int, ...], TritonConfig] | None

    @classmethod
    def of_list(cls, configs: Sequence[TritonConfig]) -> Choices:
        """Exactly these, two at least; the first is the default.

        Raises:
            UsageError: Two differ in nothing but their ``pre_hook``.
        """
        space = Tunables.of(configs, only_listed=True).space
        listed: dict[tuple[int, ...], TritonConfig] = {}
        for config in configs:
            other = listed.setdefault(space.key(_values(config, space)), config)
            if other.pre_hook is not config.pre_hook:
                raise UsageError(f"two configurations differ in their pre_hook alone: {config}; give one of them")
        return cls(space, configs[0], listed)

    @classmethod
    def of_space(cls, space: ConfigSpace) -> Choices:
        """All of a space, whose default is the default."""
        return cls(space, _made(space.default), None)

    @property
    def count(self) -> int:
        """How many there are; an upper bound if they cannot be enumerated."""
        return self.space.cardinality if self.listed is None else len(self.listed)

    @property
    def digest(self) -> str:
        """Changes with what there is to choose, and with what all have in common."""
        values = {name: p.values for name, p in self.space.parameters.items()}
        texts = [c.text for c in self.space.constraints]
        common = {name: encode(v) for name, v in self.default.all_kwargs().items()}
        return sha256(json.dumps([values, texts, common]).encode()).hexdigest()[:16]

    def all(self) -> list[Config]:
        """Every configuration of the space, the default first, others in the order that was given."""
        if self.listed is not None:
            return [self.space.from_key(key) for key in self.listed]
        rest = (self.space.config(row) for row in range(self.space.cardinality))
        return [self.space.default, *(c for c in rest if c != self.space.default)]

    def pick(self, values: Config) -> TritonConfig:
        """What a configuration of the space is to Triton."""
        return _made(values) if self.listed is None else self.listed[self.space.key(values)]

    def values(self, config: TritonConfig) -> dict[str, Value]:
        """The configuration of the space that :meth:`pick` made this of."""
        return _values(config, self.space)


def space_of(given: object, arg_names: Sequence[str]) -> ConfigSpace:
    """The space that a decorator was given as values by name, or as it is.

    Raises:
        UsageError: It is neither, or a name is neither an argument of the kernel nor an option of the launch.
    """
    if isinstance(given, Mapping):
        given = ConfigSpace.from_dict(cast(Mapping[str, Sequence[Value]], given))
    if not isinstance(given, ConfigSpace):
        raise UsageError(f"configs is {given!r}; give a list of triton.Config, a dict of values, or a ConfigSpace")
    known = [*arg_names, *LAUNCH_OPTIONS]
    if unknown := [f"{n!r}{nearest(n, known)}" for n in given.names if n not in known]:
        wanted = f"an argument of the kernel ({list(arg_names)}) nor one of {list(LAUNCH_OPTIONS)}"
        raise UsageError(f"{', '.join(unknown)} is neither {wanted}")
    return given


def _made(values: Config) -> TritonConfig:
    options = {name: value for name, value in values.items() if name in LAUNCH_OPTIONS}
    rest = {name: value for name, value in values.items() if name not in options}
    return import_module("triton").Config(rest, **options)


def _values(config: TritonConfig, space: ConfigSpace) -> dict[str, Value]:
    options = config.all_kwargs()
    return {name: encode(options.get(name, ABSENT)) for name in space.names}
