"""A ``triton.Config`` to paste into ``triton.autotune``, or to launch with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evotune.export.found import Export, Found, Winner, items, literal
from evotune.export.helion import is_helion
from evotune.facts import GIVEN
from evotune.report.kept import kept
from evotune.space import Config, Value

# Arguments of `triton.Config` itself, in its order; everything else goes to the kernel.
LAUNCH = ("num_warps", "num_stages", "num_ctas", "maxnreg")
# What stands in a configuration for an option that is left out (see evotune.decorated).
NOT_SET = "not set"


def why_not(found: Found) -> str | None:
    """Why there is no ``triton.Config`` for what was found."""
    config = found.winners[0].config
    if found.run.summary.target == "cpu":
        return "its parameters are those of C code for the CPU"
    if is_helion(config):
        return "its parameters are Helion's"
    if not set(LAUNCH) & set(config):
        return f"it has none of Triton's parameters {', '.join(LAUNCH)}"
    return None


def write(found: Found) -> Export:
    """An expression: one ``triton.Config``, or a list of them."""
    notes = ("options that all configurations of a decorated kernel share are not in a run: add them",) * any(
        _is_decorated(w) for w in found.winners
    )
    if len(found.winners) == 1:
        text = "\n".join([*_comments(found.winners[0], ""), expression(found.winners[0].config)])
    else:
        lines = [line for w in found.winners for line in [*_comments(w, "    "), f"    {expression(w.config)},"]]
        text = "\n".join(["[", *lines, "]"])
    return Export(text + "\n", "triton_config.py", notes)


def expression(config: Config) -> str:
    """``triton.Config({"BLOCK_M": 128}, num_warps=4)``."""
    given = {name: value for name, value in config.items() if value != NOT_SET}
    kernels = {name: value for name, value in given.items() if name not in LAUNCH}
    options = [f"{name}={literal(given[name])}" for name in LAUNCH if name in given and _is_set(name, given[name])]
    return f"triton.Config({', '.join([f'{{{items(kernels)}}}', *options])})"


def _is_set(name: str, value: Value) -> bool:
    """Zero registers, and None as text, stand for as many as the compiler likes."""
    return not (name == "maxnreg" and value in (0, "None"))


def _comments(winner: Winner, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in winner.comments()]


def _is_decorated(winner: Winner) -> bool:
    """Whether it was tuned as ``FILE.py:KERNEL``, from configurations that a decorator was given."""
    given: Mapping[str, Any] = kept(winner.run, GIVEN) or {}
    return ".py:" in given.get("kernel", "")
