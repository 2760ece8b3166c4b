"""Blocks that are not kept but made from one that is: a record's text for people, and the sealed form of a block.

The store's index knows their CIDs; the bytes come out the same each time, so keeping them would be keeping them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cbrrr

from .record import SignedRecord
from .sealing import Seal

TEXT, SEALED = "text", "sealed"


class Derived(NamedTuple):
    """cid: of the derived block. of: the CID of the stored one. kind: TEXT or SEALED."""

    cid: bytes
    of: bytes
    kind: str


def derived_of(signed: SignedRecord, seal: Seal | None = None) -> tuple[Derived, ...]:
    """What can be made from an answer's blocks: its text, where the record links it, and the sealed blocks."""
    text = signed.record.text_cid
    found = [] if text is None else [Derived(text, signed.cid, TEXT)]
    if seal is not None:
        found.append(Derived(seal.cid(signed.cid, signed.block), signed.cid, SEALED))
        if signed.extra is not None and signed.extra_cid is not None:
            found.append(Derived(seal.cid(signed.extra_cid, signed.extra), signed.extra_cid, SEALED))
    return tuple(found)


def derive(wanted: Derived, data: bytes, seals: Sequence[Seal]) -> bytes | None:
    """The bytes of a derived block from the stored one's. None when the key that sealed it is not here any more."""
    if wanted.kind == TEXT:
        form = cbrrr.decode_dag_cbor(data)
        content = form.get("content") if isinstance(form, dict) else None
        return content.encode() if isinstance(content, str) else None
    for seal in seals:
        cid, sealed = seal.seal(wanted.of, data)
        if cid == wanted.cid:
            return sealed
    return None
