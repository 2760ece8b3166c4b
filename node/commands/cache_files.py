"""`shoal cache export` and `shoal cache import`: answers to and from CAR files, through the running node."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from .cli import Command, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import console, print_json, print_text, size

if TYPE_CHECKING:
    from .client import Node

READ_BYTES = 256 * 1024
POST_BYTES = 1024 * 1024  # of blocks in one request to the node; a long answer may take it further
STALL_S = 60.0

Progress = Callable[[int, int], None]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.command(
    "export",
    cls=Command,
    examples="shoal cache export answers.car\nshoal cache export --since 7d --model smollm2 week.car\n"
    "ipfs dag import answers.car          Kubo reads it",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--since", metavar="WHEN", help="Made since then: 2026-01-31, or an age such as 12h or 7d.")
@click.option("--model", "-m", help="Of this model only.")
@common
def export(file: Path, since: str | None, model: str | None, as_json: bool, data_dir: Path | None) -> None:
    """Write the answers of the running node to FILE, a CAR with one root.

    The file holds them in the clear, those of a private swarm, too. It appears under its name when it is whole.
    """
    from .client import find_node

    query = {"since": since_ms(since)} | ({"model": model} if model else {})
    find_node(data_dir)
    found = trio_run(write_export, data_dir, file, f"/shoal/v1/cache/export?{urlencode(query)}")
    if as_json:
        print_json(found)
    else:
        print_text(f"{found['answers']} answers in {file} ({size(found['bytes'])}), root {found['root']}\n")


def since_ms(text: str | None, now: float | None = None) -> int:
    """A point in time as milliseconds since 1970. CommandError for what is none."""
    if text is None:
        return 0
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return max(0, int(((time.time() if now is None else now) - int(match[1]) * _UNITS[match[2]]) * 1000))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"--since: {text!r} is no time; write 2026-01-31, 2026-01-31T12:00 or an age such as 7d", ExitCode.USAGE
        ) from None
    return max(0, int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000))


async def write_export(data_dir: Path | None, file: Path, path: str) -> dict[str, Any]:
    """What came is written beside FILE first; a file that is there already is replaced when the new one is whole."""
    import trio

    from ...cache.car import CarReader
    from ...protocols.http.client import ClientError
    from .client import connect, lost, refusal

    part = file.with_name(f".{file.name}.part-{os.getpid()}")
    reader, written = CarReader(), 0
    try:
        async with connect(data_dir) as node:
            try:
                with part.open("wb") as out:
                    async with node.http.request("GET", node.url + path) as response:
                        if response.status >= 400:
                            raise refusal(response.status, await response.read(1 << 20))
                        answers = int(response.header("x-shoal-answers") or 0)
                        total = int(response.header("x-shoal-bytes") or 0)
                        root = response.header("x-ipfs-roots")
                        with bar("export", total) as progress, trio.CancelScope() as scope:
                            scope.deadline = trio.current_time() + STALL_S
                            async for chunk in response:
                                for _ in reader.feed(chunk):
                                    pass  # every hash is checked on the way
                                out.write(chunk)
                                written += len(chunk)
                                progress(written, total)
                                scope.deadline = trio.current_time() + STALL_S
                        if scope.cancelled_caught:
                            raise CommandError("the node has stopped sending; export again", ExitCode.NO_ANSWER)
                    reader.close()
                    out.flush()
                    os.fsync(out.fileno())
            except ClientError as error:
                raise lost(node.state, error) from None
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return {"answers": answers, "bytes": written, "root": root, "file": str(file)}


@click.command(
    "import",
    cls=Command,
    examples="shoal cache import answers.car\nshoal cache import --private answers.car",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--private", is_flag=True, help="Keep them to this node: peers do not get them from here.")
@common
def import_(file: Path, private: bool, as_json: bool, data_dir: Path | None) -> int:
    """Take the answers in FILE, a CAR, into the running node.

    Every answer is verified. What is there already is passed over, so an import that was cut short is simply run again.
    """
    from .client import find_node

    find_node(data_dir)
    found = trio_run(read_import, data_dir, file, "/shoal/v1/cache/import" + ("?public=false" if private else ""))
    refused = sum(found["refused"].values())
    if as_json:
        print_json(found)
    else:
        print_text(f"{found['imported']} answers taken in, {found['known']} were here already\n")
        for reason, count in sorted(found["refused"].items()):
            print_text(f"{count} refused: {reason}\n")
    return ExitCode.REFUSED if refused else ExitCode.OK


async def read_import(data_dir: Path | None, file: Path, path: str) -> dict[str, Any]:
    """The whole file is read and its hashes are checked before anything is sent."""
    import trio

    from .client import connect

    found: dict[str, Any] = {"imported": 0, "known": 0, "other": 0, "refused": {}}
    index = await trio.to_thread.run_sync(_index, file)
    async with connect(data_dir) as node:
        with bar("import", (await trio.Path(file).stat()).st_size) as progress:
            for body, done in _parcels(file, index):
                counts = await _post(node, path, body)
                for name in ("imported", "known", "other"):
                    found[name] += counts.get(name, 0)
                for reason, count in (counts.get("refused") or {}).items():
                    found["refused"][reason] = found["refused"].get(reason, 0) + count
                progress(done, 0)
    return found


async def _post(node: Node, path: str, body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = node.json(await node.ask("POST", path, body))
    return answer


def _sections(file: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """(CID, block, bytes read so far) of a CAR file. CommandError when it is broken."""
    from ...cache.car import CarError, CarReader

    reader = CarReader()
    try:
        with file.open("rb") as source:
            while data := source.read(READ_BYTES):
                for cid, block in reader.feed(data):
                    yield cid, block, source.tell()
        reader.close()
    except CarError as error:
        raise CommandError(f"{file}: {error}", ExitCode.REFUSED) from None


def _index(file: Path) -> set[bytes]:
    """The contents that records of the file link: blocks to be sent with their record, wherever they stand."""
    from ...cache.archive import links_of
    from ...cache.cid import CidError

    linked: set[bytes] = set()
    for cid, block, _ in _sections(file):
        with contextlib.suppress(CidError):
            if b"csig" in block:
                linked.update(links_of(cid, block))
    return linked


def _parcels(file: Path, linked: set[bytes]) -> Iterator[tuple[bytes, int]]:
    """Small CARs, each with whole answers, and how far into the file they reach.

    A linked content waits for its record, and a record for its content; a file has few of them, as only what is longer
    than 252 KB is linked.
    """
    from ...cache.archive import links_of
    from ...cache.car import header, section
    from ...cache.cid import RAW, CidError, codec_of

    contents: dict[bytes, bytes] = {}
    early: list[tuple[bytes, bytes, bytes]] = []  # records whose content comes later
    parcel, done = bytearray(header([])), 0
    empty = len(parcel)
    for cid, block, done in _sections(file):
        try:
            raw = codec_of(cid) == RAW
        except CidError:
            continue
        if raw and cid in linked:
            contents[cid] = block
            for waiting in [one for one in early if one[2] == cid]:
                early.remove(waiting)
                parcel += section(cid, block) + section(waiting[0], waiting[1])
        else:
            needs = [] if raw else [link for link in links_of(cid, block) if link in linked] if b"csig" in block else []
            content = next((link for link in needs if _is_content(block, link)), None)
            if content is not None and content not in contents:
                early.append((cid, block, content))
            else:
                if content is not None:
                    parcel += section(content, contents[content])
                parcel += section(cid, block)
        if len(parcel) >= POST_BYTES:
            yield bytes(parcel), done
            parcel = bytearray(header([]))
    for cid, block, _ in early:
        parcel += section(cid, block)  # its content is not in the file: the node refuses and counts it
    if len(parcel) > empty:
        yield bytes(parcel), done


def _is_content(block: bytes, link: bytes) -> bool:
    from ...cache.schema import RecordRefused, read

    try:
        return read(block)[1].content_cid == link
    except RecordRefused:
        return False


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total or None)
        yield lambda done, of: shown.update(task, completed=done, total=of or total or None)
