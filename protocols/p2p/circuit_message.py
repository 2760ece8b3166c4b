"""The messages of circuit relay v2 as bytes: pure, bounded, tolerant of fields that they do not know.

Format: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md (protobuf `HopMessage` and `StopMessage`, each
preceded by its length as a varint).

    data = encode(Hop(HopKind.CONNECT, peer=target))
    assert decode_hop(data) == Hop(HopKind.CONNECT, peer=target)
"""

from __future__ import annotations

import enum

from msgspec import Struct

from .errors import ProtocolViolation
from .protobuf import as_bytes, encode_varint, field, fields, integer

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE_BYTES = 4096
MAX_ADDRESSES = 16
MAX_ID_BYTES = 128  # of a peer id; an Ed25519 one has 38


class HopKind(enum.IntEnum):
    RESERVE = 0
    CONNECT = 1
    STATUS = 2


class StopKind(enum.IntEnum):
    CONNECT = 0
    STATUS = 1


class Status(enum.IntEnum):
    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class Limit(Struct, frozen=True):
    """Of one circuit. duration_s: seconds, data: bytes both ways together; 0: none."""

    duration_s: int = 0
    data: int = 0


class Hop(Struct, frozen=True):
    """Between a node and the relay. peer: the binary id of whom to connect to. expires: Unix time in seconds of a
    reservation; addresses: binary multiaddrs of the relay."""

    kind: HopKind
    peer: bytes | None = None
    expires: int | None = None
    addresses: tuple[bytes, ...] = ()
    limit: Limit | None = None
    status: int | None = None


class Stop(Struct, frozen=True):
    """Between the relay and the node that is called. peer: the binary id of the caller, as the relay says."""

    kind: StopKind
    peer: bytes | None = None
    limit: Limit | None = None
    status: int | None = None


def encode(message: Hop | Stop) -> bytes:
    """The message without its length prefix."""
    data = integer(1, message.kind)
    if message.peer is not None:
        data += field(2, field(1, message.peer))
    if isinstance(message, Stop):
        return data + _limit(3, message.limit) + (integer(4, message.status) if message.status is not None else b"")
    if message.expires is not None:
        data += field(3, integer(1, message.expires) + b"".join(field(2, text) for text in message.addresses))
    return data + _limit(4, message.limit) + (integer(5, message.status) if message.status is not None else b"")


def frame(message: Hop | Stop) -> bytes:
    """The message as it goes over a stream, with its length."""
    data = encode(message)
    return encode_varint(len(data)) + data


def _limit(number: int, limit: Limit | None) -> bytes:
    return field(number, integer(1, limit.duration_s) + integer(2, limit.data)) if limit is not None else b""


def decode_hop(data: bytes) -> Hop:
    """ProtocolViolation when it is none."""
    try:
        found = dict(fields(data))  # each may stand there once; protobuf takes the last
        kind = HopKind(_number(found.get(1, 0)))
        expires, addresses = _reservation(found.get(3))
        return Hop(kind, _peer(found.get(2)), expires, addresses, _limits(found.get(4)), _optional(found.get(5)))
    except ValueError as error:
        raise ProtocolViolation(f"not a message to a relay: {error}") from None


def decode_stop(data: bytes) -> Stop:
    """ProtocolViolation when it is none."""
    try:
        found = dict(fields(data))
        kind = StopKind(_number(found.get(1, 0)))
        return Stop(kind, _peer(found.get(2)), _limits(found.get(3)), _optional(found.get(4)))
    except ValueError as error:
        raise ProtocolViolation(f"not a message of a relay: {error}") from None


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a field has the wrong type")  # noqa: TRY004  # one error for all that is malformed
    return value


def _optional(value: int | bytes | None) -> int | None:
    return None if value is None else _number(value)


def _peer(value: int | bytes | None) -> bytes | None:
    if value is None:
        return None
    peer = as_bytes(dict(fields(as_bytes(value))).get(1, b""))
    if not 0 < len(peer) <= MAX_ID_BYTES:
        raise ValueError("a peer without a fitting id")
    return peer


def _reservation(value: int | bytes | None) -> tuple[int | None, tuple[bytes, ...]]:
    if value is None:
        return None, ()
    expires, addresses = None, list[bytes]()
    for number, inner in fields(as_bytes(value)):
        if number == 1:
            expires = _number(inner)
        elif number == 2 and len(addresses) < MAX_ADDRESSES:
            addresses.append(as_bytes(inner))
    return expires, tuple(addresses)


def _limits(value: int | bytes | None) -> Limit | None:
    if value is None:
        return None
    found = dict(fields(as_bytes(value)))
    return Limit(_number(found.get(1, 0)), _number(found.get(2, 0)))
