"""What a node signs for the DHT: that it has something, and where it can be dialled. Pure; the caller brings the time.

    sealed = statement signature(64)        statement = msgpack map, signed with a domain before it

A provider statement says "I can give what this key stands for, until then"; with ttl_s = 0 it takes an earlier one
back. A node statement says where a node can be dialled; it is the only value record there is, under NODE and the
node's peer id. Who passes a statement on can withhold it and not change it.

    sealed = seal(identity, Statement(swarm="home", peer=identity.peer_id, key=key, created=now, ttl_s=3600.0))
    assert unseal(sealed, PROVIDE, swarm="home", key=key, now=now).peer == identity.peer_id
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from ..peer_id import SIGNATURE_BYTES, Identity, PeerId, base58_decode, base58_encode, verify
from .kad_message import MAX_STATEMENT_BYTES

PROVIDE, LOCATE = b"shoal-provide-v1\0", b"shoal-node-v1\0"
NODE = b"/shoal/node/"
MAX_CLOCK_SKEW_S = 60.0
MAX_TTL_S = 48 * 3600.0
MAX_TOLD_ADDRESSES = 8
VERSION = 1
_ED25519, _SHA2_256 = bytes.fromhex("002408011220"), bytes.fromhex("1220")  # specs/peer-ids: how a peer id begins

Reason = Literal["malformed", "oversized", "forged", "foreign", "swarm", "key", "future", "expired"]
Address = Annotated[str, Meta(max_length=256)]


class Statement(Struct, frozen=True, kw_only=True):
    """created: Unix time in seconds; ttl_s: seconds it holds from then, 0: an earlier one is taken back.

    addresses: multiaddrs, each with /p2p/ and the peer's id. key: the key in the DHT.
    """

    swarm: Annotated[str, Meta(max_length=64)]
    peer: PeerId
    key: Annotated[bytes, Meta(max_length=80)]
    created: float
    ttl_s: float
    addresses: Annotated[tuple[Address, ...], Meta(max_length=MAX_TOLD_ADDRESSES)] = ()
    v: int = VERSION

    @property
    def expires(self) -> float:
        return self.created + min(self.ttl_s, MAX_TTL_S)

    @property
    def withdrawn(self) -> bool:
        return self.ttl_s <= 0


class StatementRefused(ValueError):
    """A statement is not believed. reason: one of `Reason`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason: Reason = reason


_decode = msgspec.msgpack.Decoder(Statement).decode


def node_key(peer: PeerId) -> bytes:
    """Where the DHT keeps a node's own statement."""
    return NODE + peer_bytes(peer)


def peer_bytes(peer: PeerId) -> bytes:
    """A peer id as it stands in messages. ValueError."""
    return base58_decode(peer)


def peer_text(data: bytes) -> PeerId:
    return PeerId(base58_encode(data))


def is_peer(data: bytes) -> bool:
    """Whether these bytes are a peer id: an Ed25519 key, or the SHA-256 of a larger key, as some of IPFS have."""
    return (len(data) == 38 and data[:6] == _ED25519) or (len(data) == 34 and data[:2] == _SHA2_256)


def seal(identity: Identity, statement: Statement, domain: bytes = PROVIDE) -> bytes:
    body = msgspec.msgpack.encode(statement)
    return body + identity.sign(domain + body)


def read(sealed: bytes) -> Statement:
    """What a statement says, without a check: for one that was checked before."""
    return _decode(sealed[:-SIGNATURE_BYTES])


def unseal(
    sealed: bytes, domain: bytes, *, swarm: str, key: bytes, now: float, peer: PeerId | None = None
) -> Statement:
    """The statement, when it holds now for this key. StatementRefused otherwise; cheap checks come first.

    peer: who must have made it; None: anybody.
    """
    if len(sealed) > MAX_STATEMENT_BYTES:
        raise StatementRefused("oversized", f"{len(sealed)} bytes; the limit is {MAX_STATEMENT_BYTES}")
    body, signature = sealed[:-SIGNATURE_BYTES], sealed[-SIGNATURE_BYTES:]
    try:
        statement = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise StatementRefused("malformed", "it is no statement") from None
    if statement.v != VERSION:
        raise StatementRefused("malformed", f"version {statement.v}; this node knows {VERSION}")
    if statement.swarm != swarm:
        raise StatementRefused("swarm", "it speaks of another swarm")
    if statement.key != key:
        raise StatementRefused("key", "it stands under another key than it speaks of")
    if domain == LOCATE and key != NODE + _bytes_or_nothing(statement.peer):
        raise StatementRefused("key", "it stands under another node's key")
    if peer is not None and statement.peer != peer:
        raise StatementRefused("foreign", "it speaks of another node than the one that brings it")
    if not statement.created <= now + MAX_CLOCK_SKEW_S:
        raise StatementRefused("future", "it was made in the future; one of the two clocks is wrong")
    if not statement.withdrawn and not now < statement.expires:
        raise StatementRefused("expired", "it holds no longer")
    if statement.withdrawn and now - statement.created > MAX_CLOCK_SKEW_S:
        raise StatementRefused("expired", "it took something back long ago")
    if not verify(statement.peer, signature, domain + body):
        raise StatementRefused("forged", "the signature is not that of the node it speaks of")
    return statement


def _bytes_or_nothing(peer: str) -> bytes:
    try:
        return base58_decode(peer) if len(peer) <= 64 else b""
    except ValueError:
        return b""
