"""`shoal status`: what the running node is doing, on one screen."""

from __future__ import annotations

from pathlib import Path

import click

from .cache_command import flat
from .cli import Command, common
from .output import print_facts, print_json, size


@click.command(cls=Command, examples="shoal status\nshoal status --json")
@common
def command(as_json: bool, data_dir: Path | None) -> None:
    """Show what the running node is doing."""
    from .client import look_up

    found = look_up(data_dir, "/shoal/v1/status")
    if as_json:
        print_json(found)
    else:
        rows = flat(found)
        print_facts((n, size(v) if n.endswith("bytes") and isinstance(v, int) else v) for n, v in rows)
