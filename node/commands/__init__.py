"""The `shoal` command, one file per subcommand."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The entry point: run the command line and end the process with what it means (exit_codes.py)."""
    try:
        open_standard_streams()
        from .cli import run_cli

        status = run_cli(sys.argv[1:])
    except KeyboardInterrupt:  # while modules were being loaded
        status = 130
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
