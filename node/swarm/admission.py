"""Who is let in, and what they may do: the roster and the tickets of a private swarm, as this node applies them.

An open swarm has no owner and lets everybody do everything. In one with an owner a peer shows its papers in its hello:

    papers = {"owner": peer id, "roster": number of the newest that it has, "ticket": ticket wire or missing}

Who has no good ticket and does not stand on the roster, but has a newer roster, may stay for the moment that it takes
to read that one. The roster is kept in a file, so that who was put out stays out over restarts. The owner's own node
(the one that holds the owner's key) puts those who come with a good ticket on the roster.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ...protocols.peer_id import Identity, PeerId, short
from ...protocols.session import ProtocolError
from .. import paths
from .roster import ROLES, Owner, Role, Roster, RosterRefused, Ticket, read_roster, read_ticket

log = logging.getLogger("shoal.swarm")

REMAKE_S = 24 * 3600.0  # an invite shown by the owner's node is at most so much older than it looks
NOTE = "roster"
CALL = "roster"
REVOKED = "revoked: the swarm's owner has put this node out"
STRANGER = "not a member of this swarm; ask its owner for an invite"


def write(path: Path, wire: list[bytes]) -> None:
    """Keep a roster in its file. OSError."""
    paths.write_private(path, msgspec.msgpack.encode(wire), replace=True)


class Admission:
    """owner: None for an open swarm. ticket: what this node came with. path: the roster's file.

    pending: the peers whose newer roster is to be read before they are let in.

    owner_key: the owner's, where this machine is the owner's. changed: called when the roster has changed.
    """

    def __init__(
        self,
        swarm: str,
        me: PeerId,
        *,
        owner: PeerId | None = None,
        ticket: list[bytes] | None = None,
        path: Path | None = None,
        owner_key: Identity | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.owner, self.ticket = owner, ticket
        self.pen = Owner(owner_key, swarm, clock=clock) if owner_key and owner_key.peer_id == owner else None
        self.roster: Roster | None = None
        self.wire: list[bytes] | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._swarm, self._me, self._path, self._clock = swarm, me, path, clock
        self.pending: set[PeerId] = set()
        self._shown: dict[PeerId, Ticket] = {}
        self._made: tuple[float, list[bytes]] | None = None
        if owner is not None:
            self._load()
        if self.pen is not None and self.roster is None:
            self.take(self.pen.first_roster(me))

    @property
    def open(self) -> bool:
        return self.owner is None

    @property
    def number(self) -> int:
        return self.roster.seq if self.roster is not None else 0

    # -- papers ----------------------------------------------------------------------------------------------------

    def papers(self) -> dict[str, Any] | UnsetType:
        """What this node shows in its hello."""
        if self.owner is None:
            return UNSET
        shown: dict[str, Any] = {"owner": self.owner, "roster": self.number}
        if self.ticket is not None:
            shown["ticket"] = self.ticket
        return shown

    def check(self, peer: PeerId, papers: dict[str, Any] | UnsetType) -> None:
        """ProtocolError, with the reason for the peer, unless it is let in, or has a newer roster to show."""
        self.pending.discard(peer)
        if self.owner is None:
            return
        wire = papers.get("ticket") if isinstance(papers, dict) else None
        refusal = STRANGER
        if wire is not None:
            try:
                self._shown[peer] = read_ticket(wire, swarm=self._swarm, owner=self.owner, now=self._clock())
            except RosterRefused as refused:
                refusal = str(refused)
        if not self.admits(peer) and self.number_in(papers) > self.number:
            self.pending.add(peer)
        elif not self.admits(peer):
            self._shown.pop(peer, None)
            raise ProtocolError(REVOKED if self.is_revoked(peer) else refusal)

    def welcome(self, peer: PeerId) -> None:
        """A peer is in; the owner's node puts it on the roster, unless it stands there."""
        ticket = self._shown.get(peer)
        if self.pen is None or self.roster is None or ticket is None:
            return
        if self.roster.member(peer) is None and self.admits(peer):
            self.take(self.pen.admit(self.roster, peer, ticket.roles, ticket.id))

    def ticket_to_pass_on(self) -> list[bytes] | None:
        """What an invite made here holds: a new ticket on the owner's machine, elsewhere the one that this node has."""
        if self.pen is None:
            return self.ticket
        now = self._clock()
        if self._made is None or now - self._made[0] > REMAKE_S:
            self._made = (now, self.pen.ticket())
        return self._made[1]

    @staticmethod
    def number_in(papers: dict[str, Any] | UnsetType) -> int:
        number = papers.get("roster") if isinstance(papers, dict) else None
        return number if isinstance(number, int) else 0

    # -- who may what ----------------------------------------------------------------------------------------------

    def roles(self, peer: PeerId) -> tuple[Role, ...]:
        """What a peer may do now; empty: it is not let in."""
        if self.owner is None:
            return ROLES
        if self.is_revoked(peer):
            return ()
        member = self.roster.member(peer) if self.roster is not None else None
        if member is not None:
            return member.roles
        ticket = self._shown.get(peer)
        if ticket is None or self._clock() >= ticket.expires or (self.roster and ticket.id in self.roster.void):
            return ()
        return ticket.roles

    def admits(self, peer: PeerId) -> bool:
        return bool(self.roles(peer))

    def may(self, peer: PeerId, role: Role) -> bool:
        return role in self.roles(peer)

    def is_revoked(self, peer: PeerId) -> bool:
        return self.roster is not None and self.roster.is_revoked(peer)

    # -- the roster ------------------------------------------------------------------------------------------------

    def take(self, wire: Any) -> bool:
        """Believe a roster; False when it is not newer than the one at hand. RosterRefused for one that is wrong."""
        if self.owner is None:
            raise RosterRefused("this swarm has no owner")
        roster = read_roster(wire, swarm=self._swarm, owner=self.owner)
        if self.roster is not None and roster.seq <= self.roster.seq:
            return False
        self.roster, self.wire = roster, [bytes(part) for part in wire]
        self._save()
        self.on_change()
        return True

    def _load(self) -> None:
        if self._path is None or self.owner is None:
            return
        try:
            wire = msgspec.msgpack.decode(self._path.read_bytes(), type=list[bytes])
            self.roster = read_roster(wire, swarm=self._swarm, owner=self.owner)
            self.wire = wire
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError, RosterRefused) as error:
            log.warning("the swarm's roster in %s cannot be used: %s", self._path.name, error)

    def _save(self) -> None:
        if self._path is None or self.wire is None:
            return
        try:
            write(self._path, self.wire)
        except OSError as error:
            log.error("the swarm's roster cannot be written: %s", paths.reason(error))  # noqa: TRY400

    def view(self) -> dict[str, Any]:
        """For `shoal swarm members`: JSON-compatible but for nothing secret."""
        roster = self.roster
        return {
            "owner": self.owner,
            "mine": self.pen is not None,
            "number": self.number,
            "roster": self.wire and [base64.b64encode(part).decode() for part in self.wire],
            "members": [
                {"peer": m.peer, "name": f"peer:{short(m.peer)}", "roles": list(m.roles), "since": m.since}
                for m in (roster.members if roster is not None else ())
            ],
            "revoked": [{"peer": r.peer, "at": r.at} for r in (roster.revoked if roster is not None else ())],
        }
