"""Programs and answers of a model: text in, legal configurations out.

Nothing that a model wrote is executed by this process. :func:`extract` finds proposals in an
answer, :func:`run` turns one into a configuration behind a language sandbox and an operating
system's jail, :func:`render` writes a configuration as a program.
"""

from __future__ import annotations

from functools import cache

from evotune.program.answers import Extraction, Proposal, extract
from evotune.program.checking import check, clip
from evotune.program.rendering import render
from evotune.program.sandbox import Problem, Sandbox
from evotune.space import ConfigSpace, Value

__all__ = ["Extraction", "Problem", "Proposal", "Sandbox", "check", "clip", "extract", "render", "run"]


def run(source: str, space: ConfigSpace, problem: Problem | None = None) -> dict[str, Value]:
    """:meth:`Sandbox.run` in a sandbox that this process keeps, with ``standard`` isolation."""
    return _shared().run(source, space, problem)


@cache
def _shared() -> Sandbox:
    return Sandbox()
