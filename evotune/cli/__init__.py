"""The command line, a module for each command. Results go to stdout, everything else to stderr.

Exit codes: 0 found, 1 nothing valid found, 2 wrong use or configuration, 3 device or machine fault,
130 interrupted (the same command resumes).
"""

from __future__ import annotations

import sys

import typer

from evotune.cli import check, compare, record, run  # importing one registers its command
from evotune.cli.app import FOUND, INTERRUPTED, MACHINE_FAULT, WRONG_USE, app, fail
from evotune.errors import DeviceError, ProviderError, UsageError

__all__ = ["app", "check", "compare", "main", "record", "run"]


def main() -> None:
    """Entry point of the ``evotune`` command."""
    code: object = FOUND
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        fail(str(error), WRONG_USE)
    except DeviceError as error:
        fail(str(error), MACHINE_FAULT)
    except ProviderError as error:
        fail(str(error), WRONG_USE)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted; the same command goes on from here", INTERRUPTED)
    except Exception as error:
        # Click's errors of wrong usage know how to show themselves; anything else is a bug.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(WRONG_USE)
    if code == INTERRUPTED:
        sys.stderr.write("interrupted; the same command goes on from here\n")
    # Without its standalone mode, typer returns the code of a typer.Exit.
    sys.exit(code if isinstance(code, int) else FOUND)
