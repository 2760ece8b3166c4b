"""How a record stands in its block: the fields, their types and limits, and what is signed.

Nothing here makes a record or believes one; record.py does. docs/record.md is the specification in words.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import cbrrr
from msgspec import Struct

from ..protocols.peer_id import PeerId
from ..providers.base import FinishReason, Usage
from .cid import CID_BYTES, DIGEST_BYTES, RAW, CidError, codec_of

VERSION = 1
SIGNING_PREFIX = b"shoal/record/1\0"  # what is signed begins with it, so no other signature of a node fits a record

MAX_BLOCK_BYTES = 256 * 1024  # a record block is smaller, so that every IPFS node relays it
MAX_CONTENT_BYTES = 1024 * 1024  # of a linked raw block: older Kubo relays none above it
MAX_INLINE_BYTES = MAX_BLOCK_BYTES - 4096  # of a content in the record itself; the other fields fit in the rest
MAX_NAME_CHARS = 256

FINISHES = ("stop", "length")

_REQUIRED = frozenset(("v", "request", "model", "provider", "content", "finish", "usage", "created", "node", "sig"))
_OPTIONAL = frozenset(("text",))
_SIG_HEAD = b"\x63sig\x58\x40"  # a text of 3 bytes, and the head of 64 bytes (RFC 8949, section 3)
_COUNTS = ("prompt_tokens", "completion_tokens")
_EXTRA_COUNTS = ("cached_tokens", "reasoning_tokens")

Reason = Literal[
    "size", "cid", "schema", "version", "node", "request", "age", "trust", "content", "model", "empty", "signature"
]


class RecordRefused(Exception):
    """A record did not pass a check. reason: a code to count by; sentence: for people, without any of the content."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(reason, sentence)
        self.reason, self.sentence = reason, sentence

    def __str__(self) -> str:
        return f"{self.reason}: {self.sentence}"


class Record(Struct, frozen=True, kw_only=True, gc=False):
    """An answer, as its block says. Times in milliseconds since 1970 UTC; CIDs and digests binary.

    request: the CID (36 bytes) or the digest (32 bytes) of the canonical request. It is bytes and not a link on
    purpose: nobody publishes requests, and a pin or an export that follows links would wait for that block for ever.
    content_cid: set when the content is a linked raw block. text_cid: set when the record links, for people with a
    browser, a raw block with the same text as `content`.
    """

    v: int = VERSION
    request: bytes
    model: str | None
    provider: str
    content: str
    finish: FinishReason
    usage: Usage | None
    created: int
    node: PeerId
    sig: bytes
    content_cid: bytes | None = None
    text_cid: bytes | None = None

    def without_content(self) -> bytes:
        """The record for whoever has just streamed its content: `rebuild` makes the exact block from both."""
        form = form_of(self)
        if self.content_cid is None:
            del form["content"]
        return bytes(cbrrr.encode_dag_cbor(form))

    def age_s(self, now_ms: int | None = None) -> float:
        """Seconds since the answer was made; negative when its node's clock is ahead of ours."""
        return ((int(time.time() * 1000) if now_ms is None else now_ms) - self.created) / 1000


def form_of(record: Record) -> dict[str, Any]:
    """The map that a block holds, in Python's types."""
    form: dict[str, Any] = {
        "v": record.v,
        "request": record.request,
        "model": record.model,
        "provider": record.provider,
        "content": record.content if record.content_cid is None else cbrrr.CID(record.content_cid),
        "finish": record.finish,
        "usage": usage_form(record.usage),
        "created": record.created,
        "node": record.node,
        "sig": record.sig,
    }
    if record.text_cid is not None:
        form["text"] = cbrrr.CID(record.text_cid)
    return form


