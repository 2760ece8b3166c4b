"""A receipt: one answer in a file that anyone can check offline, with nothing but this page of rules and the file.

It is a CAR with the record as its root; beside it what the record links, the content or its text; and, when the asker
wants to show the question as well, the canonical request, whose CID is the one in the record. Any IPFS tool reads it.
The public key is in the record: the peer id is the key. `shoal verify FILE` checks it; docs/record.md says how.

    data = write(signed, request=canonical_bytes(question))
    receipt = open_receipt(data)
"""

from __future__ import annotations

from typing import Any

import cbrrr
from msgspec import Struct

from .car import CarError, header, read_all, section
from .cid import DAG_CBOR, CidError, cid_of, codec_of, holds
from .key import same_request
from .record import SignedRecord, Step, explain
from .schema import RecordRefused, read


class ReceiptError(ValueError):
    """Not a receipt, or none can be made; the text says why."""


class Receipt(Struct, frozen=True):
    """What a receipt's file holds. request: the canonical request's bytes, when it is there."""

    cid: bytes
    block: bytes
    extra: bytes | None
    request: bytes | None

    def explain(self) -> list[Step]:
        """Every check, as `record.explain` has them; the question too, when the file shows it."""
        reference = None if self.request is None else cid_of(DAG_CBOR, self.request)
        return explain(self.block, self.cid, reference, extra=self.extra)

    @property
    def question(self) -> list[dict[str, Any]] | None:
        """The messages of the request, when it is there."""
        if self.request is None:
            return None
        form = cbrrr.decode_dag_cbor(self.request)
        messages = form.get("messages") if isinstance(form, dict) else None
        return messages if isinstance(messages, list) else None


def write(signed: SignedRecord, request: bytes | None = None) -> bytes:
    """The file. request: the canonical request, to be shown in it; ReceiptError when the record answers another one,
    or names its request by a private swarm's key, which a reader of the receipt does not have."""
    data = header([signed.cid]) + b"".join(section(cid, block) for cid, block in reversed(signed.blocks))
    if request is not None:
        cid = cid_of(DAG_CBOR, request)
        if not same_request(signed.record.request, cid):
            raise ReceiptError(
                "this is not the question that the record answers, as far as it can be shown: the options must be the "
                "same, and in a private swarm a record's request can only be checked by members"
            )
        data += section(cid, request)
    return data


def is_car(data: bytes) -> bool:
    """Whether a file begins as a CAR does, and not as a record's block."""
    return b"eroots" in data[:12]


def open_receipt(data: bytes) -> Receipt:
    """The receipt in a file's bytes; nothing but the hashes is checked yet. ReceiptError."""
    try:
        roots, blocks = read_all(data)
    except CarError as error:
        raise ReceiptError(str(error)) from None
    if len(roots) != 1 or roots[0] not in dict(blocks):
        raise ReceiptError("this CAR is no receipt: a receipt has one root, and it is in the file")
    found = dict(blocks)
    cid, block = roots[0], found[roots[0]]
    try:
        is_record = codec_of(cid) == DAG_CBOR
    except CidError:
        is_record = False
    if not is_record:
        raise ReceiptError("this CAR is no receipt: its root is not a dag-cbor block")
    extra = request = None
    try:
        record = read(block)[1]
    except RecordRefused:
        return Receipt(cid, block, None, None)  # `explain` says what is wrong with it
    for other, data_ in blocks:
        if other == record.content_cid and holds(other, data_):
            extra = data_
        elif other != cid and same_request(record.request, other) and codec_of(other) == DAG_CBOR:
            request = data_
    return Receipt(cid, block, extra, request)
