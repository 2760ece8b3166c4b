"""`shoal pause`: the machine is wanted for something else; peers get nothing until `shoal resume`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from .cli import Command, common, trio_run
from .output import duration, print_json, print_text

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds_of(text: str) -> float:
    """ "90m" -> 5400.0. click.BadParameter otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise click.BadParameter('write it like "30m", "2h" or "1d"')
    return float(match[1]) * UNITS[match[2]]


@click.command(cls=Command, examples="shoal pause\nshoal pause --for 2h")
@click.option("--for", "span", metavar="TIME", help='Resume by itself after this time, "2h" for example.')
@common
def command(span: str | None, as_json: bool, data_dir: Path | None) -> None:
    """Lend nothing to peers until `shoal resume`; what they are being answered now goes on.

    The pause holds over restarts. Your own requests, and what peers read from the cache, are not affected.
    """
    seconds = seconds_of(span) if span is not None else None
    found = trio_run(tell, data_dir, "/shoal/v1/pause", {"seconds": seconds})
    if as_json:
        print_json(found)
    else:
        print_text(f"paused{f' for {duration(seconds)}' if seconds else ''}; `shoal resume` ends it\n")


async def tell(data_dir: Path | None, path: str, body: dict[str, object]) -> object:
    from .client import connect

    async with connect(data_dir) as node:
        return await node.post(path, body)