def usage_form(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    form: dict[str, Any] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    if usage.cached_tokens:
        form["cached_tokens"] = usage.cached_tokens
    if usage.reasoning_tokens:
        form["reasoning_tokens"] = usage.reasoning_tokens
    if usage.cost is not None:
        form["cost"] = float(usage.cost)
    return form


def signed_part(form: dict[str, Any]) -> bytes:
    """What the signature covers: the prefix, and the canonical dag-cbor of the map without `sig`."""
    return SIGNING_PREFIX + bytes(cbrrr.encode_dag_cbor({k: v for k, v in form.items() if k != "sig"}))


def with_signature(unsigned: bytes, sig: bytes) -> bytes:
    """The block, from the canonical dag-cbor of the map without `sig`, as `signed_part` has it behind the prefix.

    In the canonical order (the shorter name first) it stands between `v`, 3 bytes behind the map's head, and the rest.
    """
    return b"%c%b%b%b%b" % (unsigned[0] + 1, unsigned[1:4], _SIG_HEAD, sig, unsigned[4:])


def read(block: bytes) -> tuple[dict[str, Any], Record]:
    """The map in a block, and the record it says; the content of a linked raw block is left empty.

    RecordRefused ("schema", "version" or "empty") unless it is strict dag-cbor with exactly a record's fields.
    """
    try:
        form = cbrrr.decode_dag_cbor(block)
    except (ValueError, TypeError):
        raise RecordRefused("schema", "the block is not strict dag-cbor") from None
    if not isinstance(form, dict):
        raise RecordRefused("schema", "the block is not a map")
    if type(form.get("v")) is int and form["v"] != VERSION:
        raise RecordRefused("version", f"the record has version {form['v']}; this Shoal reads version {VERSION}")
    if not (form.keys() >= _REQUIRED and form.keys() <= _REQUIRED | _OPTIONAL):
        raise RecordRefused("schema", "the map does not have the fields of a record")
    if (fault := fault_of(form)) is not None:
        raise RecordRefused("schema", fault)
    if bytes(cbrrr.encode_dag_cbor(form)) != block:
        raise RecordRefused("schema", "the block is not in canonical form")
    content, text = form["content"], form.get("text")
    if content == "":
        raise RecordRefused("empty", "the record holds an empty answer")
    linked = not isinstance(content, str)
    record = Record(
        request=form["request"],
        model=form["model"],
        provider=form["provider"],
        content="" if linked else content,
        finish=form["finish"],
        usage=Usage(**form["usage"]) if form["usage"] else None,
        created=form["created"],
        node=PeerId(form["node"]),
        sig=form["sig"],
        content_cid=content.cid_bytes if linked else None,
        text_cid=None if text is None else text.cid_bytes,
    )
    return form, record


def fault_of(form: dict[str, Any]) -> str | None:
    """What is wrong with the types and sizes of a record's fields, the first thing found."""
    if type(form["v"]) is not int:
        return "`v` is not an integer"
    if type(form["request"]) is not bytes or len(form["request"]) not in (CID_BYTES, DIGEST_BYTES):
        return f"`request` is not {CID_BYTES} bytes (a CID) or {DIGEST_BYTES} bytes (a digest)"
    if len(form["request"]) == CID_BYTES:
        try:
            codec_of(form["request"])
        except CidError as error:
            return f"`request` is {error}"
    if type(form["content"]) is not str and not _is_raw_link(form["content"]):
        return "`content` is not a text or a link to a raw block"
    if "text" in form and (type(form["content"]) is not str or not _is_raw_link(form["text"])):
        return "`text` is not a link to a raw block beside a content in full"
    if type(form["node"]) is not str:
        return "`node` is not a text"
    if type(form["sig"]) is not bytes or len(form["sig"]) != 64:
        return "`sig` is not 64 bytes"
    return fault_of_answer(form)


def fault_of_answer(form: dict[str, Any]) -> str | None:
    """The same for the fields that whoever answered has a say in."""
    if form["model"] is not None and not _is_name(form["model"]):
        return f"`model` is not null or a text of 1 to {MAX_NAME_CHARS} characters"
    if not _is_name(form["provider"]):
        return f"`provider` is not a text of 1 to {MAX_NAME_CHARS} characters"
    if form["finish"] not in FINISHES:
        return '`finish` is not "stop" or "length"'
    if type(form["created"]) is not int or not 0 <= form["created"] < 2**53:
        return "`created` is not a time in milliseconds"
    return _usage_fault(form["usage"])


def _usage_fault(usage: Any) -> str | None:
    if type(usage) is not dict:
        return "`usage` is not a map"
    if not usage:
        return None
    for name in _COUNTS:
        if type(usage.get(name)) is not int or not 0 <= usage[name] < 2**53:
            return f"`usage.{name}` is not a count"
    for name in _EXTRA_COUNTS:
        if name in usage and (type(usage[name]) is not int or not 0 < usage[name] < 2**53):
            return f"`usage.{name}` is not a count above 0"
    if "cost" in usage and (type(usage["cost"]) is not float or usage["cost"] < 0):
        return "`usage.cost` is not a float of 0 or more"
    if not usage.keys() <= {*_COUNTS, *_EXTRA_COUNTS, "cost"}:
        return "`usage` has a field that is not a record's"
    return None


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_NAME_CHARS


def _is_raw_link(value: Any) -> bool:
    if not isinstance(value, cbrrr.CID):
        return False
    try:
        return codec_of(value.cid_bytes) == RAW
    except CidError:
        return False
