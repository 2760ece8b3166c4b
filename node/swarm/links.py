"""The sessions with other nodes: who is dialled and when, and which of two sessions with one peer stays.

What belongs here: dialling with backoff, running sessions from hello to end, and the tie-break. What is said on a
session is the business of the service that swarm.py puts on it.

Two nodes that dial each other at once get two sessions. Both keep the one begun by the smaller peer id, and close the
other when it is idle, so that no call fails for it. A session that only one side believes alive is pinged first. A
session without a relay comes before one with: calls in progress end where they began, new ones take the direct way.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import trio

from ...protocols.farewell import refuse
from ...protocols.p2p.errors import P2pError
from ...protocols.peer_id import PeerId
from ...protocols.session import (
    ByteStream,
    Hello,
    PeerSilent,
    ProtocolError,
    Service,
    Session,
    SessionLimits,
    SessionLost,
)
from . import refusal
from .admission import REVOKED
from .peer import GIVE_UP_AFTER_S, STRANGER_PATIENCE_S, Backoff, Peer
from .relaying import URGENT_DIAL_S, URGENT_RETRY_S

log = logging.getLogger("shoal.swarm")

PROTOCOL = "/shoal/session/1.0.0"
MAX_PEERS = 256
MAX_SESSIONS_PER_PEER = 3
DIAL_S = 20.0
SETTLED_S = 5.0  # a session that held so long ends the backoff
REFUSED_RETRY_S = 60.0  # after a peer said no (another swarm, another version)
LAG_S = 0.4  # what the node with the larger id waits longer before it dials again
RETIRE_S = 2.0  # both sides have both sessions by then, and use the same
RETIRE_DRAIN_S = 300.0
ALIVE_S = 1.5
FAREWELL_S = 1.5
DIALS = 3  # at once, to peers that nobody named and no request waits for: a handshake takes both 30 ms of computing
STRANGER_LAG_S = 0.6  # what the node with the larger id leaves the other for dialling first
ENOUGH = "enough peers"  # why a node that has too many sends one away
REGAIN_LOOK_S = 0.05
DISMISSED_S = 600.0  # how long a peer that was sent away stays away


class P2pStream(ByteStream, Protocol):
    """A stream with the peer's id, as its connection's handshake proved it."""

    @property
    def remote(self) -> PeerId: ...


class Host(Protocol):
    """What the swarm needs of protocols/p2p/host.py."""

    def addresses(self) -> list[str]: ...
    def is_here(self, peer_id: PeerId, /) -> bool: ...  # connected, and on this machine
    async def listen(self, address: str, /) -> Any: ...
    async def connect(self, peer_id: PeerId, addrs: Sequence[str], /) -> None: ...
    async def open_stream(self, peer_id: PeerId, protocol: str, /) -> Any: ...
    def handle(
        self,
        protocol: str,
        handler: Callable[[Any], Awaitable[None]],
        /,
        *,
        barred: Callable[[Any], Awaitable[None]] | None = None,
    ) -> None: ...
    async def disconnect(self, peer_id: PeerId, /) -> None: ...
    def bar(self, peer_id: PeerId, /) -> None: ...
    def unbar(self, peer_id: PeerId, /) -> None: ...


class Owner(Protocol):
    """What the links need of the swarm."""

    def hello(self) -> Hello: ...
    def peer(self, peer_id: PeerId) -> Peer: ...
    def service(self, peer_id: PeerId) -> Service: ...
    def greet(self, peer: Peer, session: Session) -> None: ...  # a session is ready
    def is_urgent(self, peer_id: PeerId) -> bool: ...  # a relay, without which others cannot be reached
    def is_barred(self, peer_id: PeerId) -> bool: ...  # must not be connected to
    def notify(self) -> None: ...  # somebody came or went


class Links:
    """peers: everyone known in this run."""

    def __init__(self, host: Host, me: PeerId, owner: Owner, limits: SessionLimits) -> None:
        self.peers: dict[PeerId, Peer] = {}
        self._host, self._me, self._owner, self._limits = host, me, owner, limits
        self._nursery: trio.Nursery | None = None
        self._dials = trio.CapacityLimiter(DIALS)
        self._direct: set[PeerId] = set()  # a direct connection waits for the session that is still on a relay
        self._moving: set[PeerId] = set()
        self.begun = 0  # sessions
        self._frames_of_ended = [0, 0]  # in, out
        self._bytes_of_ended = [0, 0]  # in, out

    @property
    def open(self) -> bool:
        return self._nursery is not None

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._host.handle(PROTOCOL, self._incoming, barred=lambda stream: refuse(stream, REVOKED))

    async def stop(self, reason: str, drain_s: float) -> None:
        """Take nothing new and end every session. Calls in flight get `drain_s` seconds; cancelling cuts that short."""
        self._nursery = None
        sessions = self._all()
        try:
            if drain_s > 0:
                await _goodbye(sessions, reason, drain_s)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL_S):
                await _goodbye(self._all(), reason, 0.0)

    async def leave_all(self, reason: str) -> None:
        """End every session, seek nobody any more, and forget who is away."""
        with trio.move_on_after(FAREWELL_S):
            await _goodbye(self._all(), reason, 0.0)
        for peer in self.peers.values():
            if peer.seeking is not None:
                peer.seeking.cancel()
                peer.seeking = None
        self.peers = {peer_id: peer for peer_id, peer in self.peers.items() if peer.sessions}

    def _all(self) -> list[Session]:
        return [session for peer in self.peers.values() for session in peer.sessions]

    @property
    def bytes_received(self) -> int:
        """On all sessions since the start; what the transport adds is not counted."""
        return self._bytes_of_ended[0] + sum(session.bytes_in for session in self._all())

    @property
    def bytes_sent(self) -> int:
        return self._bytes_of_ended[1] + sum(session.bytes_out for session in self._all())

    @property
    def frames_received(self) -> int:
        """On all sessions since the start."""
        return self._frames_of_ended[0] + sum(session.frames_in for session in self._all())

    @property
    def frames_sent(self) -> int:
        return self._frames_of_ended[1] + sum(session.frames_out for session in self._all())

    def sessions(self) -> list[Session]:
        """The one in use with each connected peer."""
        return [peer.session for peer in self.peers.values() if peer.session is not None and peer.session.usable]

    # -- dialling ----------------------------------------------------------------------------------------------

    def seek(self, peer: Peer) -> None:
        """Dial the peer whenever it is away, from now on."""
        if peer.seeking is None and peer.id != self._me and self._nursery is not None:
            peer.seeking = trio.CancelScope()
            self._nursery.start_soon(self._keep, peer, peer.seeking)

    def stop_seeking(self, peer: Peer) -> None:
        if peer.seeking is not None:
            peer.seeking.cancel()
            peer.seeking = None

    def nudge(self, peer: Peer) -> None:
        """There is reason to believe that a peer that is sought can be reached now: dial it, and often at first."""
        if peer.session is None and peer.seeking is not None:
            peer.nudged = True
            peer.stir()
            if peer.dialling is not None:
                peer.dialling.cancel()  # it may be waiting for an address that leads nowhere

    async def regain(self, peer: Peer, within_s: float) -> Session | None:
        """A session with a peer whose last one was lost, as soon as there is one; None when a dial has failed."""
        failures, nudged = peer.failures, False
        self.seek(peer)
        with trio.move_on_after(within_s):
            while not peer.usable and peer.failures == failures:
                if peer.session is None and not nudged:
                    nudged = True
                    self.nudge(peer)
                with trio.move_on_after(REGAIN_LOOK_S):
                    await peer.changed.wait()
        return peer.session if peer.usable else None

    def expel(self, peer: Peer, reason: str, *, bar: bool) -> None:
        """End every session with a peer now, with the reason; bar: and let it connect no more."""
        self.stop_seeking(peer)
        if self._nursery is not None:
            self._nursery.start_soon(self._expel, peer.id, list(peer.sessions), reason, bar)

    async def _expel(self, peer_id: PeerId, sessions: list[Session], reason: str, bar: bool) -> None:
        with trio.move_on_after(FAREWELL_S):
            await _goodbye(sessions, reason, 0.0)
        if bar and self._owner.is_barred(peer_id):  # it may have been let in again meanwhile
            self._host.bar(peer_id)

    def dismiss(self, peer: Peer, reason: str = ENOUGH) -> None:
        """Send a connected peer away in good order."""
        self.stop_seeking(peer)
        peer.dismissed_until = trio.current_time() + DISMISSED_S
        for session in peer.sessions:
            if self._nursery is not None:
                self._nursery.start_soon(session.goodbye, reason, RETIRE_DRAIN_S)

    async def _keep(self, peer: Peer, scope: trio.CancelScope) -> None:
        backoff = Backoff(LAG_S if self._me > peer.id else 0.0)
        with scope:
            if peer.stranger and self._me > peer.id and not peer.needed:
                with trio.move_on_after(STRANGER_LAG_S):
                    await peer.changed.wait()  # it has heard of this node, too, and dials first
            while not self._gave_up(peer, backoff):
                if peer.session is not None:
                    since, changed = trio.current_time(), peer.changed
                    await changed.wait()
                    if trio.current_time() - since > SETTLED_S:
                        backoff.reset()
                    continue
                pause = await self._dial(peer, backoff)
                if self._owner.is_urgent(peer.id):
                    pause = min(pause, URGENT_RETRY_S)
                if peer.session is None and not self._gave_up(peer, backoff) and not peer.nudged:
                    with trio.move_on_after(pause):
                        await peer.changed.wait()
                if peer.nudged:
                    peer.nudged = False
                    backoff.reset()
        if peer.seeking is scope:
            peer.seeking = None

    @staticmethod
    def _gave_up(peer: Peer, backoff: Backoff) -> bool:
        """Whether a peer that nobody named is left alone from now on."""
        if peer.configured:
            return False
        if trio.current_time() < peer.dismissed_until:
            return True
        return backoff.waited > (STRANGER_PATIENCE_S if peer.stranger and not peer.met else GIVE_UP_AFTER_S)

    async def _dial(self, peer: Peer, backoff: Backoff) -> float:
        """One attempt, and the whole session if it works; then the seconds to wait."""
        try:
            async with nullcontext() if peer.configured or peer.needed else self._dials:
                stream = await self._open(peer)
            if stream is None:
                return 0.0
        except (P2pError, trio.TooSlowError) as error:
            told = str(error) or f"no answer within {DIAL_S:.0f} s"
            if told != peer.problem:
                log.info("cannot reach a peer: %s", told, extra={"peer": peer.id})
            peer.problem = told
            peer.failures += 1
        except Exception as error:
            peer.problem = f"dialling failed: {type(error).__name__}"
            log.warning("dialling failed: %s", type(error).__name__, extra={"peer": peer.id})
        else:
            since = trio.current_time()
            refused = not await self._live(stream, peer.id, initiator=True)
            if refused:
                return REFUSED_RETRY_S
            if trio.current_time() - since > SETTLED_S:
                backoff.reset()
        return backoff.failed()

    async def _open(self, peer: Peer) -> Any:
        """A stream for a session; None when there is reason to begin again."""
        # A relay may come back at any moment: what was sent to it while it was away is not waited for long.
        hasty = self._owner.is_urgent(peer.id) and peer.failures % 4
        try:
            with trio.fail_after(URGENT_DIAL_S if hasty else DIAL_S), trio.CancelScope() as peer.dialling:
                await self._host.connect(peer.id, peer.addresses)
                return await self._host.open_stream(peer.id, PROTOCOL)
        finally:
            peer.dialling = None
        return None

    def went_direct(self, peer_id: PeerId) -> None:
        """This node has a direct connection with a peer beside a relayed one: their session moves over to it."""
        peer = self.peers.get(peer_id)
        if peer is None or peer.session is None:
            self._direct.add(peer_id)  # that session is still being begun
        elif peer.session.relayed and self._nursery is not None:
            self._nursery.start_soon(self._move, peer)

    async def _move(self, peer: Peer) -> None:
        if peer.id in self._moving:
            return
        self._moving.add(peer.id)
        try:
            with trio.fail_after(DIAL_S):
                stream = await self._host.open_stream(peer.id, PROTOCOL)
        except (P2pError, trio.TooSlowError) as error:
            log.info("the session stays on the relay: %s", error, extra={"peer": peer.id})
            return
        finally:
            self._moving.discard(peer.id)
        await self._live(stream, peer.id, initiator=True)

    # -- sessions ----------------------------------------------------------------------------------------------

    async def _incoming(self, stream: P2pStream) -> None:
        known = self.peers.get(stream.remote)
        if self._nursery is None or stream.remote == self._me:
            return
        if known is None and len(self.peers) >= MAX_PEERS and not self._make_room():
            log.info("a peer is turned away: %d are known", MAX_PEERS, extra={"peer": stream.remote})
            await refuse(stream, "no room for more peers")
        elif known is not None and len(known.sessions) >= MAX_SESSIONS_PER_PEER:
            log.info("a peer wants too many sessions", extra={"peer": stream.remote})
            await refuse(stream, "too many sessions")
        else:
            await self._live(stream, stream.remote, initiator=False)

    def _make_room(self) -> bool:
        away = [peer.id for peer in self.peers.values() if not peer.sessions and peer.seeking is None]
        for peer_id in away:
            del self.peers[peer_id]
        return bool(away)

    async def _live(self, stream: ByteStream, peer_id: PeerId, *, initiator: bool) -> bool:
        """Run a session from its hello to its end; whether there was one. Nothing that happens in it is raised."""
        session = Session(
            stream,
            self._owner.service(peer_id),
            local=self._owner.hello(),
            remote_peer=peer_id,
            initiator=initiator,
            limits=self._limits,
        )
        try:
            await session.run(_WhenReady(self._joined, session))
        except (ProtocolError, SessionLost) as error:
            if initiator:
                self._owner.peer(peer_id).problem = str(error)
            log.info("no session: %s", refusal.told(str(error)), extra={"peer": peer_id})
        except Exception as error:
            log.error("a session failed: %s", type(error).__name__, extra={"peer": peer_id})  # noqa: TRY400
        finally:
            self._left(session)
        if isinstance(session.lost, PeerSilent) and (cut := getattr(stream, "cut_connection", None)) is not None:
            await cut()  # the connection is as dead as the session: else the next one would begin on it
            if (relay := getattr(stream, "relay", None)) is not None and self._nursery is not None:
                self._nursery.start_soon(self._check_relay, relay)
        return session.remote_hello is not None

    def _joined(self, session: Session) -> None:
        nursery = self._nursery
        if nursery is None:
            session.close("the node is stopping")
            return
        peer = self._owner.peer(session.remote_peer)
        peer.sessions.append(session)
        self.begun += 1
        old = peer.session
        if old is None or not old.usable:
            peer.use(session)
            if old is None:
                log.info("peer connected", extra={"peer": peer.id})
        elif old.relayed and not session.relayed:
            peer.use(session)
            nursery.start_soon(self._retire, peer, old)
        elif old.initiator == session.initiator or (
            old.relayed == session.relayed and session.initiator == (self._me < peer.id)
        ):
            # The same side twice: it has lost the old one, perhaps before this side noticed.
            peer.use(session)
            nursery.start_soon(self._retire, peer, old)
        else:
            nursery.start_soon(self._check_alive, peer, old, session)
            nursery.start_soon(self._retire, peer, session)
        nursery.start_soon(self._measure, peer, session)
        if session.relayed and peer.id in self._direct:
            nursery.start_soon(self._move, peer)
        self._direct.discard(peer.id)
        self._owner.greet(peer, session)
        self._owner.notify()

    def _left(self, session: Session) -> None:
        peer = self.peers.get(session.remote_peer)
        if peer is None or session not in peer.sessions:
            return
        peer.sessions.remove(session)
        self._frames_of_ended[0] += session.frames_in
        self._frames_of_ended[1] += session.frames_out
        self._bytes_of_ended[0] += session.bytes_in
        self._bytes_of_ended[1] += session.bytes_out
        if peer.session is session:
            others = [other for other in peer.sessions if other.usable]
            peer.use(others[0] if others else None)
            if session.leaving == ENOUGH:
                peer.dismissed_until = trio.current_time() + DISMISSED_S
            if not others:
                peer.problem = str(session.lost)
                log.log(
                    logging.WARNING if peer.refused in refusal.OUT else logging.INFO,
                    "peer gone: %s",
                    refusal.told(peer.problem),
                    extra={"peer": peer.id},
                )
                if session.relayed and session.leaving is None:
                    peer.missed_at = trio.current_time()
                    self.nudge(peer)
        self._owner.notify()

    async def _check_alive(self, peer: Peer, old: Session, new: Session) -> None:
        """The old session would stay; if it is dead (the peer has noticed, this side not yet), the new one does."""
        try:
            await old.ping(ALIVE_S)
        except (SessionLost, trio.TooSlowError):
            if peer.session is old and new.usable:
                peer.use(new)

    async def _check_relay(self, relay: PeerId) -> None:
        """A peer behind a relay was silent: perhaps it is the line to the relay that is dead, and not noticed yet."""
        known = self.peers.get(relay)
        if known is not None and known.session is not None:
            try:
                await known.session.ping(ALIVE_S)
            except (SessionLost, trio.TooSlowError):
                await self._host.disconnect(relay)

    async def _retire(self, peer: Peer, session: Session) -> None:
        """Close a session that is one too many, once no side begins calls on it and the last one is over."""
        await trio.sleep(RETIRE_S if session.initiator else 3 * RETIRE_S)
        if peer.session is not session and session.lost is None:
            await session.goodbye("another session is in use", RETIRE_DRAIN_S)

    async def _measure(self, peer: Peer, session: Session) -> None:
        try:
            rtt_s = await session.ping()
        except (SessionLost, trio.TooSlowError):
            return
        if peer.session is session:
            peer.rtt_s = rtt_s


async def _goodbye(sessions: Sequence[Session], reason: str, drain_s: float) -> None:
    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(session.goodbye, reason, drain_s)


class _WhenReady:
    """The task status of a session that runs in its own task: calls back when the hellos were exchanged."""

    def __init__(self, ready: Callable[[Session], None], session: Session) -> None:
        self._ready, self._session = ready, session

    def started(self, value: object = None) -> None:
        self._ready(self._session)
