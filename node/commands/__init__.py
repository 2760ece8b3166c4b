"""The `shoal` command, one file per subcommand."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point: run the command line and end the process with what it means (exit_codes.py)."""
    from .cli import run_cli

    sys.exit(run_cli(sys.argv[1:]))
