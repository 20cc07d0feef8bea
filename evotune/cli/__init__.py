"""The command line, a module for each command. Results go to stdout, everything else to stderr.

Exit codes: 0 found, 1 nothing valid found, 2 wrong use or configuration, 3 device or machine fault,
130 interrupted (the same command resumes), 141 whoever read the output has gone.
"""

from __future__ import annotations

import errno
import signal
import sys

import typer

# Importing one registers its command.
from evotune.cli import batch, check, compare, doctor, export, listing, merge, record, report, run, show, streams
from evotune.cli.app import FOUND, INTERRUPTED, MACHINE_FAULT, WRONG_USE, app, fail
from evotune.errors import DeviceError, ProviderError, UsageError

CLOSED_PIPE = 128 + signal.SIGPIPE  # as a shell tells it of any other program: evotune … | head -1
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

__all__ = [
    "app",
    "batch",
    "check",
    "compare",
    "doctor",
    "export",
    "listing",
    "main",
    "merge",
    "record",
    "report",
    "run",
    "show",
]


def main() -> None:
    """Entry point of the ``evotune`` command."""
    streams.prepare()
    code: object = FOUND
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()  # what cannot be written is found out here, not while the process ends
    except BrokenPipeError:
        streams.write_no_more()
        sys.exit(CLOSED_PIPE)
    except UsageError as error:
        fail(str(error), WRONG_USE)
    except DeviceError as error:
        fail(str(error), MACHINE_FAULT)
    except ProviderError as error:
        fail(str(error), WRONG_USE)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted; the same command goes on from here", INTERRUPTED)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        streams.write_no_more()
        fail(
            f"the result cannot be written: {error.strerror}; free some space, and give the command again",
            MACHINE_FAULT,
        )
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
