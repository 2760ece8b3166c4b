"""Messages of the Kademlia DHT as bytes: pure, and bounded before anything is built.

Format: https://github.com/libp2p/specs/blob/master/kad-dht/README.md (protobuf `Message`, preceded by its length as a
varint), so that the same code asks an IPFS DHT. Of our own is field 15 of a peer: its signed statement
(kad_statement.py). What a message may hold is counted here; whether it is true is for others to check.

    data = encode(Message(GET_PROVIDERS, key=b"..."))
    assert decode(data).key == b"..."
"""

from __future__ import annotations

from msgspec import Struct

from .errors import ProtocolViolation
from .protobuf import as_bytes, encode_varint, field, fields, integer

PUT_VALUE, GET_VALUE, ADD_PROVIDER, GET_PROVIDERS, FIND_NODE, PING = range(6)

MAX_KEY_BYTES = 80  # go-libp2p-kad-dht's bound for provider keys
MAX_VALUE_BYTES = 2048
MAX_PEERS = 64  # in each of the two lists; an IPFS node gives 20 closer ones and any number of providers
MAX_ADDRESSES = 16  # of one peer; more are passed over
MAX_ADDRESS_BYTES = 256
MAX_PEER_ID_BYTES = 64
MAX_STATEMENT_BYTES = 2048


class Entry(Struct, frozen=True):
    """A peer as a message names it. id: its peer id as bytes. addresses: multiaddrs as bytes, unchecked.

    statement: what it has signed, see kad_statement.py; b"": nothing.
    """

    id: bytes
    addresses: tuple[bytes, ...] = ()
    statement: bytes = b""


class Message(Struct, frozen=True):
    """kind: one of the six above. value: that of the record; None: the message has no record."""

    kind: int
    key: bytes = b""
    value: bytes | None = None
    closer: tuple[Entry, ...] = ()
    providers: tuple[Entry, ...] = ()


def encode(message: Message) -> bytes:
    """The message without its length."""
    parts = [integer(1, message.kind), field(2, message.key)]
    if message.value is not None:
        parts.append(field(3, field(1, message.key) + field(2, message.value)))
    parts += [field(8, _encode_entry(entry)) for entry in message.closer]
    parts += [field(9, _encode_entry(entry)) for entry in message.providers]
    return b"".join(parts)


def frame(message: Message) -> bytes:
    """The message as it goes over a stream."""
    data = encode(message)
    return encode_varint(len(data)) + data


def _encode_entry(entry: Entry) -> bytes:
    parts = [field(1, entry.id), *(field(2, address) for address in entry.addresses)]
    if entry.statement:
        parts.append(field(15, entry.statement))
    return b"".join(parts)


def decode(data: bytes) -> Message:
    """The message in `data`. ProtocolViolation when it is malformed or beyond one of the bounds above."""
    try:
        return _decode(data)
    except ValueError as error:
        raise ProtocolViolation(f"not a message of the DHT: {error}") from None


def _decode(data: bytes) -> Message:
    kind, key, value = PUT_VALUE, b"", None
    closer, providers = list[Entry](), list[Entry]()
    for number, found in fields(data):
        if number == 1:
            if not isinstance(found, int) or found > PING:
                raise ValueError("an unknown kind")
            kind = found
        elif number == 2:
            key = _bounded(found, MAX_KEY_BYTES, "key")
        elif number == 3:
            value = _decode_record(as_bytes(found))
        elif number in (8, 9):
            entries = closer if number == 8 else providers
            if len(entries) >= MAX_PEERS:
                raise ValueError(f"more than {MAX_PEERS} peers")
            entries.append(_decode_entry(as_bytes(found)))
    return Message(kind, key, value, tuple(closer), tuple(providers))


def _decode_record(data: bytes) -> bytes:
    for number, found in fields(data):
        if number == 2:
            return _bounded(found, MAX_VALUE_BYTES, "value")
    return b""


def _decode_entry(data: bytes) -> Entry:
    peer_id = statement = b""
    addresses: list[bytes] = []
    for number, found in fields(data):
        if number == 1:
            peer_id = _bounded(found, MAX_PEER_ID_BYTES, "peer id")
        elif number == 2 and len(addresses) < MAX_ADDRESSES:
            address = as_bytes(found)
            if len(address) <= MAX_ADDRESS_BYTES:
                addresses.append(address)
        elif number == 15:
            statement = _bounded(found, MAX_STATEMENT_BYTES, "statement")
    if not peer_id:
        raise ValueError("a peer without an id")
    return Entry(peer_id, tuple(addresses), statement)


def _bounded(value: int | bytes, limit: int, what: str) -> bytes:
    data = as_bytes(value)
    if len(data) > limit:
        raise ValueError(f"a {what} of {len(data)} bytes; the limit is {limit}")
    return data
