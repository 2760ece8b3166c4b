"""DCUtR's message as bytes: pure, bounded, and tolerant of fields that it does not know.

Format: https://github.com/libp2p/specs/blob/master/relay/DCUtR.md (protobuf `HolePunch`, preceded by its length as a
varint): type = 1, the sender's observed addresses = 2. Shoal adds field 4642, which others skip: what the sender knows
of its own reachability, so that both sides come to the same plan before anybody dials.

    data = encode(HolePunch(CONNECT, (("11.22.33.1", 4642),), Facts(reach="private", nat="keeps-ports")))
    assert decode(data).pairs == (("11.22.33.1", 4642),)
"""

from __future__ import annotations

import ipaddress
from typing import TypeVar

from msgspec import Struct

from .errors import ProtocolViolation
from .protobuf import as_bytes, encode_varint, field, fields, integer
from .reachability import Facts, Nat, Reach

PROTOCOL = "/libp2p/dcutr"
CONNECT, SYNC = 100, 300
MAX_MESSAGE_BYTES = 4096  # the specification's limit
MAX_PAIRS = 16
REACHABILITY = 4642  # the number of our field; its value is a message, reach = 1 and nat = 2

REACHES: tuple[Reach, ...] = ("unknown", "public", "private")
NATS: tuple[Nat, ...] = ("unknown", "none", "keeps-ports", "changes-ports")
T = TypeVar("T")
_IP4, _TCP, _IP6 = b"\x04", b"\x06", b"\x29"  # multiaddr's protocol codes, https://github.com/multiformats/multiaddr


class HolePunch(Struct, frozen=True):
    """pairs: (IP address, TCP port) where the sender is seen. facts: reach and nat of it; None: it did not say."""

    kind: int
    pairs: tuple[tuple[str, int], ...] = ()
    facts: Facts | None = None


def encode(message: HolePunch) -> bytes:
    """The message without its length prefix."""
    data = integer(1, message.kind) + b"".join(field(2, _multiaddr(*pair)) for pair in message.pairs)
    if message.facts is not None:
        told = integer(1, REACHES.index(message.facts.reach)) + integer(2, NATS.index(message.facts.nat))
        data += encode_varint(REACHABILITY << 3 | 2) + encode_varint(len(told)) + told
    return data


def frame(message: HolePunch) -> bytes:
    """The message as it goes over a stream, with its length."""
    data = encode(message)
    return encode_varint(len(data)) + data


def decode(data: bytes) -> HolePunch:
    """ProtocolViolation when it is none. Addresses that are not TCP over IP are left out."""
    try:
        return _decode(data)
    except ValueError as error:
        raise ProtocolViolation(f"not a message about a hole: {error}") from None


def _decode(data: bytes) -> HolePunch:
    kind, pairs, facts = 0, list[tuple[str, int]](), None
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and len(pairs) < MAX_PAIRS:
            if (pair := _pair(as_bytes(value))) is not None:
                pairs.append(pair)
        elif number == REACHABILITY:
            told = dict(fields(as_bytes(value)))
            facts = Facts(reach=_one_of(REACHES, told.get(1, 0)), nat=_one_of(NATS, told.get(2, 0)))
    if kind not in (CONNECT, SYNC):
        raise ValueError("it is neither CONNECT nor SYNC")
    return HolePunch(kind, tuple(pairs), facts)


def _one_of(names: tuple[T, ...], index: int | bytes) -> T:
    return names[index] if isinstance(index, int) and index < len(names) else names[0]


def _multiaddr(ip: str, port: int) -> bytes:
    address = ipaddress.ip_address(ip)
    return (_IP4 if address.version == 4 else _IP6) + address.packed + _TCP + port.to_bytes(2, "big")


def _pair(binary: bytes) -> tuple[str, int] | None:
    """/ip4|ip6/ADDRESS/tcp/PORT, perhaps with a /p2p/ part behind it, which the connection has proved already."""
    size = {_IP4: 4, _IP6: 16}.get(binary[:1])
    if size is None or binary[1 + size : 2 + size] != _TCP or len(binary) < 4 + size:
        return None
    return str(ipaddress.ip_address(binary[1 : 1 + size])), int.from_bytes(binary[2 + size : 4 + size], "big")
