"""`shoal receipt`: one answer as a small file that anyone can check offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from .cli import Command, common, trio_run
from .exit_codes import ExitCode
from .failures import CommandError
from .output import print_json, print_text, size

EXAMPLES = """\
shoal receipt bafyreib3... -o answer.receipt
shoal receipt bafyreib3... --prompt "What is the opposite of hot?" -o answer.receipt
shoal verify answer.receipt          on any machine, without a node"""


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("cid")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write here, not to stdout.")
@click.option("--prompt", help="Show the question, too: the text as it was asked. `-` reads it from stdin.")
@click.option("--model", "-m", help="With --prompt: the model that was asked for.")
@click.option("--provider", "-p", help="With --prompt: the provider that was asked for.")
@click.option("--system", "-s", help="With --prompt: the system message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="With --prompt: the limit.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="With --prompt: the temperature.")
@click.option("--seed", type=int, help="With --prompt: the seed.")
@common
def command(
    cid: str, output: Path | None, prompt: str | None, as_json: bool, data_dir: Path | None, **options: Any
) -> None:
    """Export an answer's record so that another person can verify it with this file alone.

    CID is the answer's, or its request's. The public key is in the record: its node's name is the key.
    """
    from ...cache.cid import cid_text
    from .cache_command import checked_cid, write_bytes
    from .client import find_node

    if output is None and os.isatty(sys.stdout.fileno()):
        raise CommandError("this is binary; name a file with -o, or pipe it", ExitCode.USAGE)
    if output is None and as_json:
        raise CommandError("--json says what was written; name the file with -o", ExitCode.USAGE)
    question = None
    if prompt is not None:
        from .ask_command import read_question

        question = canonical(read_question(prompt), **options)
    find_node(data_dir)
    name, data = trio_run(fetch, data_dir, checked_cid(cid), question)
    write_bytes(data, output)
    if output is not None:
        said = {"cid": cid_text(name), "file": str(output), "bytes": len(data), "question": question is not None}
        if as_json:
            print_json(said)
        else:
            print_text(f"{output} ({size(len(data))}): check it with `shoal verify {output}`\n")


def canonical(text: str, *, system: str | None, **options: Any) -> bytes:
    """The canonical form of the request that `shoal ask` makes of the same words."""
    from ...cache.canonical import CanonicalError, canonical_bytes
    from ...providers.base import GenerateRequest, Message

    messages = (Message("system", system),) if system is not None else ()
    request = GenerateRequest(messages=(*messages, Message("user", text)), **options)
    try:
        return canonical_bytes(request)
    except CanonicalError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None


async def fetch(data_dir: Path | None, cid: str, question: bytes | None) -> tuple[bytes, bytes]:
    """(the record's CID, the receipt) from the running node, every check made here once more."""
    from ...cache.cid import DAG_CBOR, cid_of, cid_text
    from ...cache.receipt import ReceiptError, write
    from ...cache.record import RecordRefused, SignedRecord, verify
    from ...cache.schema import read
    from .client import connect

    async with connect(data_dir) as node:
        block = await node.raw(f"/shoal/v1/cache/{cid}?format=raw")
        try:
            linked = read(block)[1].content_cid
            extra = await node.raw(f"/ipfs/{cid_text(linked)}?format=raw") if linked is not None else None
            name = cid_of(DAG_CBOR, block)
            record = verify(block, name, extra=extra)
        except RecordRefused as refused:
            raise CommandError(f"{cid} is not an answer that verifies: {refused.sentence}", ExitCode.REFUSED) from None
    try:
        return name, write(SignedRecord(record, block, name, extra), question)
    except ReceiptError as error:
        raise CommandError(str(error), ExitCode.REFUSED) from None
