"""Linear algebra as searches need it: small matrices, and the same sums wherever a run is repeated."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any


@contextmanager
def one_thread() -> Generator[None]:
    """Keep linear algebra on the calling thread: the matrices are small, waiting threads would spin
    on the cores that compile, and sums must be added in one order wherever a run is repeated."""
    with _controller().limit(limits=1):
        yield


@cache
def _controller() -> Any:
    import_module("scipy.linalg")  # it has a BLAS of its own, which must be loaded to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
