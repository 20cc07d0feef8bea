"""Makes our searches known to Helion by name, now or when it is imported.

Helion looks up ``HELION_AUTOTUNER`` in a table when a kernel is tuned. Importing Helion only to write into
that table would cost everybody torch, who wants no more than the peers of a comparison.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

TABLE = "helion.autotuner"


def register() -> None:
    """Add our searches to Helion's, or see to it that this happens."""
    if TABLE in sys.modules:
        _add()
    elif not any(isinstance(finder, _Awaiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Awaiting())


class _Awaiting(MetaPathFinder):
    """Finds nothing itself; has our searches added as soon as the table is there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TABLE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            _then_add(spec.loader)
        return spec


def _then_add(loader: Any) -> None:
    execute = loader.exec_module

    def execute_and_add(module: ModuleType) -> None:
        execute(module)
        _add()

    loader.exec_module = execute_and_add


def _add() -> None:
    """Import what adds itself at its end: it may be that module whose import of Helion brought us here."""
    try:
        import_module("evotune.helion.plugin")
    except ImportError as error:  # of another version of Helion: its own searches must go on working
        log.warning("evotune's searches do not fit this version of Helion (wanted: 1.5): %s", error)
