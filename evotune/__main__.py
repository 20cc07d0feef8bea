"""``python -m evotune`` is the ``evotune`` command."""

import sys


def main() -> None:
    """The command, also while it is still being imported, which Ctrl-C ends without a traceback."""
    try:
        from evotune.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
