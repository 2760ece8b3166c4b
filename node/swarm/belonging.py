"""Who belongs, put into effect: rosters are fetched and passed on, newcomers let in, and who was put out is dropped.

The rules are admission.py's, the statements roster.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from ...protocols.peer_id import PeerId
from ...protocols.session import CallError, Session, SessionLost
from . import admission as admissions
from .admission import Admission
from .advert import AdvertBook
from .links import Host, Links
from .peer import Peer
from .roster import RosterRefused

log = logging.getLogger("shoal.swarm")

ROSTER_S = 5.0


class Swarm(Protocol):
    """What is needed of the swarm."""

    admission: Admission

    def book(self) -> AdvertBook: ...
    def greet(self, peer: Peer, session: Session) -> None: ...
    def notify(self) -> None: ...
    def spawn(self, task: Callable[..., Awaitable[object]], *arguments: Any) -> None: ...  # until the swarm ends


class Belonging:
    def __init__(self, host: Host, links: Links, swarm: Swarm) -> None:
        self._host, self._links, self._swarm = host, links, swarm
        self._out = self._put_out()

    def _put_out(self) -> set[PeerId]:
        roster = self._swarm.admission.roster
        return {entry.peer for entry in roster.revoked} if roster is not None else set()

    async def settle(self, peer: Peer, session: Session) -> None:
        """Read the newer roster of a peer that this node knows no right of, and let it in or put it out."""
        await self._pull_roster(session)
        self._swarm.admission.pending.discard(peer.id)
        if self._swarm.admission.admits(peer.id):
            self._swarm.greet(peer, session)
            self._swarm.notify()
        else:
            self._links.expel(peer, admissions.STRANGER, bar=False)

    def fetch_roster(self, session: Session) -> None:
        """A peer has a newer one."""
        if not self._swarm.admission.open:
            self._swarm.spawn(self._pull_roster, session)

    async def _pull_roster(self, session: Session) -> None:
        try:
            with trio.fail_after(ROSTER_S):
                self._swarm.admission.take(await session.request(admissions.CALL))
        except (CallError, SessionLost, trio.TooSlowError):
            return
        except RosterRefused as refused:
            log.warning("a roster is refused: %s", refused, extra={"peer": session.remote_peer})

    def roster_changed(self) -> None:
        """Put out who does not belong any more, call back who belongs again, and tell the others at once."""
        roster = self._swarm.admission.roster
        were_out, self._out = self._out, self._put_out()
        for member in roster.members if roster is not None else ():
            self._host.unbar(member.peer)
        for peer in self._links.peers.values():
            if self._swarm.admission.admits(peer.id) or peer.id in self._swarm.admission.pending:
                continue
            if peer.sessions or (peer.seeking and self._swarm.admission.is_revoked(peer.id)):
                log.info("a peer does not belong any more", extra={"peer": peer.id})
                self._swarm.book().forget(peer.id)
                self._links.expel(peer, admissions.REVOKED, bar=self._swarm.admission.is_revoked(peer.id))
        for peer_id in were_out - self._out:
            back = self._links.peers.get(peer_id)
            if back is not None and back.addresses and self._swarm.admission.admits(peer_id):
                self._links.seek(back)  # it tries by itself as well, but once a minute
        for session in self._links.sessions():
            if self._swarm.admission.admits(session.remote_peer):
                session.send_note(admissions.NOTE, self._swarm.admission.number)
        self._swarm.notify()
