"""The swarm as one node lives it: which peers it has, the one session with each, and what they say of themselves.

    swarm = Swarm(host, identity, config.swarm, describe=..., serve=router.answer_for_peer, find_blocks=..., book=book)
    async with host.running(), swarm.running():
        await swarm.join(Invite.parse(text))
        swarm.candidates_for("smollm2")

What belongs here: joining, adverts, and who is asked for what. The sessions themselves are kept by links.py, forwarding
is peer_provider.py's, answering serving.py's, what is heard of others gossip.py's.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Protocol

import trio

from ...protocols.p2p.errors import ListenFailed
from ...protocols.peer_id import Identity, PeerId
from ...protocols.session import (
    CallError,
    Hello,
    IncomingCall,
    Service,
    Session,
    SessionLimits,
    SessionLost,
)
from ...providers.base import ErrorKind
from .. import addresses
from ..version import version
from . import admission as admissions
from . import joining, load
from .admission import Admission
from .advert import MAX_HELD, TTL_S, AdvertBook, AdvertContent, AdvertRefused, AdvertWriter
from .gossip import ADVERTS, NEWS
from .invite import Invite, InviteError
from .links import Host, Links
from .lookup import FindBlocks, answer_lookup, ask_all
from .neighbourhood import Neighbourhood, leads_to
from .peer import Peer, PeerView
from .peer_provider import PeerProvider
from .peerbook import PeerBook
from .recruit import WANTED
from .relaying import MEMBER_WITHIN_S, Relaying, relays_in
from .resumption import RESUME, Resumption
from .roster import RosterRefused
from .serving import GENERATE, AnswerForPeer, serve_generate

log = logging.getLogger("shoal.swarm")

DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/4642", "/ip4/0.0.0.0/tcp/0")  # the second when the first is taken
JOIN_S = 15.0
MAX_INVITE_ADDRESSES = 4  # so that it fits on a screen as a QR code
ROSTER_S = 5.0
ADVERT_GAP_S = 0.5
REGAIN_S = 2.0  # for another way to a peer whose relay was lost in the middle of an answer


class SwarmConfig(Protocol):
    """The [swarm] section of the configuration. key: 64 hex digits of a private swarm, or None."""

    @property
    def name(self) -> str: ...
    @property
    def listen(self) -> Sequence[str]: ...
    @property
    def peers(self) -> Sequence[str]: ...
    @property
    def key(self) -> str | None: ...


class JoinFailed(ValueError):
    """A swarm could not be joined. The message says why and what to do."""


class Swarm:
    """name: the swarm's. It may change by `join`.

    describe: what this node offers now. serve: answers a peer's request. find_blocks: answers a peer's look-up.
    book: the peers of earlier runs; None: no memory. admission: who is let in; None: everybody. generations: what
    peers may join; None: nothing. on_change: called when a peer has come, gone or said something new, or the swarm is
    another one now. neighbours: peers that it looks for by itself. heard: adverts kept of nodes that are not connected.
    relaying: the relays that this node uses, and what it relays; None: neither.
    """

    def __init__(
        self,
        host: Host,
        identity: Identity,
        config: SwarmConfig,
        *,
        describe: Callable[[], AdvertContent],
        serve: AnswerForPeer,
        find_blocks: FindBlocks,
        book: PeerBook | None = None,
        limits: SessionLimits | None = None,
        admission: Admission | None = None,
        generations: joining.Generations | None = None,
        on_change: Callable[[], None] | None = None,
        neighbours: int = WANTED,
        heard: int = MAX_HELD,
        relaying: Relaying | None = None,
    ) -> None:
        self.name = config.name
        self.me = identity.peer_id
        self._host, self._identity, self._config = host, identity, config
        self._describe, self._serve, self._find_blocks = describe, serve, find_blocks
        self._book, self._generations = book, generations
        self._on_change = on_change
        self._writer = AdvertWriter(identity, self.name)
        self._neighbours, self._heard = neighbours, heard
        self._adverts = AdvertBook(self.name, heard=heard)
        self._issue = 0  # of this node's advert
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._links = Links(host, self.me, self, limits or SessionLimits())
        self._opened = bool(config.listen)
        self.admission = admission or Admission(config.name, self.me)
        self._around = Neighbourhood(self.me, self._links, self, wanted=neighbours)
        self._gossip = self._around.gossip
        self._relaying = relaying
        self._resumption = Resumption()
        self._somebody = trio.Event()  # replaced when somebody has come or gone

    # -- life ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Swarm]:
        """Peers are dialled and served until the block is left; then each is told, and the sessions end.

        The host must be running around it.
        """
        async with (
            self._book.running() if self._book else nullcontext(),
            _plain_errors(),
            trio.open_nursery() as nursery,
        ):
            self._nursery = nursery
            self._links.start(nursery)
            self.admission.on_change = self._roster_changed
            for entry in self.admission.roster.revoked if self.admission.roster is not None else ():
                self._host.bar(entry.peer)
            for text in self._config.peers:
                await self._seek_configured(text)
            if self._book is not None:
                for remembered in (await self._book.known(self.name))[: self._neighbours]:
                    self.seek(remembered.peer, remembered.addresses)
            nursery.start_soon(self._tell_changes)
            nursery.start_soon(self._around.run)
            await nursery.start(self._resumption.run)
            if self._relaying is not None:
                nursery.start_soon(self._relaying.run)
            try:
                yield self
            finally:
                await self.drain(0.0)
                nursery.cancel_scope.cancel()

    async def drain(self, drain_s: float) -> None:
        """Tell all peers that no new request is taken; those in flight get `drain_s` seconds. Ends the sessions."""
        self._nursery = None
        await self._links.stop("the node is stopping", drain_s)

    async def _seek_configured(self, text: str) -> None:
        try:
            invite = Invite.parse(text)
            if invite.swarm is not None and invite.swarm != self.name:
                raise InviteError(f"it leads to the swarm {invite.swarm!r}; set swarm.name to that")
        except InviteError as error:
            log.warning("a peer of the configuration cannot be used: %s", error)
        else:
            await self._seek_all(invite)

    # -- joining -----------------------------------------------------------------------------------------------

    async def join(self, invite: Invite | str) -> PeerId:
        """Join a swarm: the peer that is connected first. JoinFailed (a ValueError) when none is within 15 s.

        The peers of the invite are looked for even after a failure, as long as the node runs. An invite to another
        swarm makes this node leave the one it is in.
        """
        if isinstance(invite, str):
            invite = Invite.parse(invite)
        if self._nursery is None:
            raise JoinFailed("the node is stopping")
        if invite.key is not None and invite.key.hex() != (self._config.key or "").lower():
            raise JoinFailed(
                "the swarm is private and its key takes effect at a start: stop this node, run `shoal join INVITE`, "
                "then `shoal run`"
            )
        if self.me in invite.peers and len(invite.peers) == 1:
            raise JoinFailed("this invite is this node's own; use it on another machine")
        if invite.swarm is not None and invite.swarm != self.name:
            await self._move(invite.swarm)
        if invite.ticket is not None and invite.owner == self.admission.owner:
            self.admission.ticket = list(invite.ticket)
        sought = await self._seek_all(invite)
        arrived: list[PeerId] = []
        with trio.move_on_after(JOIN_S):
            async with trio.open_nursery() as nursery:

                async def wait_for(peer: Peer) -> None:
                    while not await self._is_in(peer):
                        await peer.changed.wait()
                    arrived.append(peer.id)
                    nursery.cancel_scope.cancel()

                for peer in sought:
                    nursery.start_soon(wait_for, peer)
        if not arrived:
            problems = "; ".join(f"{peer.provider.name}: {peer.problem or 'no answer'}" for peer in sought)
            raise JoinFailed(f"no node of the invite could be reached ({problems}); is it running, and the port open?")
        return arrived[0]

    async def _is_in(self, peer: Peer) -> bool:
        """Whether there is a session with the peer that both sides have accepted: a refusal may still be on its way."""
        session = peer.session
        if session is None or not session.usable:
            return False
        try:
            peer.rtt_s = await session.ping(ROSTER_S)
            while peer.id in self.admission.pending and session.usable:
                await session.ping(ROSTER_S)
        except (SessionLost, trio.TooSlowError):
            return False
        return session.usable and self.admission.admits(peer.id)

    def invite(self) -> str:
        """The line that another machine needs to join. InviteError when this node listens nowhere.

        Addresses of this machine only are left out when there are others. With a private swarm's key it is a secret.
        """
        told = self._relaying.announced() if self._relaying is not None else self._host.addresses()
        told = [address for address in told if not addresses.is_local_multiaddr(address)] or told
        if not told:
            raise InviteError("this node does not listen for peers; set swarm.listen in the configuration")
        key = bytes.fromhex(self._config.key) if self._config.key else None
        ticket = self.admission.ticket_to_pass_on()
        return Invite(
            swarm=self.name,
            addrs=tuple(told[:MAX_INVITE_ADDRESSES]),
            key=key,
            owner=self.admission.owner,
            ticket=(ticket[0], ticket[1]) if ticket is not None else None,
        ).text

    async def _move(self, name: str) -> None:
        log.info("leaving one swarm for another", extra={"left": self.name, "swarm": name})
        self.name = name
        self._writer, self._adverts = AdvertWriter(self._identity, name), AdvertBook(name, heard=self._heard)
        self.admission = Admission(name, self.me)
        await self._links.leave_all("moved to another swarm")
        self.notify()

    async def _seek_all(self, invite: Invite) -> list[Peer]:
        """Dial the peers of an invite, and never give up."""
        await self._open_up(invite.addrs)
        found = []
        for peer_id, addrs in invite.peers.items():
            if peer_id != self.me:
                peer = self.seek(peer_id, addrs)
                peer.configured = True
                found.append(peer)
        return found

    def seek(self, peer_id: PeerId, addrs: Sequence[str]) -> Peer:
        peer = self.peer(peer_id)
        peer.learn(tuple(addrs))
        self._links.seek(peer)
        return peer

    async def _open_up(self, addrs: Sequence[str]) -> None:
        """A node whose owner joins a swarm beyond the machine listens beyond it, unless the configuration says where.

        Only what the owner says counts for this: a peer's advert does not open a port here.
        """
        if self._opened or all(addresses.is_local_multiaddr(address) for address in addrs):
            return
        self._opened = True
        for address in DEFAULT_LISTEN:
            try:
                await self._host.listen(address)
            except ListenFailed as error:
                log.info("%s", error)
            else:
                log.info("listening for peers beyond this machine", extra={"listen": address})
                return

    # -- what there is -----------------------------------------------------------------------------------------

    def peers(self) -> list[PeerView]:
        """Every peer that is connected or looked for; the connected ones first."""
        views = [peer.view(self._adverts.get(peer.id)) for peer in self._links.peers.values()]
        return sorted(views, key=lambda view: (not view.connected, view.peer))

    def is_member(self, peer: PeerId) -> bool:
        """Whether the peer has shown, in this run, that it is one of the swarm (and has a private swarm's key)."""
        known = self._links.peers.get(peer)
        return known is not None and known.met and self.admission.admits(peer)

    def is_connected(self, peer: PeerId) -> bool:
        return self._around.is_connected(peer)

    # -- what discovery needs --------------------------------------------------------------------------------------

    def neighbours(self) -> dict[PeerId, tuple[str, ...]]:
        """The connected peers, and where they can be dialled as far as is known."""
        return {peer.id: peer.addresses for peer in self._links.peers.values() if peer.usable}

    def knows_everyone(self) -> bool:
        return self._around.knows_everyone()

    def needs(self, peer: PeerId) -> bool:
        """Whether the connection with a peer is in use here, or wanted."""
        known = self._links.peers.get(peer)
        return known is not None and (bool(known.sessions) or known.seeking is not None)

    def offers(self, peer: PeerId, model: str) -> bool:
        advert = self._adverts.get(peer)
        return advert is not None and advert.offers(model)

    async def reach(self, peer: PeerId, told: Sequence[str]) -> Session | None:
        """A session with a peer that is said to be at these addresses; None after 3 s."""
        return await self._around.reach(peer, told) if self._nursery is not None else None

    def candidates_for(self, model: str | None, exclude: Collection[PeerId] = ()) -> list[PeerProvider]:
        """The connected peers that offer the model (None: anything), the one with the least to do first.

        When there are none, a few that are known to offer it: asking them connects to them first.
        """
        found: list[tuple[load.Standing, PeerProvider]] = []
        for peer in self._links.peers.values():
            if peer.usable and peer.id not in exclude and self.may_serve(peer.id):
                advert = self._adverts.get(peer.id)
                if advert is not None and advert.offers(model):
                    found.append((peer.standing(), peer.provider))
        if found:
            return load.in_order(found, _random)
        return [
            *self._between(model, exclude),
            *(self.peer(peer).provider for peer in self._around.beyond(model, exclude)),
        ]

    def _between(self, model: str | None, exclude: Collection[PeerId]) -> Iterator[PeerProvider]:
        """Peers that were lost with their relay a moment ago: asking them waits until they are back."""
        for peer in self._links.peers.values():
            advert = self._adverts.get(peer.id)
            offers = peer.between and advert is not None and advert.offers(model)
            if offers and peer.id not in exclude and self.may_serve(peer.id):
                yield peer.provider

    def members(self) -> list[PeerId]:
        """The connected peers with which generations are shared."""
        return [peer.id for peer in self._links.peers.values() if peer.usable and self.may_serve(peer.id)]

    async def lead(self, owner: PeerId, cid: bytes, lost: Collection[PeerId]) -> PeerId | None:
        """Who makes the answer to a request, as the owner of its key says; None when it does not say."""
        session = self.peer(owner).session
        return await joining.ask_lead(session, cid, lost) if session is not None else None

    def joined(self, leader: PeerId, cid: bytes) -> joining.JoinedPeer | None:
        """What a connected peer makes under that key, as a provider."""
        peer = self._links.peers.get(leader)
        if peer is None or peer.session is None or not peer.usable or not self.may_serve(leader):
            return None
        return joining.JoinedPeer(peer.provider, peer.session, cid)

    def stats(self) -> dict[str, Any]:
        """Figures for the status: JSON-compatible."""
        connected = sum(peer.usable for peer in self._links.peers.values())
        return {
            "swarm": self.name,
            "peers": connected,
            "known": len(self._adverts.all()),
            "adverts_taken": self._adverts.taken,
            "adverts_refused": dict(self._adverts.refused),
            "sessions_begun": self._links.begun,
            "frames_received": self._links.frames_received,
            "frames_sent": self._links.frames_sent,
            "bytes_received": self._links.bytes_received,
            "bytes_sent": self._links.bytes_sent,
        }

    async def find(self, request_cid: bytes, timeout: float) -> list[bytes]:
        """Blocks that peers offer as the answer to a request, in the order they came; unverified. timeout: seconds.

        Every connected peer is asked at once. Soon after the first block has come the rest are not waited for.
        """
        return await ask_all(self._links.sessions(), request_cid, timeout)

    def heard_of(self, peer_id: PeerId, addrs: Sequence[str]) -> None:
        """Somebody says that a peer of this swarm is at these addresses (mDNS): it is dialled, if there is room."""
        if self._nursery is not None:
            self._around.heard_of(peer_id, addrs)

    def went_direct(self, peer_id: PeerId) -> None:
        """This node has a direct connection with a peer beside a relayed one: their session moves over to it."""
        self._links.went_direct(peer_id)

    # -- what the links need ---------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        return Hello(swarm=self.name, peer=self.me, agent=f"shoal/{version()}", papers=self.admission.papers())

    def peer(self, peer_id: PeerId) -> Peer:
        """What is known of a peer; from now on it is a known one."""
        peer = self._links.peers.get(peer_id)
        if peer is None:
            provider = PeerProvider(
                peer_id,
                me=self.me,
                session=lambda: known.session if (known := self._links.peers.get(peer_id)) is not None else None,
                advert=lambda: self._adverts.get(peer_id),
                connect=lambda: self._around.connect(peer_id),
                regain=lambda: self._links.regain(self.peer(peer_id), REGAIN_S),
            )
            peer = self._links.peers[peer_id] = Peer(peer_id, provider)
        return peer

    def service(self, peer_id: PeerId) -> Service:
        return _Service(self, peer_id)

    def greet(self, peer: Peer, session: Session) -> None:
        if peer.id in self.admission.pending:
            if self._nursery is not None:
                self._nursery.start_soon(self._settle, peer, session)
            return
        self._tell(peer, session)
        self._gossip.greet(session)
        self.admission.welcome(peer.id)
        hello = session.remote_hello
        if hello is not None and self.admission.number_in(hello.papers) > self.admission.number:
            self._fetch_roster(session)

    async def _settle(self, peer: Peer, session: Session) -> None:
        """Read the newer roster of a peer that this node knows no right of, and let it in or put it out."""
        await self._pull_roster(session)
        self.admission.pending.discard(peer.id)
        if self.admission.admits(peer.id):
            self.greet(peer, session)
            self.notify()
        else:
            self._links.expel(peer, admissions.STRANGER, bar=False)

    def book(self) -> AdvertBook:
        return self._adverts

    def is_barred(self, peer_id: PeerId) -> bool:
        return self.admission.is_revoked(peer_id)

    def may_serve(self, peer_id: PeerId) -> bool:
        return self.admission.may(peer_id, "serve")

    def describe(self) -> AdvertContent:
        return self._describe()

    def is_urgent(self, peer_id: PeerId) -> bool:
        return self._relaying is not None and self._relaying.is_urgent(peer_id)

    def offers_of_relays(self) -> Iterator[tuple[Peer, bool]]:
        """The known peers, each with whether it says that it relays."""
        for peer in self._links.peers.values():
            advert = self._adverts.get(peer.id)
            yield peer, advert is not None and advert.relay

    def relay_came(self, relay: PeerId) -> None:
        """There is a connection to a relay (again): who has a place behind it can be reached, perhaps in a moment."""
        for peer in self._links.peers.values():
            if relay in relays_in(peer.addresses):
                self._links.nudge(peer)

    async def shows_itself(self, peer_id: PeerId) -> bool:
        """Whether a peer is one of the swarm, or shows it within a second."""
        with trio.move_on_after(MEMBER_WITHIN_S):
            while not self.is_member(peer_id):
                await self._somebody.wait()
        return self.is_member(peer_id)

    def notify(self) -> None:
        somebody, self._somebody = self._somebody, trio.Event()
        somebody.set()
        if self._relaying is not None:
            self._relaying.stir()
        if self._on_change is not None:
            self._on_change()

    # -- adverts -----------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """What this node offers has changed: tell the peers, within half a second."""
        self._news.set()

    async def _tell_changes(self) -> None:
        while True:
            with trio.move_on_after(TTL_S / 3):
                await self._news.wait()
            self._news = trio.Event()
            self._issue += 1
            self._adverts.sweep()
            for peer in self._links.peers.values():
                if peer.session is not None:
                    self._tell(peer, peer.session)
            await trio.sleep(ADVERT_GAP_S)

    def _tell(self, peer: Peer, session: Session) -> None:
        """Send the advert, unless the peer has this issue of it already. Each has a number of its own."""
        if peer.told == self._issue and peer.told_on is not None and peer.told_on.lost is None:
            return
        try:
            session.send_advert(self._writer.write(self._describe()))
        except Exception as error:
            log.error("this node's advert cannot be made: %s", type(error).__name__)  # noqa: TRY400
            return
        peer.told, peer.told_on = self._issue, session

    def _take_advert(self, session: Session, wire: Any) -> None:
        peer = self.peer(session.remote_peer)
        try:
            advert = self._adverts.take(wire, brought_by=peer.id)
        except AdvertRefused as refused:
            log.warning("an advert is refused: %s", refused, extra={"peer": peer.id})
            return
        peer.learn(tuple(address for address in advert.addresses if leads_to(address, peer.id)))
        peer.last_good = time.time()
        if self._nursery is not None:
            self._nursery.start_soon(self._remember, peer)
        self._gossip.spread(peer.id, peer.id)
        self.notify()

    async def _remember(self, peer: Peer) -> None:
        """A peer that works and says where it can be dialled is dialled when it is away, in this run and later ones."""
        if not peer.addresses:
            return
        if self._book is not None:
            try:
                await self._book.remember(peer.id, peer.addresses, self.name)
            except Exception as error:
                log.warning("a peer cannot be remembered: %s", type(error).__name__, extra={"peer": peer.id})
        if peer.met:
            self.seek(peer.id, peer.addresses)

    def _take_note(self, session: Session, name: str, data: Any) -> None:
        if name == NEWS:
            self._gossip.on_news(session, data)
        elif name == admissions.NOTE:
            if isinstance(data, int) and data > self.admission.number:
                self._fetch_roster(session)
        elif name == load.NOTE:
            self._around.take_digest(self.peer(session.remote_peer), data)

    # -- who belongs ---------------------------------------------------------------------------------------------

    def take_roster(self, wire: Any) -> bool:
        """A roster that the owner brings; whether it is new. ValueError (RosterRefused) when it is not the owner's."""
        return self.admission.take(wire)

    def roster_view(self) -> dict[str, Any]:
        """The owner, the members and who was put out, for `shoal swarm members`."""
        return self.admission.view() | {"figures": self.stats()}

    def _fetch_roster(self, session: Session) -> None:
        if self._nursery is not None and not self.admission.open:
            self._nursery.start_soon(self._pull_roster, session)

    async def _pull_roster(self, session: Session) -> None:
        try:
            with trio.fail_after(ROSTER_S):
                self.admission.take(await session.request(admissions.CALL))
        except (CallError, SessionLost, trio.TooSlowError):
            return
        except RosterRefused as refused:
            log.warning("a roster is refused: %s", refused, extra={"peer": session.remote_peer})

    def _roster_changed(self) -> None:
        """Put out who does not belong any more, and tell the others at once."""
        roster = self.admission.roster
        for member in roster.members if roster is not None else ():
            self._host.unbar(member.peer)
        for peer in self._links.peers.values():
            if self.admission.admits(peer.id) or peer.id in self.admission.pending:
                continue
            if peer.sessions or (peer.seeking and self.admission.is_revoked(peer.id)):
                log.info("a peer does not belong any more", extra={"peer": peer.id})
                self._adverts.forget(peer.id)
                self._links.expel(peer, admissions.REVOKED, bar=self.admission.is_revoked(peer.id))
        for session in self._links.sessions():
            if self.admission.admits(session.remote_peer):
                session.send_note(admissions.NOTE, self.admission.number)
        self.notify()

    # -- what peers ask ------------------------------------------------------------------------------------------

    async def _answer_call(self, call: IncomingCall, method: str, params: Any, peer: PeerId) -> Any:
        if not self.admission.admits(peer):
            raise CallError(ErrorKind.AUTH, admissions.STRANGER)
        if method == admissions.CALL:
            return self.admission.wire
        if method == ADVERTS:
            return self._gossip.answer(params)
        if method in joining.METHODS:
            if not self.admission.may(peer, "cache"):
                raise CallError("not_allowed", "the swarm's owner has not given this node the right to read answers")
            return await joining.serve(call, method, params, peer=peer, generations=self._generations)
        if method == RESUME:
            return await self._resumption.resume(call, params, peer)
        if method != GENERATE:
            raise CallError("unknown_method", "this node knows no such method; it may be older than yours")
        if not self.admission.may(peer, "ask"):
            raise CallError(ErrorKind.AUTH, "the swarm's owner has not given this node the right to ask")
        self.peer(peer).used_at = trio.current_time()
        return await serve_generate(
            call, params, me=self.me, peer=peer, answer_for_peer=self._serve, telling=self._resumption.serve
        )


@asynccontextmanager
async def _plain_errors() -> AsyncIterator[None]:
    """The nursery in here is our affair: an error of the caller's block leaves as it came."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__


class _Service:
    """A session's way into the swarm."""

    def __init__(self, swarm: Swarm, peer: PeerId) -> None:
        self._swarm, self._peer = swarm, peer

    async def on_call(self, call: IncomingCall, method: str, params: Any) -> Any:
        return await self._swarm._answer_call(call, method, params, self._peer)

    def on_hello(self, session: Session, hello: Hello) -> None:
        self._swarm.admission.check(self._peer, hello.papers)

    def on_advert(self, session: Session, body: Any) -> None:
        self._swarm._take_advert(session, body)

    def on_note(self, session: Session, name: str, data: Any) -> None:
        self._swarm._take_note(session, name, data)

    async def on_lookup(self, session: Session, body: Any) -> Any:
        if not self._swarm.admission.may(self._peer, "cache"):
            raise CallError("not_allowed", "the swarm's owner has not given this node the right to read answers")
        return await answer_lookup(body, self._swarm._find_blocks)


_random = random.SystemRandom()
