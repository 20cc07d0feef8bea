"""What the tests of measuring on the CPU share."""

from __future__ import annotations

import pytest

from evotune.cpu import find_compiler
from evotune.errors import UsageError


@pytest.fixture(scope="module")
def _needs_a_compiler(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For tests that compile C; those of finding a compiler are to run without one, too."""
    try:
        find_compiler(tmp_path_factory.mktemp("compiler"))
    except UsageError as error:
        pytest.skip(str(error))
