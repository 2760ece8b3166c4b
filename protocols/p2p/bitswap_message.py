"""Bitswap 1.2.0 messages as bytes: pure, bounded, and tolerant of fields that it does not know.

Format: https://specs.ipfs.tech/bitswap-protocol/ (protobuf `Message`, preceded by its length as a varint).

    data = encode(Message(wants=(Want(cid, have=True),)))
    assert decode(data) == Message(wants=(Want(cid, have=True),))
"""

from __future__ import annotations

from msgspec import Struct

from . import cids
from .errors import ProtocolViolation
from .protobuf import as_bytes, encode_varint, field, fields

MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # boxo's network.MessageSizeMax
MAX_BLOCK_BYTES = 2 * 1024 * 1024  # the specification's limit
MAX_ENTRIES = 4096  # wants, presences and blocks of one message, each


class Want(Struct, frozen=True):
    """One entry of a want list. `have`: only ask whether; `dont_have`: an answer is wanted in that case, too."""

    cid: bytes
    have: bool = False
    cancel: bool = False
    dont_have: bool = False
    priority: int = 1


class Block(Struct, frozen=True):
    """`prefix`: a CID without its digest, by which the receiver makes the CID anew."""

    prefix: bytes
    data: bytes


class Presence(Struct, frozen=True):
    cid: bytes
    have: bool


class Message(Struct, frozen=True):
    """`full`: `wants` replaces the want list sent before instead of adding to it."""

    wants: tuple[Want, ...] = ()
    blocks: tuple[Block, ...] = ()
    presences: tuple[Presence, ...] = ()
    full: bool = False


# -- encoding --------------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The message without its length prefix. The want list is always present: older Kubo crashes without one."""
    wantlist = b"".join(field(1, _encode_want(want)) for want in message.wants)
    if message.full:
        wantlist += b"\x10\x01"
    parts = [field(1, wantlist)]
    parts += [field(3, field(1, block.prefix) + field(2, block.data)) for block in message.blocks]
    for presence in message.presences:
        parts.append(field(4, field(1, presence.cid) + (b"" if presence.have else b"\x10\x01")))
    return b"".join(parts)


def frame(message: Message) -> bytes:
    """The message as it goes over a stream, with its length."""
    data = encode(message)
    return encode_varint(len(data)) + data


def _encode_want(want: Want) -> bytes:
    data = field(1, want.cid) + b"\x10" + encode_varint(want.priority)
    if want.cancel:
        data += b"\x18\x01"
    if want.have:
        data += b"\x20\x01"
    if want.dont_have:
        data += b"\x28\x01"
    return data


# -- decoding --------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Message:
    """The message in `data`. ProtocolViolation when it is malformed or has more than MAX_ENTRIES of a kind."""
    try:
        return _decode(data)
    except ValueError as error:
        raise ProtocolViolation(f"not a bitswap message: {error}") from None


def _decode(data: bytes) -> Message:
    wants: list[Want] = []
    blocks: list[Block] = []
    presences: list[Presence] = []
    full = False
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            for inner, entry in fields(value):
                if inner == 1 and isinstance(entry, bytes):
                    wants.append(_decode_want(entry))
                elif inner == 2:
                    full = bool(entry)
                _count(wants)
        elif number == 2 and isinstance(value, bytes):  # bitswap 1.0.0: the block of a CIDv0
            blocks.append(Block(cids.V0_PREFIX, value))
        elif number == 3 and isinstance(value, bytes):
            parts = dict(fields(value))
            blocks.append(Block(as_bytes(parts.get(1, b"")), as_bytes(parts.get(2, b""))))
        elif number == 4 and isinstance(value, bytes):
            parts = dict(fields(value))
            presences.append(Presence(_cid(parts.get(1, b"")), have=not parts.get(2, 0)))
        _count(blocks)
        _count(presences)
    return Message(tuple(wants), tuple(blocks), tuple(presences), full)


def _decode_want(data: bytes) -> Want:
    parts = dict(fields(data))
    priority = parts.get(2, 0)
    return Want(
        _cid(parts.get(1, b"")),
        have=parts.get(4, 0) == 1,
        cancel=bool(parts.get(3, 0)),
        dont_have=bool(parts.get(5, 0)),
        priority=priority if isinstance(priority, int) else 0,
    )


def _count(entries: list[Want] | list[Block] | list[Presence]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES} entries")


def _cid(value: int | bytes) -> bytes:
    cid = as_bytes(value)
    if not 0 < len(cid) <= 2 * cids.MAX_CID_BYTES:  # other hashes are longer, and only not ours to serve
        raise ValueError("a CID has an impossible length")
    return cid
