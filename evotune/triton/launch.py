"""One call of a kernel, and what is said of one that failed."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false
# (triton is optional.)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from evotune.errors import Rejected
from evotune.triton.choices import TritonConfig

REASON_CHARS = 300


@dataclass(frozen=True)
class Call:
    """What a kernel is launched with, but for what a configuration chooses."""

    arg_names: Sequence[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def named(self) -> dict[str, Any]:
        """All by name, the grid too."""
        return {**self.positional, **self.kwargs}

    @property
    def positional(self) -> dict[str, Any]:
        """By name those that were given without it."""
        return dict(zip(self.arg_names, self.args, strict=False))

    def with_options(self, config: TritonConfig) -> dict[str, Any]:
        """What hooks are given."""
        return {**self.named, **config.all_kwargs()}


def show(config: TritonConfig) -> str:
    """A configuration in a message."""
    return ", ".join(f"{name}={value}" for name, value in config.all_kwargs().items())


def stage_of(error: Exception) -> str:
    """The stage at which a configuration failed that raised this."""
    if isinstance(error, Rejected):
        return error.stage
    if isinstance(error, OutOfResources):
        return "limits"
    return "compile" if isinstance(error, (CompilationError, PTXASError)) else "launch"


def say(error: BaseException) -> str:
    """The end of a message: Triton quotes the source first. A cause says more than what it caused."""
    if isinstance(error, Rejected):
        return error.reason
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).partition("Repro command:")[0]
    return f"{type(error).__name__}: {' '.join(text.split())[-REASON_CHARS:]}"
