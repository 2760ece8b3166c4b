"""Invites: where a swarm can be found, what it is called and, for a private one, its key, in one line of text.

    Invite(swarm="home", addrs=("/ip4/192.0.2.7/tcp/4642/p2p/12D3KooW...",)).text   -> "shoal1..."
    Invite.parse("shoal1...")

The line is "shoal1" and the base32 (RFC 4648, lower case, no padding) of a msgpack array and the first four bytes of
its SHA-256: `[1, swarm, [[peer id, [address without /p2p]]], key or nil]`, and in a swarm with an owner two elements
more, the owner's peer id and a ticket (roster.py). An invite with a key or a ticket is a secret.
A multiaddr that ends in /p2p/PEER_ID is an invite, too: of whatever swarm this node is in.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec
from msgspec import Struct

from ...protocols.peer_id import PeerId
from .. import addresses

PREFIX = "shoal1"
MAX_CHARS = 4096
MAX_ADDRESSES = 32
MAX_SWARM_CHARS = 64
KEY_BYTES = 32
CHECK_BYTES = 4
FORMAT = 1

_AGAIN = "ask for it again: `shoal status` on the other node prints it"


class InviteError(ValueError):
    """The text is no invite. The message says what to do; it does not repeat the text, which may hold a key."""


class _Body(Struct, frozen=True, array_like=True):
    format: int
    swarm: str | None
    peers: list[tuple[str, list[str]]]
    key: bytes | None
    owner: str | None = None
    ticket: tuple[bytes, bytes] | None = None


class Invite(Struct, frozen=True, kw_only=True):
    """swarm: None when the invite is a bare address. addrs: multiaddrs that end in /p2p/PEER_ID. key: 32 bytes.

    owner, ticket: of a swarm with an owner (roster.py).
    """

    swarm: str | None
    addrs: tuple[str, ...]
    key: bytes | None = None
    owner: PeerId | None = None
    ticket: tuple[bytes, bytes] | None = None

    def __post_init__(self) -> None:
        if not self.addrs or len(self.addrs) > MAX_ADDRESSES:
            raise InviteError(f"an invite names 1 to {MAX_ADDRESSES} addresses, this one {len(self.addrs)}")
        if self.swarm is not None and not 1 <= len(self.swarm) <= MAX_SWARM_CHARS:
            raise InviteError(f"a swarm's name has 1 to {MAX_SWARM_CHARS} characters")
        if self.key is not None and len(self.key) != KEY_BYTES:
            raise InviteError(f"a swarm's key has {KEY_BYTES} bytes")
        if self.owner is not None and not addresses.is_peer_id(self.owner):
            raise InviteError(f"the owner that the invite names is none; {_AGAIN}")
        for addr in self.addrs:
            if not addr.startswith("/"):
                raise InviteError("an address in the invite is not a multiaddr")
            try:
                addresses.check_peer(addr)
            except ValueError as error:
                raise InviteError(str(error)) from None

    @property
    def peers(self) -> dict[PeerId, tuple[str, ...]]:
        """The addresses of each peer, in the invite's order."""
        found: dict[PeerId, tuple[str, ...]] = {}
        for addr in self.addrs:
            peer = PeerId(addr.rpartition("/p2p/")[2])
            found[peer] = (*found.get(peer, ()), addr)
        return found

    @property
    def text(self) -> str:
        """The line to pass on."""
        peers = [(str(peer), [addr.rpartition("/p2p/")[0] for addr in addrs]) for peer, addrs in self.peers.items()]
        told: list[Any] = [FORMAT, self.swarm, peers, self.key]
        if self.owner is not None:
            told += [self.owner, self.ticket]
        body = msgspec.msgpack.encode(told)
        return PREFIX + base64.b32encode(body + _check(body)).decode("ascii").rstrip("=").lower()

    def __repr__(self) -> str:
        key = "a key" if self.key is not None else "no key"
        return f"Invite({self.swarm!r}, {len(self.addrs)} addresses, {key})"

    @classmethod
    def parse(cls, text: str) -> Invite:
        """Read an invite, or a multiaddr with /p2p/. InviteError says what is wrong and what to do."""
        text = text.strip()
        if text.startswith("/"):
            return cls(swarm=None, addrs=(text,))
        if len(text) > MAX_CHARS:
            raise InviteError(f"this is too long for an invite ({len(text)} characters); {_AGAIN}")
        plain = "".join(text.split()).lower()  # a mail program may have wrapped the line
        if not plain.startswith(PREFIX):
            example = addresses.PEER_EXAMPLE
            raise InviteError(f'an invite begins with "{PREFIX}", an address looks like "{example}"; {_AGAIN}')
        data = _unpack(plain[len(PREFIX) :])
        body = data[:-CHECK_BYTES]
        if len(data) <= CHECK_BYTES or _check(body) != data[-CHECK_BYTES:]:
            raise InviteError(f"the invite is incomplete or has a typing error; {_AGAIN}")
        try:
            told: Any = msgspec.msgpack.decode(body)
            if isinstance(told, list) and told and told[0] != FORMAT:
                raise InviteError("the invite was made by a newer Shoal; update this one")
            read = msgspec.convert(told, _Body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InviteError(f"the invite is damaged; {_AGAIN}") from None
        addrs = tuple(f"{addr}/p2p/{peer}" for peer, listed in read.peers for addr in listed)
        owner = PeerId(read.owner) if read.owner is not None else None
        return cls(swarm=read.swarm, addrs=addrs, key=read.key, owner=owner, ticket=read.ticket)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECK_BYTES]


def _unpack(text: str) -> bytes:
    try:
        return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError:
        raise InviteError(f"the invite is incomplete or has a typing error; {_AGAIN}") from None
