"""The part of a swarm around this node: who else was heard of, whom to connect to, and how busy the neighbours are.

What belongs here: the policy of recruit.py and load.py at work. What is heard comes by gossip.py; the connections
themselves are links.py's.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import trio

from ...protocols.peer_id import PeerId
from ...protocols.session import Session
from ...providers import cgroups
from .. import addresses
from . import load
from .advert import Advert, AdvertBook, AdvertContent
from .gossip import Gossip
from .links import Links
from .peer import Peer
from .recruit import WANTED, whom_to_dismiss, whom_to_seek

log = logging.getLogger("shoal.swarm")

TEND_S = 5.0
SETTLED_S = 20.0  # a session that is younger may be somebody who is just finding its way into the swarm
CONNECT_S = 3.0  # for a peer that is asked for an answer and not connected yet
MAX_ADDRESSES = 8  # dialled of a peer that was only heard of

_random = random.SystemRandom()


class Swarm(Protocol):
    """What the neighbourhood needs of the swarm."""

    def book(self) -> AdvertBook: ...
    def describe(self) -> AdvertContent: ...
    def peer(self, peer_id: PeerId) -> Peer: ...
    def seek(self, peer_id: PeerId, addrs: Sequence[str]) -> Peer: ...
    def notify(self) -> None: ...
    def is_here(self, peer_id: PeerId) -> bool: ...
    def is_barred(self, peer_id: PeerId) -> bool: ...  # must not be connected to
    def may_serve(self, peer_id: PeerId) -> bool: ...


class Neighbourhood:
    """gossip: what is heard and passed on. wanted: peers that this node looks for by itself."""

    def __init__(self, me: PeerId, links: Links, swarm: Swarm, *, wanted: int = WANTED) -> None:
        self._me, self._links, self._swarm, self._wanted = me, links, swarm, wanted
        self.gossip = Gossip(me, self)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.gossip.run)
            nursery.start_soon(self._tend)
            nursery.start_soon(self._tell_load)

    # -- what gossip needs -----------------------------------------------------------------------------------------

    def book(self) -> AdvertBook:
        return self._swarm.book()

    def sessions(self) -> list[Session]:
        return self._links.sessions()

    def is_connected(self, peer: PeerId) -> bool:
        known = self._links.peers.get(peer)
        return known is not None and known.usable

    def is_here(self, peer: PeerId) -> bool:
        return self._swarm.is_here(peer)

    def learned(self, advert: Advert, session: Session) -> None:
        """An advert that a peer has passed on is believed."""
        self.gossip.spread(advert.peer, session.remote_peer)
        self._recruit()
        self._swarm.notify()

    # -- whom to connect to ----------------------------------------------------------------------------------------

    def beyond(self, model: str | None, exclude: Collection[PeerId]) -> list[PeerId]:
        """A few that are not connected and said to offer the model."""
        adverts = self.book().all()
        if not adverts:
            return []  # a lone node's requests come by here, too
        heard = (held.advert for held in adverts if not held.direct and held.advert.offers(model))
        wanted = (ad.peer for ad in heard if ad.peer not in exclude and self._swarm.may_serve(ad.peer))
        strangers = [peer for peer in wanted if self._is_stranger(peer)]
        return _random.sample(strangers, min(2, len(strangers)))

    async def connect(self, peer_id: PeerId) -> Session | None:
        """A session with a peer of whom only an advert is known, or None after 3 s."""
        return await self.reach(peer_id, self.book().addresses(peer_id))

    async def reach(self, peer_id: PeerId, told: Sequence[str]) -> Session | None:
        """A session with a peer that is said to be at these addresses, or None after 3 s: a request waits for it."""
        if peer_id == self._me or self._swarm.is_barred(peer_id):
            return None
        peer = self._swarm.peer(peer_id)
        addrs = tuple(address for address in told if leads_to(address, peer_id))[:MAX_ADDRESSES]
        if addrs and not peer.usable:
            peer.stranger, peer.needed, peer.problem = not peer.met, True, ""
            self._swarm.seek(peer_id, addrs)
            if peer.dialling is None:
                self._links.nudge(peer)  # it may be waiting for its next try
            with trio.move_on_after(CONNECT_S):
                while not peer.usable and peer.seeking is not None and not peer.problem:
                    with trio.move_on_after(0.1):
                        await peer.changed.wait()
        return peer.session

    def knows_everyone(self) -> bool:
        """Whether nobody is left to be found: all that were heard of are connected, few enough to know all."""
        connected = len(self.sessions())
        if not self.book().heard or connected >= self._wanted:
            return False
        return all(self.is_connected(held.advert.peer) for held in self.book().present())

    def _is_stranger(self, peer_id: PeerId) -> bool:
        """Whether a peer that was heard of may be dialled: it is not connected, sought, or known to be away."""
        peer = self._links.peers.get(peer_id)
        if peer_id == self._me or self._swarm.is_barred(peer_id):
            return False
        return peer is None or not (peer.sessions or peer.seeking or peer.problem or peer.left_alone)

    def _recruit(self) -> None:
        """Dial some of those heard of, as long as this node has few neighbours."""
        peers = self._links.peers.values()
        have = sum(bool(peer.sessions) or (peer.seeking is not None and not peer.problem) for peer in peers)
        if have >= self._wanted or not self._links.open:
            return
        heard = {held.advert.peer: held.addresses for held in self.book().all() if held.addresses}
        strangers = {peer for peer in heard if self._is_stranger(peer)}
        for peer_id in whom_to_seek(strangers, have, _random, wanted=self._wanted):
            self._seek(peer_id, heard[peer_id])

    def _seek(self, peer_id: PeerId, told: Sequence[str]) -> None:
        peer = self._swarm.peer(peer_id)
        peer.stranger = not peer.met
        addrs = tuple(address for address in told if leads_to(address, peer.id))
        if addrs:
            self._swarm.seek(peer.id, addrs[:MAX_ADDRESSES])

    def heard_of(self, peer_id: PeerId, addrs: Sequence[str]) -> None:
        """A hint that nobody has signed: worth a few tries, as long as this node has few neighbours."""
        told = [address for address in addrs if leads_to(address, peer_id)][:MAX_ADDRESSES]
        if told and self._is_stranger(peer_id) and len(self.sessions()) < self._wanted:
            peer = self._swarm.peer(peer_id)
            peer.stranger = not peer.met
            self._swarm.seek(peer_id, told)

    async def _tend(self) -> None:
        """Now and then: forgive who could not be reached, find more peers, and send away those that are too many."""
        while True:
            await trio.sleep(TEND_S * _random.uniform(0.8, 1.2))
            for peer in list(self._links.peers.values()):
                advert = self.book().get(peer.id)
                if peer.problem and not peer.met and advert is not None and advert.created > peer.problem_at:
                    peer.problem = ""  # it has spoken since
            self._recruit()
            connected = [peer for peer in self._links.peers.values() if peer.session is not None]
            idle = [peer.id for peer in connected if _came_by_itself(peer)]
            for peer_id in whom_to_dismiss(len(connected), idle, _random):
                log.info("a peer is sent away: there are many", extra={"peer": peer_id})
                self._links.dismiss(self._links.peers[peer_id])

    # -- load ------------------------------------------------------------------------------------------------------

    async def _tell_load(self) -> None:
        """Every 2 s, to the peers with whom there were calls in the last minute."""
        while True:
            await trio.sleep(load.EVERY_S)
            now, digest = trio.current_time(), b""
            for peer in self._links.peers.values():
                if peer.session is None:
                    continue
                if peer.session.calls_in_flight:
                    peer.used_at = now
                if now - peer.used_at <= load.IN_USE_S:
                    digest = digest or self._digest()
                    peer.session.send_note(load.NOTE, digest)

    def _digest(self) -> bytes:
        told = self._swarm.describe().load
        free = cgroups.memory_available() // 2**20
        digest = load.Digest(running=told.running, queued=told.queued, cpu=told.cpu or 0.0, memory_free_mib=free)
        return digest.encode()

    def take_digest(self, peer: Peer, data: Any) -> None:
        digest = load.Digest.decode(data)
        if digest is not None and (peer.load is None or digest.at_ms > peer.load.at_ms):
            peer.load, peer.load_at = digest, trio.current_time()


def _came_by_itself(peer: Peer) -> bool:
    session = peer.session
    settled = peer.since is not None and time.time() - peer.since > SETTLED_S
    return session is not None and not (peer.configured or session.initiator or session.calls_in_flight) and settled


def leads_to(address: str, peer: PeerId) -> bool:
    """Whether this is a multiaddr of that peer that this node could dial."""
    try:
        addresses.check_peer(address)
    except ValueError:
        return False
    return address.endswith(f"/p2p/{peer}")
