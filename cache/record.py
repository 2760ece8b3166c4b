"""The record: an answer as a signed dag-cbor block, and every check that one from outside must pass.

A record says: node `node` declares that, for the request named `request`, `provider` with `model` gave `content`.
The peer id in `node` is the public key, so a record verifies by itself. docs/record.md is the format's specification
with byte-exact vectors. Longer content is a raw block of its own that the record links (`SignedRecord.extra`).

    signed = sign(identity, key, request, provider="local_hf", model="smollm2", content="Cold.", finish="stop")
    record = verify(signed.block, signed.cid, key.cid)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import cbrrr
from msgspec import Struct
from msgspec.structs import replace

from ..protocols.peer_id import Identity, PeerId, public_key_of
from ..protocols.peer_id import verify as verify_signature
from ..providers.base import Event, Finish, FinishReason, GenerateRequest, TextDelta, Usage
from .cid import DAG_CBOR, RAW, CidError, cid_of, cid_text, codec_of, holds
from .key import Key, same_request
from .schema import (
    FINISHES,
    MAX_BLOCK_BYTES,
    MAX_CONTENT_BYTES,
    MAX_INLINE_BYTES,
    SIGNING_PREFIX,
    VERSION,
    Reason,
    Record,
    RecordRefused,
    fault_of_answer,
    read,
    signed_part,
    usage_form,
    with_signature,
)

__all__ = [
    "Reason",
    "Record",
    "RecordError",
    "RecordRefused",
    "SignedRecord",
    "Step",
    "decode",
    "events",
    "explain",
    "rebuild",
    "sign",
    "verify",
]

MAX_CLOCK_SKEW_S = 600  # how far a record's `created` may lie in our future


class RecordError(ValueError):
    """This answer must not become a record (empty, cut off, another model than the pinned one, too long)."""


class SignedRecord(Struct, frozen=True, gc=False):
    """A record with its block. extra: the raw block with the content as UTF-8, when it is not in the record."""

    record: Record
    block: bytes
    cid: bytes
    extra: bytes | None = None

    @classmethod
    def of(cls, record: Record, block: bytes, extra: bytes | None) -> SignedRecord:
        """A verified record with its CID. extra: only when the record links it."""
        return cls(record, block, cid_of(DAG_CBOR, block), extra)

    @property
    def cid_text(self) -> str:
        return cid_text(self.cid)

    @property
    def extra_cid(self) -> bytes | None:
        return self.record.content_cid if self.extra is not None else None

    @property
    def blocks(self) -> list[tuple[bytes, bytes]]:
        """(CID, block) of everything there is to publish: what is linked first, the record last.

        A linked text is made here from the content, so that nothing is kept twice.
        """
        blocks = [(self.cid, self.block)]
        if self.extra is not None and self.extra_cid is not None:
            blocks.insert(0, (self.extra_cid, self.extra))
        elif self.record.text_cid is not None:
            blocks.insert(0, (self.record.text_cid, self.record.content.encode()))
        return blocks


# -- making ----------------------------------------------------------------------------------------------------


def sign(
    identity: Identity,
    key: Key,
    request: GenerateRequest,
    *,
    provider: str,
    model: str | None,
    content: str,
    finish: FinishReason,
    usage: Usage | None = None,
    created_ms: int | None = None,
    aliases: Collection[str] = (),
    link_text: bool = False,
) -> SignedRecord:
    """The record of an answer, signed by this node.

    provider, model: who really answered. When the request pins one, it must be that one, or `aliases` must say that
    the model's name stands for the pinned one (an upstream that answers "x-2026-01-01" to "x"); so a fallback's answer
    never gets under another's name. link_text: also link the text as a raw block, which any gateway shows.
    RecordError when this must not be a record.
    """
    if not content:
        raise RecordError("an empty answer is not stored: the provider failed, whatever it said")
    if finish not in FINISHES:
        raise RecordError(f"an answer that ended with {finish!r} is not stored")
    if request.model is not None and model != request.model and model not in aliases:
        raise RecordError("the request pins another model than the one that answered")
    if request.provider is not None and provider != request.provider:
        raise RecordError("the request pins another provider than the one that answered")
    try:
        raw = content.encode()
    except UnicodeEncodeError:
        raise RecordError("the answer holds half a surrogate pair, which has no UTF-8 form") from None
    if len(raw) > MAX_CONTENT_BYTES:
        raise RecordError(f"the answer is longer than {MAX_CONTENT_BYTES} bytes")
    created = int(time.time() * 1000) if created_ms is None else created_ms
    linked = cid_of(RAW, raw) if len(raw) > MAX_INLINE_BYTES else None
    text = cid_of(RAW, raw) if link_text and linked is None else None
    form = {
        "v": VERSION,
        "request": key.reference,
        "model": model,
        "provider": provider,
        "content": content if linked is None else cbrrr.CID(linked),
        "finish": finish,
        "usage": usage_form(usage),
        "created": created,
        "node": identity.peer_id,
    }
    if text is not None:
        form["text"] = cbrrr.CID(text)
    if (fault := fault_of_answer(form)) is not None:
        raise RecordError(f"the answer does not make a record: {fault}")
    try:
        unsigned = cbrrr.encode_dag_cbor(form)
    except (ValueError, TypeError) as error:
        raise RecordError(f"the answer does not make a record: {type(error).__name__} in dag-cbor") from None
    sig = identity.sign(SIGNING_PREFIX + unsigned)
    block = with_signature(unsigned, sig)
    record = Record(
        request=key.reference,
        model=model,
        provider=provider,
        content=content,
        finish=finish,
        usage=usage,
        created=created,
        node=identity.peer_id,
        sig=sig,
        content_cid=linked,
        text_cid=text,
    )
    return SignedRecord(record, block, cid_of(DAG_CBOR, block), None if linked is None else raw)


# -- using -----------------------------------------------------------------------------------------------------


def events(record: Record) -> list[Event]:
    """The record as a provider would have said it. Every prompt token counts as cached, and nothing was spent."""
    said: list[Event] = [TextDelta(record.content)]
    if (usage := record.usage) is not None:
        cost = None if usage.cost is None else 0.0
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        said.append(Usage(prompt, completion, cached_tokens=prompt, reasoning_tokens=usage.reasoning_tokens, cost=cost))
    said.append(Finish(record.finish, record.model))
    return said


def rebuild(
    meta: bytes, content: str, cid: bytes | None = None, request: bytes | None = None, **checks: Any
) -> SignedRecord:
    """The signed record from `Record.without_content()` and the text that was relayed, verified like any other.

    checks: as for `verify`. RecordRefused when the text is not what the node signed.
    """
    if len(meta) >= MAX_BLOCK_BYTES:
        raise RecordRefused("size", "the record without its content is larger than a record may be")
    try:
        form = cbrrr.decode_dag_cbor(meta)
        raw = content.encode()
    except (ValueError, TypeError):
        raise RecordRefused("schema", "the record without its content is not dag-cbor") from None
    if not isinstance(form, dict):
        raise RecordRefused("schema", "a record is a map")
    if "content" not in form:
        form["content"] = content
    elif not isinstance(form["content"], cbrrr.CID):
        raise RecordRefused("schema", "the record without its content has one")
    block = bytes(cbrrr.encode_dag_cbor(form))
    record = verify(block, cid, request, extra=raw, **checks)
    return SignedRecord(record, block, cid_of(DAG_CBOR, block), raw if record.content_cid else None)


def decode(block: bytes, extra: bytes | None = None) -> Record:
    """The record in a block that was verified before (our own store's). RecordRefused when it is not one."""
    check = _Check(block, None, None, extra, 0, None, None)
    check.schema()
    check.content()
    return check.record


# -- checking --------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One check of `explain`. ok: None when it was not made, since an earlier one failed or nothing was given."""

    name: str
    ok: bool | None
    sentence: str


def verify(
    block: bytes,
    cid: bytes | None = None,
    request: bytes | None = None,
    *,
    extra: bytes | None = None,
    now_ms: int | None = None,
    max_age_s: float | None = None,
    trusted: Callable[[PeerId], bool] | None = None,
) -> Record:
    """The record in `block`, after every check. RecordRefused names the first that failed.

    cid: the block's, when it was asked for by CID. request: the CID or digest of the request it must answer.
    extra: the linked raw block. max_age_s: seconds. trusted: the trust rule. What is None is not checked, but the
    signature, the schema, the sizes and a time from the future always are.
    """
    now = int(time.time() * 1000) if now_ms is None else now_ms
    check = _Check(block, cid, request, extra, now, max_age_s, trusted)
    for _, make, _ in _CHECKS:
        make(check)
    return check.record


def explain(
    block: bytes,
    cid: bytes | None = None,
    request: bytes | None = None,
    *,
    extra: bytes | None = None,
    now_ms: int | None = None,
    max_age_s: float | None = None,
    trusted: Callable[[PeerId], bool] | None = None,
) -> list[Step]:
    """What `verify` checks, step by step, each with a sentence; all of it, not only until the first failure."""
    now = int(time.time() * 1000) if now_ms is None else now_ms
    check = _Check(block, cid, request, extra, now, max_age_s, trusted)
    steps: list[Step] = []
    for name, make, describe in _CHECKS:
        if any(step.name == "schema" and not step.ok for step in steps):
            steps.append(Step(name, None, "not checked: the block is not a record"))
            continue
        try:
            make(check)
        except RecordRefused as refused:
            steps.append(Step(name, False, refused.sentence))
        else:
            sentence = describe(check)
            steps.append(Step(name, None if sentence.startswith("not checked") else True, sentence))
    return steps


class _Check:
    """The checks of one block, cheapest first; each raises RecordRefused."""

    __slots__ = ("block", "cid", "extra", "form", "max_age_s", "now_ms", "record", "request", "trusted")

    record: Record
    form: dict[str, Any]

    def __init__(
        self,
        block: bytes,
        cid: bytes | None,
        request: bytes | None,
        extra: bytes | None,
        now_ms: int,
        max_age_s: float | None,
        trusted: Callable[[PeerId], bool] | None,
    ) -> None:
        self.block, self.cid, self.request, self.extra = block, cid, request, extra
        self.now_ms, self.max_age_s, self.trusted = now_ms, max_age_s, trusted

    def hash(self) -> None:
        if len(self.block) >= MAX_BLOCK_BYTES:
            raise RecordRefused(
                "size", f"the block has {len(self.block)} bytes; a record has less than {MAX_BLOCK_BYTES}"
            )
        if self.cid is None:
            return
        try:
            codec = codec_of(self.cid)
        except CidError as error:
            raise RecordRefused("cid", str(error)) from None
        if codec != DAG_CBOR or not holds(self.cid, self.block):
            raise RecordRefused("cid", "the block is not the one that the CID names: it was changed or mixed up")

    def schema(self) -> None:
        self.form, self.record = read(self.block)

    def node(self) -> None:
        try:
            public_key_of(self.record.node)
        except ValueError as error:
            raise RecordRefused("node", f"`node` is {error}") from None

    def asked(self) -> None:
        if self.request is not None and not same_request(self.record.request, self.request):
            raise RecordRefused("request", "the record answers another request")

    def age(self) -> None:
        age_s = self.record.age_s(self.now_ms)
        if age_s < -MAX_CLOCK_SKEW_S:
            raise RecordRefused("age", f"the record says that it was made {-age_s:.0f} s from now: compare the clocks")
        if self.max_age_s is not None and age_s > self.max_age_s:
            raise RecordRefused("age", f"the record is {age_s:.0f} s old; {self.max_age_s:.0f} s are allowed")

    def trust(self) -> None:
        if self.trusted is not None and not self.trusted(self.record.node):
            raise RecordRefused("trust", "the trust rule does not cover the node that signed it")

    def content(self) -> None:
        record = self.record
        if record.content_cid is None:
            if record.text_cid is not None and record.text_cid != cid_of(RAW, record.content.encode()):
                raise RecordRefused("content", "the linked text is not the record's content")
            return
        if self.extra is None:
            raise RecordRefused("content", "the raw block with the content is missing")
        if not holds(record.content_cid, self.extra):
            raise RecordRefused("content", "the raw block is not the content that the record links")
        if not 0 < len(self.extra) <= MAX_CONTENT_BYTES:
            raise RecordRefused(
                "size", f"the content has {len(self.extra)} bytes; 1 to {MAX_CONTENT_BYTES} are allowed"
            )
        try:
            self.record = replace(record, content=self.extra.decode())
        except UnicodeDecodeError:
            raise RecordRefused("content", "the raw block with the content is not UTF-8") from None

    def signature(self) -> None:
        record = self.record
        if not verify_signature(record.node, record.sig, signed_part(self.form)):
            raise RecordRefused(
                "signature", "the signature does not fit: the record was changed, or another node made it"
            )


def _about_cid(check: _Check) -> str:
    if check.cid is None:
        return "not checked: no CID was given"
    return f"the block's sha2-256 is the one in {cid_text(check.cid)}"


def _about_request(check: _Check) -> str:
    return "not checked: no request was given" if check.request is None else "the record answers this request"


def _about_trust(check: _Check) -> str:
    if check.trusted is None:
        return "not checked: no trust rule was given"
    return "the trust rule covers the node that signed it"


_CHECKS: tuple[tuple[str, Callable[[_Check], None], Callable[[_Check], str]], ...] = (
    ("block hash", _Check.hash, _about_cid),
    ("schema", _Check.schema, lambda c: f"strict dag-cbor, a record of version {c.record.v}"),
    ("peer id", _Check.node, lambda c: f"{c.record.node} is the id of an Ed25519 key"),
    ("request", _Check.asked, _about_request),
    ("age", _Check.age, lambda c: f"made {max(0.0, c.record.age_s(c.now_ms)):.0f} s ago"),
    ("trust", _Check.trust, _about_trust),
    ("content", _Check.content, lambda c: f"{len(c.record.content)} characters, whole"),
    ("signature", _Check.signature, lambda _: "made by that node's key over exactly this record"),
)
