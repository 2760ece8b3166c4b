"""`shoal verify`: every check that an answer's record must pass, one line each."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli import Command, common
from .exit_codes import ExitCode
from .failures import CommandError
from .output import in_colour, print_json, print_text, without_controls

if TYPE_CHECKING:
    from ...cache.record import Step

EXAMPLES = """\
shoal verify bafyreib3...            a record that the running node has, or can fetch
shoal verify answer.cbor             a block in a file, without a node
shoal verify answer.receipt          a receipt, offline: record, content and question
shoal cache get --raw bafyreib3... | shoal verify -"""

MAX_FILE_BYTES = 4 * 1024 * 1024


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("what", metavar="CID|FILE")
@click.option("--cid", "expected", help="With FILE: the address that the block must have.")
@common
def command(what: str, expected: str | None, as_json: bool, data_dir: Path | None) -> int:
    """Check an answer's record: address, signature, request.

    A record names its signer by a peer id that is the public key, so it verifies by itself, wherever it comes from.
    """
    if what == "-" or Path(what).is_file():
        found = verify_file(what, expected)
    else:
        from .cache_command import checked_cid
        from .client import look_up

        found = look_up(data_dir, f"/shoal/v1/verify/{checked_cid(what)}")
    if as_json:
        print_json(found)
    else:
        print_steps(found.get("steps") or ())
        print_contents(found)
    return ExitCode.OK if found.get("ok") else ExitCode.REFUSED


def print_contents(found: Mapping[str, Any]) -> None:
    """Question and answer of a receipt that holds."""
    for message in found.get("messages") or ():
        print_text(f"\n{message.get('role')}: {without_controls(_text_of(message.get('content')))}\n")
    if "content" in found:
        who = f"{found.get('model') or 'a model without a name'} at {found.get('node')}"
        print_text(without_controls(f"\nanswer of {who}:\n{found['content']}\n"))


def _text_of(content: Any) -> str:
    """A message's content: a text, or parts of which some have one."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in parts if isinstance(part, dict))


def verify_file(name: str, expected: str | None) -> dict[str, Any]:
    """The checks on a block in a file (or stdin), without a node."""
    from ...cache.cid import CidError, parse_cid
    from ...cache.receipt import is_car
    from ...cache.record import explain

    if name == "-":
        block = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        with Path(name).open("rb") as file:
            block = file.read(MAX_FILE_BYTES + 1)
    if len(block) > MAX_FILE_BYTES:
        raise CommandError(f"{name}: is larger than a record may be", ExitCode.REFUSED)
    try:
        cid = parse_cid(expected) if expected is not None else None
    except CidError as error:
        raise CommandError(f"--cid: {error}", ExitCode.USAGE) from None
    if is_car(block):
        return verify_receipt(name, block, cid)
    return _said(explain(block, cid))


def verify_receipt(name: str, data: bytes, expected: bytes | None) -> dict[str, Any]:
    """The checks on a receipt (`shoal receipt`): what it says, and of which question and answer."""
    from ...cache.cid import cid_text
    from ...cache.receipt import ReceiptError, open_receipt
    from ...cache.record import Step, decode

    try:
        receipt = open_receipt(data)
    except ReceiptError as error:
        raise CommandError(f"{name}: {error}", ExitCode.REFUSED) from None
    steps = receipt.explain()
    if expected is not None and expected != receipt.cid:
        steps.insert(0, Step("address", False, f"the receipt is of {cid_text(receipt.cid)}, another record"))
    found = _said(steps)
    found["cid"] = cid_text(receipt.cid)
    if found["ok"]:
        record = decode(receipt.block, receipt.extra)
        found |= {"node": record.node, "model": record.model, "content": record.content}
        if receipt.question is not None:
            found["messages"] = receipt.question
    return found


def _said(steps: list[Step]) -> dict[str, Any]:
    ok = bool(steps) and all(step.ok is not False for step in steps)
    return {"ok": ok, "steps": [{"name": s.name, "ok": s.ok, "sentence": s.sentence} for s in steps]}


def print_steps(steps: Iterable[Mapping[str, Any]]) -> None:
    """One line a check, and the verdict."""
    colours = {True: "32", False: "1;31", None: "2"} if in_colour(sys.stdout) else {}
    bad = False
    for step in steps:
        ok = step.get("ok")
        bad = bad or ok is False
        mark = {True: "ok ", False: "BAD", None: "-- "}[ok]
        before, after = (f"\x1b[{colours[ok]}m", "\x1b[0m") if ok in colours else ("", "")
        text = without_controls(f"{step.get('name')}: {step.get('sentence')}").replace("\n", " ")
        print_text(f"{before}{mark}{after}  {text}\n")
    print_text("refused: this is not what its signer said\n" if bad else "verified\n")
