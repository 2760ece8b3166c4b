"""`shoal cache`: what the running node remembers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from .cli import Group, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import print_facts, print_json, print_table, print_text, size, without_controls

EXAMPLES = """\
shoal cache get bafyreib3...         the answer behind a CID
shoal cache get --raw CID > answer.cbor
shoal cache stats
shoal cache list --limit 20"""


@click.group(cls=Group, examples=EXAMPLES)
def command() -> None:
    """Look into the cache of answers."""


def checked_cid(text: str) -> str:
    """A CID as it may stand in a path. CommandError (usage) otherwise."""
    if not text.isascii() or not text.isalnum() or not 10 <= len(text) <= 200:
        raise CommandError(f"{text!r} is neither a CID nor a file; a CID looks like bafyrei...", ExitCode.USAGE)
    return text


@command.command("get", examples="shoal cache get bafyreib3...\nshoal cache get --raw CID -o answer.cbor")
@click.argument("cid")
@click.option("--raw", is_flag=True, help="The block as it is: dag-cbor bytes.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write here, not to stdout.")
@common
def get(cid: str, raw: bool, output: Path | None, as_json: bool, data_dir: Path | None) -> None:
    """Fetch an answer by its CID, from this node or its peers, and check it."""
    from .client import connect, find_node

    path = f"/shoal/v1/cache/{checked_cid(cid)}"
    find_node(data_dir)

    async def fetch() -> Any:
        async with connect(data_dir) as node:
            return await (node.raw(path + "?format=raw") if raw else node.get(path))

    found = trio_run(fetch)
    if raw:
        write_bytes(found, output)
    elif as_json:
        if output is None:
            print_json(found)
        else:
            import msgspec

            output.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    elif output is not None:
        output.write_text(str(found.get("content", "")), encoding="utf-8")
    else:
        content = str(found.get("content", ""))
        print_text((without_controls(content) if sys.stdout.isatty() else content) + "\n")


def write_bytes(data: bytes, output: Path | None) -> None:
    if output is not None:
        output.write_bytes(data)
    elif os.isatty(sys.stdout.fileno()):
        raise CommandError("this is binary; name a file with -o, or pipe it", ExitCode.USAGE)
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@command.command("stats", examples="shoal cache stats --json")
@common
def stats(as_json: bool, data_dir: Path | None) -> None:
    """Show sizes, hits and refusals."""
    from .client import look_up

    found = look_up(data_dir, "/shoal/v1/cache")
    if as_json:
        print_json(found)
        return
    rows = flat(found)
    print_facts(
        (name, size(value) if name.endswith("bytes") and isinstance(value, int) else value) for name, value in rows
    )


def flat(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested tables as dotted names. Lists are left out."""
    rows: list[tuple[str, Any]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            rows.append((prefix + name, value))
    return rows


@command.command("list", examples="shoal cache list --limit 20")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The newest so many.")
@common
def list_(limit: int, as_json: bool, data_dir: Path | None) -> None:
    """List the answers that are stored, the newest first."""
    from .client import look_up

    found = look_up(data_dir, f"/shoal/v1/cache?{urlencode({'list': limit})}")
    answers = found.get("answers") or []
    if as_json:
        print_json(answers)
        return
    columns = ("CID", "model", "provider", "bytes", "node")
    rows = [[answer.get(name.lower(), "") for name in columns] for answer in answers]
    print_table(columns, rows, empty="nothing is stored yet")
