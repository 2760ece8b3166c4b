"""The `shoal` command, one file per subcommand."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The entry point: run the command line and end the process with what it means (exit_codes.py)."""
    from . import interrupts

    status = interrupts.STATUS
    try:
        open_standard_streams()
        from .cli import run_cli

        interrupts.are_raised()
        status = run_cli(sys.argv[1:])
    except KeyboardInterrupt:  # between two lines of its own
        pass
    finally:
        interrupts.end_the_process()
    sys.exit(status)


def open_standard_streams() -> None:
    """Where one was closed by who started us (`>&-`), /dev/null: else the next file or socket would take its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  (open as long as the process)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
