"""Bitswap: blocks by CID, to and from other nodes, Kubo and Helia, without a daemon of IPFS.

    bitswap = Bitswap(host, blocks)                    # blocks.get(cid) -> bytes | None
    async with host.running(), bitswap.running():
        data = await bitswap.fetch("bafyrei...", timeout=5)

Spec: https://specs.ipfs.tech/bitswap-protocol/, versions 1.1.0 and 1.2.0. A block that nobody here asked for is
dropped: the library would store it, so anyone could fill the disk. Which peer to ask is for others to know.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

import trio

from ..peer_id import PeerId
from . import cids
from .bitswap_message import Block, Message, Want, decode
from .bitswap_peer import V1_1_0, V1_2_0, BitswapLimits, BlockSource, Counters, Peer
from .errors import BlockNotFound, ProtocolViolation
from .host import Host
from .incoming import Incoming
from .stream import P2pStream

log = logging.getLogger("shoal.p2p.bitswap")

STALL_S = 1.0  # a peer that has the block and does not send it for so long is joined by the next


class _Search:
    """One block that is being looked for, and what the peers asked have said so far."""

    def __init__(self, cid: bytes, peers: Sequence[PeerId]) -> None:
        self.cid = cid
        self.peers = list(dict.fromkeys(peers))
        self.have: list[PeerId] = []
        self.refused: set[PeerId] = set()
        self.data: bytes | None = None
        self.giver: PeerId | None = None
        self.news = trio.Event()

    def say(self, peer_id: PeerId, *, have: bool) -> None:
        if peer_id in self.peers:
            if not have:
                self.refused.add(peer_id)
            elif peer_id not in self.have:
                self.have.append(peer_id)
            self.news.set()

    def give(self, peer_id: PeerId, data: bytes) -> bool:
        if peer_id not in self.peers:
            return False
        self.data, self.giver = data, peer_id
        self.news.set()
        return True


class Bitswap:
    """Serves `blocks` to whoever asks and may read them, and fetches blocks from peers."""

    def __init__(
        self,
        host: Host,
        blocks: BlockSource,
        *,
        limits: BitswapLimits | None = None,
        may_read: Callable[[PeerId], bool] = lambda peer: True,
    ) -> None:
        self._may_read = may_read
        self.counters = Counters()
        self._host = host
        self._blocks = blocks
        self._limits = limits or BitswapLimits()
        self._peers: dict[PeerId, Peer] = {}
        self._searches: dict[bytes, list[_Search]] = {}  # by multihash
        self._nursery: trio.Nursery | None = None
        host.on_disconnect(self._gone)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bitswap]:
        for protocol in (V1_2_0, V1_1_0):
            self._host.handle(protocol, self._serve)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield self
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    # -- fetching ------------------------------------------------------------------------------------------------

    async def fetch(self, cid: str | bytes, *, peers: Sequence[PeerId] | None = None, timeout: float = 10.0) -> bytes:
        """The block of `cid` (text or binary), its hash checked, from `peers` or all connected ones.

        BlockNotFound when none has it or none sends it within `timeout` seconds; ValueError when `cid` is not a
        sha2-256 CID.
        """
        binary = cids.parse(cid) if isinstance(cid, str) else cid
        key = cids.multihash(binary)
        search = _Search(binary, self._host.connected() if peers is None else peers)
        if not search.peers:
            raise BlockNotFound("there is no peer to ask: connect to one first")
        self._searches.setdefault(key, []).append(search)
        try:
            with trio.fail_after(timeout):
                data = await self._look(search)
        except trio.TooSlowError:
            raise BlockNotFound(f"no peer gave the block within {timeout:g} s") from None
        finally:
            self._searches[key].remove(search)
            if not self._searches[key]:
                del self._searches[key]
            self._call_off(search)
        return data

    async def _look(self, search: _Search) -> bytes:
        asked = {search.peers[0]}
        for peer_id in search.peers:
            self._ask(peer_id, Want(search.cid, have=peer_id not in asked, dont_have=True))
        while True:
            with trio.move_on_after(STALL_S) as stall:
                await search.news.wait()
            search.news = trio.Event()
            if search.data is not None:
                return search.data
            if search.refused.issuperset(search.peers):
                raise BlockNotFound(f"none of the {len(search.peers)} peers asked has the block")
            if stall.cancelled_caught or search.refused.issuperset(asked):
                for peer_id in search.have:
                    if peer_id not in asked and peer_id not in search.refused:
                        asked.add(peer_id)
                        self._ask(peer_id, Want(search.cid, dont_have=True))
                        break

    def _call_off(self, search: _Search) -> None:
        for peer_id in search.peers:
            if peer_id != search.giver and peer_id not in search.refused and self._host.is_connected(peer_id):
                self._ask(peer_id, Want(search.cid, cancel=True))

    def _ask(self, peer_id: PeerId, want: Want) -> None:
        peer = self._peer(peer_id)
        peer.ask(want)
        self._send(peer)

    # -- serving -------------------------------------------------------------------------------------------------

    def announce(self, cid: bytes) -> None:
        """A public block was added: those who asked for it before get it now."""
        for peer in list(self._peers.values()):
            if peer.now_have(cid):
                self._send(peer)

    async def _serve(self, stream: P2pStream) -> None:
        peer = self._peer(stream.remote)
        if self._nursery is None or peer.streams >= self._limits.streams or not self._may_read(stream.remote):
            await stream.reset()
            return
        peer.streams += 1
        try:
            incoming = Incoming(stream, self._limits.message_s)
            while (message := await self._next_message(incoming, stream.remote)) is not None:
                self._take(peer, message)
                if message.wants:
                    await trio.sleep(len(message.wants) / self._limits.wants_per_s)
        except ProtocolViolation as error:
            self.counters.violations += 1
            log.debug("%s: %s", stream.remote, error)
            await stream.reset()
        finally:
            peer.streams -= 1

    async def _next_message(self, incoming: Incoming, peer_id: PeerId) -> Message | None:
        while (size := await incoming.size()) is not None:
            if size > self._limits.message_bytes:
                raise ProtocolViolation(f"a message of {size} bytes")
            if size <= self._limits.unasked_bytes or self._is_asked(peer_id):
                return decode(await incoming.take(size))
            await incoming.skip(size)
        return None

    def _is_asked(self, peer_id: PeerId) -> bool:
        return any(peer_id in search.peers for searches in self._searches.values() for search in searches)

    def _take(self, peer: Peer, message: Message) -> None:
        if message.full:
            peer.forget_wants()
        for want in message.wants:
            peer.wanted(want)
        if peer.has_work:
            self._send(peer)
        for block in message.blocks:
            self._received(peer.peer_id, block)
        for presence in message.presences:
            with contextlib.suppress(ValueError):  # of a hash that we never ask for
                for search in self._searches.get(cids.multihash(presence.cid), ()):
                    search.say(peer.peer_id, have=presence.have)

    def _received(self, peer_id: PeerId, block: Block) -> None:
        searches = self._searches.get(cids.multihash_of(block.data), ())
        if not [search for search in searches if search.give(peer_id, block.data)]:
            self.counters.unrequested_blocks += 1

    # -- peers ---------------------------------------------------------------------------------------------------

    def _peer(self, peer_id: PeerId) -> Peer:
        peer = self._peers.get(peer_id)
        if peer is None:
            peer = Peer(self._host, peer_id, self._blocks, self._limits, self.counters, self._unreachable)
            self._peers[peer_id] = peer
        return peer

    def _send(self, peer: Peer) -> None:
        if not peer.sending and self._nursery is not None:
            peer.sending = True
            self._nursery.start_soon(peer.run)

    def _unreachable(self, peer_id: PeerId) -> None:
        for searches in self._searches.values():
            for search in searches:
                search.say(peer_id, have=False)
        if not self._host.is_connected(peer_id):
            self._gone(peer_id)

    def _gone(self, peer_id: PeerId) -> None:
        self._peers.pop(peer_id, None)
        for searches in self._searches.values():
            for search in searches:
                search.say(peer_id, have=False)
