"""`shoal resume`: peers get what is shared again."""

from __future__ import annotations

from pathlib import Path

import click

from .cli import Command, common, trio_run
from .output import print_json, print_text
from .pause_command import tell


@click.command(cls=Command, examples="shoal resume")
@common
def command(as_json: bool, data_dir: Path | None) -> None:
    """Lend to peers again what the configuration shares."""
    found = trio_run(tell, data_dir, "/shoal/v1/resume", {})
    if as_json:
        print_json(found)
    else:
        print_text("peers get again what is shared; see `shoal providers`\n")
