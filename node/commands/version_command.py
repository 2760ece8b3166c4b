"""`shoal version`."""

from __future__ import annotations

import platform
from typing import Any

import click

from .cli import Command, debug_option, json_option


def facts() -> dict[str, Any]:
    """The versions that matter in a report of a fault."""
    from ..version import version

    return {
        "version": version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def line() -> str:
    known = facts()
    return f"shoal {known['version']} (Python {known['python']}, {known['system']})"


@click.command(cls=Command, examples="shoal version\nshoal version --json")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """Show the version."""
    if as_json:
        from .output import print_json

        print_json(facts())
    else:
        click.echo(line())
