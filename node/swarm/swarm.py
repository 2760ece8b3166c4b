"""The swarm as one node lives it: which peers it has, the one session with each, and what they say of themselves.

    swarm = Swarm(host, identity, config.swarm, describe=..., serve=router.answer_for_peer, find_blocks=..., book=book)
    async with host.running(), swarm.running():
        await swarm.join(Invite.parse(text))
        swarm.candidates_for("smollm2")

What belongs here: adverts, and who is asked for what. Joining is entrance.py's, who belongs belonging.py's; sessions
are kept by links.py, forwarding is peer_provider.py's, answering serving.py's, what is heard of others gossip.py's.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Protocol

import trio

from ...protocols.peer_id import Identity, PeerId
from ...protocols.session import (
    CallError,
    Hello,
    IncomingCall,
    Service,
    Session,
    SessionLimits,
)
from ...providers.base import ErrorKind
from .. import addresses
from ..version import version
from . import admission as admissions
from . import joining, load
from .admission import Admission
from .advert import MAX_HELD, AdvertBook, AdvertContent, AdvertRefused
from .belonging import Belonging
from .entrance import Entrance
from .gossip import ADVERTS, NEWS
from .invite import Invite
from .links import Host, Links
from .lookup import FindBlocks, ask_all
from .neighbourhood import Neighbourhood, leads_to
from .peer import Peer, PeerView
from .peer_provider import PeerProvider
from .peerbook import PeerBook
from .recruit import WANTED
from .relaying import MEMBER_WITHIN_S, Relaying, relays_in
from .resumption import RESUME, Resumption
from .service import PeerService
from .serving import GENERATE, AnswerForPeer, serve_generate
from .telling import Telling

log = logging.getLogger("shoal.swarm")

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
        self._neighbours, self._heard = neighbours, heard
        self._adverts = AdvertBook(self.name, heard=heard)
        self._nursery: trio.Nursery | None = None
        self._links = Links(host, self.me, self, limits or SessionLimits())
        self._telling = Telling(
            identity, self.name, describe=describe, peers=lambda: self._links.peers.values(), is_here=host.is_here
        )
        self.admission = admission or Admission(config.name, self.me)
        self._around = Neighbourhood(self.me, self._links, self, wanted=neighbours)
        self._gossip = self._around.gossip
        self._relaying = relaying
        self._entrance = Entrance(
            host,
            self,
            key=config.key,
            opened=bool(config.listen),
            announced=relaying.announced if relaying is not None else host.addresses,
        )
        self._belonging = Belonging(host, self._links, self)
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
            self.admission.on_change = self._belonging.roster_changed
            for entry in self.admission.roster.revoked if self.admission.roster is not None else ():
                self._host.bar(entry.peer)
            for text in self._config.peers:
                await self._entrance.seek_configured(text)
            if self._book is not None:
                for remembered in (await self._book.known(self.name))[: self._neighbours]:
                    self.seek(remembered.peer, remembered.addresses)
            nursery.start_soon(self._telling.run, lambda: self._adverts.sweep())
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
        self._telling.leave()
        await self._links.stop("the node is stopping", drain_s)

    # -- joining -----------------------------------------------------------------------------------------------

    async def join(self, invite: Invite | str) -> PeerId:
        """Join a swarm: the peer that is connected first. JoinFailed (a ValueError) when none is within 15 s."""
        return await self._entrance.join(invite)

    def invite(self) -> str:
        """The line that another machine needs to join. InviteError when this node listens nowhere."""
        return self._entrance.invite()

    @property
    def open(self) -> bool:
        """Whether it takes part: from its start until it drains."""
        return self._nursery is not None

    def spawn(self, task: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Run a task beside the others, as long as this node takes part."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)

    async def move(self, name: str) -> None:
        """Leave this swarm for another, with no member in common."""
        log.info("leaving one swarm for another", extra={"left": self.name, "swarm": name})
        self.name = name
        self._telling.move(name)
        self._adverts = AdvertBook(name, heard=self._heard)
        self.admission = Admission(name, self.me)
        await self._links.leave_all("moved to another swarm")
        self.notify()

    def seek(self, peer_id: PeerId, addrs: Sequence[str]) -> Peer:
        peer = self.peer(peer_id)
        peer.learn(tuple(addrs))
        self._links.seek(peer)
        return peer

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

    def is_here(self, peer_id: PeerId) -> bool:
        """Whether a peer is connected, and on this machine."""
        return self._host.is_here(peer_id)

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
            "known": len(self._adverts.present()),
            "refused_by": {peer.id: peer.refused for peer in self._links.peers.values() if peer.refused},
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
        return PeerService(self, peer_id, lambda requests: self._find_blocks(requests))

    def greet(self, peer: Peer, session: Session) -> None:
        if peer.id in self.admission.pending:
            self.spawn(self._belonging.settle, peer, session)
            return
        self._telling.tell(peer, session)
        self._gossip.greet(session)
        self.admission.welcome(peer.id)
        hello = session.remote_hello
        if hello is not None and self.admission.number_in(hello.papers) > self.admission.number:
            self._belonging.fetch_roster(session)

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
        self._telling.changed()

    def take_advert(self, session: Session, wire: Any) -> None:
        peer = self.peer(session.remote_peer)
        try:
            self._adverts.take(wire, brought_by=peer.id, here=self.is_here(peer.id))
        except AdvertRefused as refused:
            log.warning("an advert is refused: %s", refused, extra={"peer": peer.id})
            return
        told = tuple(address for address in self._adverts.addresses(peer.id) if leads_to(address, peer.id))
        peer.learn((*told, *addresses.by_loopback(told, peer.id)) if self.is_here(peer.id) else told)
        peer.last_good = time.time()
        self.spawn(self._remember, peer)
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

    def take_note(self, session: Session, name: str, data: Any) -> None:
        if name == NEWS:
            self._gossip.on_news(session, data)
        elif name == admissions.NOTE:
            if isinstance(data, int) and data > self.admission.number:
                self._belonging.fetch_roster(session)
        elif name == load.NOTE:
            self._around.take_digest(self.peer(session.remote_peer), data)

    # -- who belongs ---------------------------------------------------------------------------------------------

    def take_roster(self, wire: Any) -> bool:
        """A roster that the owner brings; whether it is new. ValueError (RosterRefused) when it is not the owner's."""
        return self.admission.take(wire)

    def roster_view(self) -> dict[str, Any]:
        """The owner, the members and who was put out, for `shoal swarm members`."""
        return self.admission.view() | {"figures": self.stats()}

    # -- what peers ask ------------------------------------------------------------------------------------------

    async def answer_call(self, call: IncomingCall, method: str, params: Any, peer: PeerId) -> Any:
        if not self.admission.admits(peer):
            raise CallError(ErrorKind.AUTH, admissions.STRANGER)
        if method == admissions.CALL:
            return self.admission.wire
        if method == ADVERTS:
            return self._gossip.answer(params, peer)
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


_random = random.SystemRandom()
