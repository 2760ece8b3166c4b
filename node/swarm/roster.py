"""Who belongs to a private swarm: tickets and the roster, both signed by the swarm's owner. Pure; no state, no I/O.

The owner is a key of its own (a peer id in form), not a node: it can move to another machine. A ticket lets whoever
shows it in for a while; the roster says who is in for good, in which roles, and who was put out. The newest roster
wins, wherever it comes from, and what it says goes before any ticket.

    ticket wire = [statement, signature];  statement = msgpack map, signed with "shoal-ticket-v1" 00 before it
    roster wire = the same with "shoal-roster-v1" 00
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from ...protocols.peer_id import Identity, PeerId, verify

Role = Literal["ask", "serve", "cache"]
ROLES: tuple[Role, ...] = ("ask", "serve", "cache")
"""ask: may have requests answered. serve: its answers are wanted. cache: may read what others have answered."""

TICKET_DOMAIN, ROSTER_DOMAIN = b"shoal-ticket-v1\0", b"shoal-roster-v1\0"
TICKET_TTL_S = 7 * 24 * 3600.0
MAX_TICKET_BYTES = 1024
MAX_ROSTER_BYTES = 512 * 1024
MAX_MEMBERS = 4096
MAX_CLOCK_SKEW_S = 60.0
VERSION = 1

Name = Annotated[str, Meta(max_length=64)]
Roles = Annotated[tuple[Role, ...], Meta(max_length=3)]
S = TypeVar("S", bound="Ticket | Roster")


class RosterRefused(ValueError):
    """A ticket or roster is not believed. The message says why."""


class Ticket(Struct, frozen=True, kw_only=True):
    """id: 16 random bytes, by which it can be called in. created, expires: Unix time in seconds."""

    swarm: Name
    owner: PeerId
    id: Annotated[bytes, Meta(min_length=16, max_length=16)]
    created: float
    expires: float
    roles: Roles = ROLES
    v: int = VERSION


class Member(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """since: Unix time in seconds. ticket: the id of the one that it came with."""

    peer: PeerId
    since: float
    roles: Roles = ROLES
    ticket: bytes = b""


class Revoked(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """at: Unix time. roles: what it might do before, and may again if it is let in again."""

    peer: PeerId
    at: float
    roles: Roles = ROLES


class Roster(Struct, frozen=True, kw_only=True):
    """seq: greater than in every earlier roster. void: ids of tickets that are good no longer."""

    swarm: Name
    owner: PeerId
    seq: int
    created: float
    members: Annotated[tuple[Member, ...], Meta(max_length=MAX_MEMBERS)] = ()
    revoked: Annotated[tuple[Revoked, ...], Meta(max_length=MAX_MEMBERS)] = ()
    void: Annotated[tuple[bytes, ...], Meta(max_length=MAX_MEMBERS)] = ()
    v: int = VERSION

    def member(self, peer: PeerId) -> Member | None:
        return next((member for member in self.members if member.peer == peer), None)

    def put_out(self, peer: PeerId) -> Revoked | None:
        return next((entry for entry in self.revoked if entry.peer == peer), None)

    def is_revoked(self, peer: PeerId) -> bool:
        return self.put_out(peer) is not None


# -- reading -------------------------------------------------------------------------------------------------------


def read_ticket(wire: Any, *, swarm: str, owner: PeerId, now: float) -> Ticket:
    """The ticket, if it holds now. RosterRefused."""
    ticket = _read(wire, Ticket, TICKET_DOMAIN, MAX_TICKET_BYTES, swarm, owner)
    if not ticket.created <= now + MAX_CLOCK_SKEW_S:
        raise RosterRefused("the ticket was made in the future; one of the two clocks is wrong")
    if not now < ticket.expires:
        raise RosterRefused("the invite has expired; ask the swarm's owner for a new one")
    return ticket


def read_roster(wire: Any, *, swarm: str, owner: PeerId) -> Roster:
    """The roster, if the owner made it. RosterRefused."""
    return _read(wire, Roster, ROSTER_DOMAIN, MAX_ROSTER_BYTES, swarm, owner)


def _read(wire: Any, kind: type[S], domain: bytes, limit: int, swarm: str, owner: PeerId) -> S:
    if not (isinstance(wire, list | tuple) and len(wire) == 2 and all(isinstance(part, bytes) for part in wire)):
        raise RosterRefused("malformed: expected [statement, signature]")
    statement, signature = wire
    if len(statement) > limit:
        raise RosterRefused(f"a statement of {len(statement)} bytes; the limit is {limit}")
    if not verify(owner, signature, domain + statement):
        raise RosterRefused("the signature is not that of the swarm's owner")
    try:
        read = msgspec.msgpack.decode(statement, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RosterRefused("the statement is ill-typed") from None
    if read.v != VERSION or read.swarm != swarm or read.owner != owner:
        raise RosterRefused("it speaks of another swarm")
    return read


# -- writing: the owner's ------------------------------------------------------------------------------------------


class Owner:
    """The owner's pen. name: the swarm's."""

    def __init__(self, key: Identity, name: str, *, clock: Callable[[], float] = time.time) -> None:
        self.id: PeerId = key.peer_id
        self._key, self._name, self._clock = key, name, clock

    def ticket(self, roles: Sequence[Role] = ROLES, *, ttl_s: float = TICKET_TTL_S) -> list[bytes]:
        now = self._clock()
        ticket = Ticket(
            swarm=self._name,
            owner=self.id,
            id=secrets.token_bytes(16),
            created=now,
            expires=now + ttl_s,
            roles=tuple(dict.fromkeys(roles)),
        )
        return self._signed(TICKET_DOMAIN, ticket)

    def first_roster(self, member: PeerId, *, new: bool = False) -> list[bytes]:
        """One with one member. new: of a swarm that is created now. Its number is the time then, above all those of an
        earlier swarm of this owner and name, whose rosters are still good signatures. Otherwise it is the lowest, so
        that an owner's node that has lost its roster gets it back from the members."""
        now = self._clock()
        seq, members = int(now) if new else 1, (Member(peer=member, since=now),)
        return self.sign(Roster(swarm=self._name, owner=self.id, seq=seq, created=now, members=members))

    def admit(self, roster: Roster, peer: PeerId, roles: Sequence[Role], ticket: bytes = b"") -> list[bytes]:
        """The next roster, with this member in these roles; one that was put out before is in again."""
        now, known = self._clock(), roster.member(peer)
        member = Member(peer=peer, since=known.since if known else now, roles=tuple(roles), ticket=ticket)
        return self._next(
            roster,
            members=(*(m for m in roster.members if m.peer != peer), member),
            revoked=tuple(entry for entry in roster.revoked if entry.peer != peer),
        )

    def revoke(self, roster: Roster, peer: PeerId, *, ticket: bytes = b"") -> list[bytes]:
        """The next roster, without this member. The ticket that it came with is void, lest it comes back under
        another name; ticket: another one to call in."""
        known = roster.member(peer)
        before = known or roster.put_out(peer)
        entry = Revoked(peer=peer, at=self._clock(), roles=before.roles if before is not None else ROLES)
        void = {known.ticket if known is not None else b"", ticket} - {b""}
        return self._next(
            roster,
            members=tuple(m for m in roster.members if m.peer != peer),
            revoked=(*(other for other in roster.revoked if other.peer != peer), entry),
            void=tuple(dict.fromkeys((*roster.void, *sorted(void)))),
        )

    def readmit(self, roster: Roster, peer: PeerId, roles: Sequence[Role] = ()) -> list[bytes]:
        """The next roster, with one that was put out in it again: in these roles, or in those that it had.

        The ticket that it once came with stays void: others may have it.
        """
        entry = roster.put_out(peer)
        return self.admit(roster, peer, roles or (entry.roles if entry is not None else ROLES))

    def sign(self, roster: Roster) -> list[bytes]:
        return self._signed(ROSTER_DOMAIN, roster)

    def _next(self, roster: Roster, **changes: Any) -> list[bytes]:
        return self.sign(
            msgspec.structs.replace(roster, seq=roster.seq + 1, created=self._clock(), **changes),
        )

    def _signed(self, domain: bytes, statement: Ticket | Roster) -> list[bytes]:
        body = msgspec.msgpack.encode(statement)
        return [body, self._key.sign(domain + body)]
