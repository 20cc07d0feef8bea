"""A Helion kernel's decorator, with its configuration put together from parameters.

What Helion has as a list is a parameter for each element in evotune, and an order is a number for each
place: which of the items that are left comes there. :mod:`evotune.helion.space` takes them apart; here they
are put together by their names alone, because neither Helion nor the kernel need be at hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evotune.errors import UsageError
from evotune.export.found import Export, Found
from evotune.space import Config, Value

# Arguments of `helion.Config` (1.5) that have a value for each loop, tile, range or memory access.
LISTS = (
    "block_sizes",
    "num_threads",
    "loop_orders",
    "flatten_loops",
    "l2_groupings",
    "reduction_loops",
    "range_unroll_factors",
    "range_warp_specializes",
    "range_num_stages",
    "range_multi_buffers",
    "range_flattens",
    "static_ranges",
    "load_eviction_policies",
    "load_cache_modifiers",
    "store_cache_modifiers",
    "indexing",
    "atomic_indexing",
)
ORDERS = "loop_orders"
_ELEMENT = re.compile(rf"({'|'.join(LISTS)})_(\d+)(?:_(\d+))?")


def is_helion(config: Config) -> bool:
    """Whether parameters are Helion's: a tile's size, or how programs are numbered."""
    return "pid_type" in config or any(name.startswith("block_sizes_") for name in config)


def why_not(found: Found) -> str | None:
    """Why there is no ``helion.Config`` for what was found."""
    if is_helion(found.winners[0].config):
        return None
    return "its parameters are not Helion's (block_sizes_0, pid_type, …)"


def write(found: Found) -> Export:
    """A decorator for each configuration; of several, one for each shape."""
    lines: list[str] = []
    for winner in found.winners:
        lines += [f"# {line}" for line in winner.comments()]
        arguments = ", ".join(f"{name}={value!a}" for name, value in joined(winner.config).items())
        lines.append(f"@helion.kernel(config=helion.Config({arguments}))")
    return Export("\n".join(lines) + "\n", "helion_config.py")


def joined(config: Config) -> dict[str, Any]:
    """Helion's arguments for one value of each parameter.

    Raises:
        UsageError: An element of a list is missing.
    """
    out: dict[str, Any] = {}
    lists: dict[str, dict[int, Any]] = {}
    orders: dict[int, dict[int, int]] = {}
    for name, value in config.items():
        element = _ELEMENT.fullmatch(name)
        if element is None:
            out[name] = _meant(value)
            continue
        key, place, within = element[1], int(element[2]), element[3]
        out.setdefault(key, None)  # keeps the order
        lists.setdefault(key, {})[place] = _meant(value)
        if key == ORDERS:
            orders.setdefault(place, {})[int(within or 0)] = int(value)
    for key, elements in lists.items():
        out[key] = _orders(orders) if key == ORDERS else _listed(key, elements)
    return out


def _listed(key: str, elements: Mapping[int, Any]) -> list[Any]:
    if missing := [f"{key}_{i}" for i in range(max(elements) + 1) if i not in elements]:
        raise UsageError(f"the configuration lacks {', '.join(missing)}; {key} cannot be put together")
    return [elements[i] for i in range(len(elements))]


def _orders(places: Mapping[int, Mapping[int, int]]) -> list[list[int]]:
    """Permutations from Lehmer's code; the last item of each has no choice, and one alone has no parameter."""
    out: list[list[int]] = []
    for place in range(max(places) + 1):
        code = places.get(place, {})
        left = list(range(len(code) + 1))
        out.append([left.pop(i) for i in [*(code[j] for j in range(len(code))), 0]])
    return out


def _meant(value: Value) -> Any:
    """A space has no None, but its name."""
    return None if value == "None" else value
