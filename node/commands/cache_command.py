"""`shoal cache`: what the running node remembers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from . import cache_files
from .cli import Group, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import duration, print_facts, print_json, print_table, print_text, size, without_controls

EXAMPLES = """\
shoal cache get bafyreib3...         the answer behind a CID
shoal cache get --raw CID > answer.cbor
shoal cache stats
shoal cache list --limit 20
shoal cache forget --prompt "What is the opposite of hot?"
shoal cache export answers.car"""


@click.group(cls=Group, examples=EXAMPLES, alone="stats")
def command() -> None:
    """Look into the cache of answers, and keep, forget, export or import them."""


command.add_command(cache_files.export)
command.add_command(cache_files.import_)


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
    print_facts(facts(found))


def facts(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The lines of the screen: (name, value)."""
    hits, misses = found.get("hits") or {}, found.get("misses", 0)
    hit = sum(hits.values())
    tiers = ", ".join(f"{count} from {tier}" for tier, count in hits.items() if count)
    yield "look-ups", f"{hit} of {hit + misses} found{f': {tiers}' if tiers else ''}"
    yield "new", f"{found.get('remembered', 0)} answers kept since the start"
    yield "keys", f"as {found.get('mode')}{', sealed for the swarm' if found.get('sealed') else ''}"
    for tier in ("memory", "disk"):
        if held := found.get(tier):
            room = f"{size(held.get('bytes', 0))} of {size(held.get('max_bytes', 0))}"
            said = [f"{held.get('answers', 0)} answers", room]
            said += [f"{held[name]} {name}" for name in ("evicted", "dropped", "failed", "damaged") if held.get(name)]
            if held.get("waiting_bytes"):
                said.append(f"{size(held['waiting_bytes'])} waiting to be written")
            yield tier, ", ".join([*said, *([held["reason"]] if held.get("reason") else [])])
            for file in held.get("set_aside") or ():
                yield "set aside", file
    for tier, asked in (found.get("looked_up") or {}).items():
        if asked.get("asked"):
            each = duration(asked.get("seconds", 0.0) / asked["asked"])
            yield tier, f"asked {asked['asked']} times, {asked.get('found', 0)} found, {each} each"
    if refused := found.get("refused"):
        yield "refused", ", ".join(f"{count} {reason}" for reason, count in refused.items())
    if publisher := found.get("publisher"):
        said = [f"{publisher.get(name, 0)} {name}" for name in ("published", "withdrawn", "refused", "queued")]
        yield "IPFS", f"{publisher.get('state')} at {publisher.get('address')}: {', '.join(said)}"
        if publisher.get("last_error"):
            yield "IPFS fault", publisher["last_error"]


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


@command.command("pin", examples="shoal cache pin bafyreib3...")
@click.argument("cid")
@common
def pin(cid: str, as_json: bool, data_dir: Path | None) -> None:
    """Keep an answer whatever the size of the cache says. CID: the answer's, or its request's."""
    _pin(cid, True, as_json, data_dir)


@command.command("unpin", examples="shoal cache unpin bafyreib3...")
@click.argument("cid")
@common
def unpin(cid: str, as_json: bool, data_dir: Path | None) -> None:
    """Let an answer go again when the cache is full and it was not used for long."""
    _pin(cid, False, as_json, data_dir)


def _pin(cid: str, pinned: bool, as_json: bool, data_dir: Path | None) -> None:
    found = _post(data_dir, "/shoal/v1/cache/pin", {"cid": checked_cid(cid), "pinned": pinned})
    if as_json:
        print_json(found)
    else:
        print_text(f"{count_of(found.get('answers', 0))} {'pinned' if pinned else 'no longer pinned'}\n")


@command.command(
    "forget",
    examples='shoal cache forget bafyreib3...\nshoal cache forget --prompt "What is the opposite of hot?"\n'
    'shoal cache forget --prompt "Name three rivers." --model smollm2 --max-tokens 64',
)
@click.argument("cid", required=False)
@click.option("--prompt", help="The question, as it was asked. `-` reads it from stdin.")
@click.option("--model", "-m", help="With --prompt: asked of this model. Without: of any whose answers are here.")
@click.option("--provider", "-p", help="With --prompt: of this provider.")
@click.option("--system", "-s", help="With --prompt: with this system message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="With --prompt: with this limit.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="With --prompt: at this temperature. Without: at 0.")
@click.option("--seed", type=int, help="With --prompt: with this seed.")
@common
def forget(cid: str | None, prompt: str | None, as_json: bool, data_dir: Path | None, **options: Any) -> None:
    """Remove an answer from this node, and from the IPFS daemon it was published to.

    Give the CID of the answer or of its request, or the question itself. It says what cannot be taken back.
    """
    if (cid is None) == (prompt is None):
        raise CommandError("give either a CID or --prompt", ExitCode.USAGE)
    if cid is not None:
        body: dict[str, Any] = {"cid": checked_cid(cid)}
    else:
        from .ask_command import body_of, read_question

        question = body_of(read_question(prompt), **options)
        body = {"request": question, "near": True}
    found = _post(data_dir, "/shoal/v1/cache/forget", body)
    if as_json:
        print_json(found)
        return
    print_text(f"{count_of(found.get('records', 0))} forgotten here\n")
    for note in found.get("notes") or ():
        print_text(f"{note}\n")


def count_of(number: int) -> str:
    return "1 answer" if number == 1 else f"{number} answers"


def _post(data_dir: Path | None, path: str, body: dict[str, Any]) -> Any:
    from .client import connect, find_node

    find_node(data_dir)

    async def post() -> Any:
        async with connect(data_dir) as node:
            return await node.post(path, body)

    return trio_run(post)
