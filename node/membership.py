"""Which swarm this node is in, under which key, where it listens and whom it calls first: decided here, as pure text.

What was said last and most directly wins: --join, then the swarm joined by `shoal join`, then the configuration, then
a swarm of this machine alone. A lone node, and one whose swarm is on this machine, listens on loopback; joining a swarm
beyond it opens every interface, which is said at start-up. `swarm.listen` or --listen decide otherwise.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from ..protocols.peer_id import PeerId
from . import addresses
from .config import SwarmSection
from .state import P2pState

if TYPE_CHECKING:
    from .swarm.invite import Invite

LOOPBACK = "/ip4/127.0.0.1/tcp/{}"
EVERYWHERE = "/ip4/0.0.0.0/tcp/{}"
EVERYWHERE_PORT = 4642


class Membership(Struct, frozen=True, kw_only=True):
    """name, key (32 bytes or None): of the swarm. listen: multiaddrs. invites: where to look for it.

    old_keys: those that the swarm had before, the last one first; what was stored under them stays readable here.

    chosen: whether the owner set `listen`; otherwise a port that is taken may be replaced by another.
    opened: whether this listens beyond the machine because of an invite.
    owner, ticket: of a swarm with an owner. notes: what the owner should know, in lines.
    """

    name: str
    key: bytes | None
    listen: tuple[str, ...]
    chosen: bool
    opened: bool = False
    owner: PeerId | None = None
    ticket: tuple[bytes, bytes] | None = None
    invites: tuple[Invite, ...] = ()
    notes: tuple[str, ...] = ()
    old_keys: tuple[bytes, ...] = ()

    @property
    def cache_key(self) -> bytes | None:
        """What keys the names of requests in a private swarm, so that outsiders cannot test guesses; else None."""
        return _derived(self.key, b"shoal cache key v1") if self.key is not None else None

    @property
    def old_cache_keys(self) -> list[bytes]:
        """The same of the swarm's earlier keys, under which answers may still be stored here."""
        return [_derived(key, b"shoal cache key v1") for key in self.old_keys] if self.key is not None else []

    @property
    def seal_keys(self) -> list[bytes]:
        """What published blocks are sealed with in a private swarm, the current one first (cache/sealing.py)."""
        return [_derived(key, b"shoal seal key v1") for key in (self.key, *self.old_keys)] if self.key else []

    def __repr__(self) -> str:
        return f"Membership({self.name!r}, {'private' if self.key else 'open'}, {len(self.invites)} invites)"


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, purpose, "sha256")


def decide(
    section: SwarmSection, *, joined: Sequence[str] = (), remembered: str | None = None, ports: P2pState | None = None
) -> Membership:
    """The membership for this start. joined: invites of the command line; ports: those of the last start.

    Raises ValueError (InviteError) for an invite that is none.
    """
    from .swarm.invite import Invite

    last = [Invite.parse(text) for text in (joined or ([remembered] if remembered else []))]
    configured = [Invite.parse(text) for text in section.peers]
    return with_invites(section, last, configured, ports or P2pState())


def with_invites(
    section: SwarmSection, last: Sequence[Invite], configured: Sequence[Invite], ports: P2pState
) -> Membership:
    """The same, with invites that are parsed. last: joined by hand, and decisive; configured: `swarm.peers`."""
    name, key = section.name, bytes.fromhex(section.key) if section.key else None
    notes: list[str] = []
    named = next((invite for invite in (*last, *configured) if invite.swarm is not None), None)
    if named is not None and named.swarm is not None:
        default = SwarmSection().name
        if section.name not in (default, named.swarm):
            notes.append(
                f"the swarm joined is {named.swarm!r}, so swarm.name = {section.name!r} of the configuration is not "
                "used; `shoal join --forget` goes back to it"
            )
        name, key = named.swarm, named.key or (key if section.name == named.swarm else None)
    invites = tuple(invite for invite in (*last, *configured) if invite.swarm in (None, name))
    if len(invites) < len(last) + len(configured):
        notes.append(f"invites to other swarms than {name!r} are passed over; a node is in one swarm at a time")
    old = tuple(bytes.fromhex(text) for text in section.old_keys) if name == section.name else ()
    owner, ticket = (named.owner, named.ticket) if named is not None else (None, None)
    if section.listen:
        return Membership(
            name=name,
            key=key,
            owner=owner,
            ticket=ticket,
            listen=section.listen,
            chosen=True,
            invites=invites,
            notes=tuple(notes),
            old_keys=old,
        )
    beyond = any(not addresses.is_local_multiaddr(addr) for invite in invites for addr in invite.addrs)
    listen = (EVERYWHERE.format(ports.everywhere or EVERYWHERE_PORT) if beyond else LOOPBACK.format(ports.loopback),)
    return Membership(
        name=name,
        key=key,
        owner=owner,
        ticket=ticket,
        listen=listen,
        chosen=False,
        opened=beyond,
        invites=invites,
        notes=tuple(notes),
        old_keys=old,
    )
