"""What we send to one bitswap peer: our wants, our answers, in order, on a stream that we opened.

py-libp2p 0.8.1 answers on the stream that the asker opened, where neither Kubo nor Helia ever reads; hence this and not
the library's client (tests/interop/test_kubo.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio
from msgspec import Struct

from ..peer_id import PeerId
from . import cids
from .bitswap_message import Block, Message, Presence, Want, frame
from .errors import ProtocolRefused, StreamLost
from .host import Host
from .stream import P2pStream

log = logging.getLogger("shoal.p2p.bitswap")

V1_2_0, V1_1_0 = "/ipfs/bitswap/1.2.0", "/ipfs/bitswap/1.1.0"


class BlockSource(Protocol):
    """Where the blocks come from that anyone may have."""

    def get(self, cid: bytes, /) -> bytes | None:
        """The public block of a binary CID, or None. Called in the event loop: it must not take long."""


class BitswapLimits(Struct, frozen=True, kw_only=True):
    """Per peer. Sizes in bytes, `_s` in seconds."""

    message_bytes: int = 4 * 1024 * 1024
    unasked_bytes: int = 256 * 1024  # of a message from a peer that we asked nothing; a larger one is skipped
    message_s: float = 30.0  # for a message to arrive once it has begun
    block_bytes: int = 2 * 1024 * 1024
    wants: int = 1024  # kept because we do not have the block yet
    wants_per_s: float = 2000.0
    answers: int = 4096  # queued; what is asked beyond is not answered
    streams: int = 8  # inbound, at once
    batch_bytes: int = 512 * 1024  # of blocks in one message of ours
    served_bytes_per_s: float = 32 * 1024 * 1024
    idle_s: float = 10.0  # before our stream is closed


class Counters(Struct):
    """Since the start."""

    served_blocks: int = 0
    served_bytes: int = 0
    unrequested_blocks: int = 0
    violations: int = 0


class Peer:
    """One peer's want list, and what it gets from us. `run()` sends until there has been nothing for `idle_s`."""

    def __init__(
        self,
        host: Host,
        peer_id: PeerId,
        blocks: BlockSource,
        limits: BitswapLimits,
        counters: Counters,
        lost: Callable[[PeerId], None],
    ) -> None:
        self.peer_id = peer_id
        self.streams = 0  # inbound
        self.sending = False
        self._host, self._blocks, self._limits, self._counters, self._lost = host, blocks, limits, counters, lost
        self._wanted: dict[bytes, Want] = {}  # by it
        self._asks: dict[bytes, Want] = {}  # by us, still to be sent
        self._answers: deque[Want] = deque()
        self._work = trio.Event()

    @property
    def has_work(self) -> bool:
        return bool(self._asks or self._answers)

    # -- what goes in the queue ----------------------------------------------------------------------------------

    def ask(self, want: Want) -> None:
        self._asks[want.cid] = want
        self._work.set()

    def forget_wants(self) -> None:
        self._wanted.clear()

    def wanted(self, want: Want) -> None:
        """The peer's want: answered if we have the block or it wants to know that we have not, and kept in mind."""
        if want.cancel:
            self._wanted.pop(want.cid, None)
            return
        if len(self._answers) >= self._limits.answers:
            return
        if self._block(want.cid) is None:
            if len(self._wanted) < self._limits.wants:
                self._wanted[want.cid] = want
            if not want.dont_have:
                return
        self._answer(want)

    def now_have(self, cid: bytes) -> bool:
        """Answers a want that was kept for `cid`; whether there was one."""
        if (want := self._wanted.pop(cid, None)) is None:
            return False
        self._answer(want)
        return True

    def _answer(self, want: Want) -> None:
        self._answers.append(want)
        self._work.set()

    def _block(self, cid: bytes) -> bytes | None:
        try:
            data = self._blocks.get(cid)
        except Exception:  # a broken store must not end the node's other work
            log.exception("the block store failed")
            return None
        return data if data is not None and len(data) <= self._limits.block_bytes else None

    # -- sending -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        stream: P2pStream | None = None
        try:
            while True:
                self._work = trio.Event()
                if not self.has_work:
                    with trio.move_on_after(self._limits.idle_s):
                        await self._work.wait()
                    if not self.has_work:
                        return
                message, served = self._next_message()
                stream = await self._send(stream, frame(message))
                if served:
                    self._counters.served_blocks += len(message.blocks)
                    self._counters.served_bytes += served
                    await trio.sleep(served / self._limits.served_bytes_per_s)
        except StreamLost:
            self._asks.clear()
            self._answers.clear()
            self._lost(self.peer_id)
        finally:
            self.sending = False
            if stream is not None:
                await stream.close()

    def _next_message(self) -> tuple[Message, int]:
        """(what to send next, bytes of blocks in it). Blocks are read only now, so that a queue costs no memory."""
        wants = tuple(self._asks.values())
        self._asks.clear()
        blocks: list[Block] = []
        presences: list[Presence] = []
        size = 0
        while self._answers and size < self._limits.batch_bytes:
            want = self._answers.popleft()
            data = self._block(want.cid)
            if data is None or want.have:
                presences.append(Presence(want.cid, have=data is not None))
            else:
                blocks.append(Block(cids.prefix(want.cid), data))
                size += len(data)
        return Message(wants, tuple(blocks), tuple(presences)), size

    async def _send(self, stream: P2pStream | None, data: bytes) -> P2pStream:
        if stream is not None:
            try:
                await stream.write(data)
            except StreamLost:
                await stream.close()  # the peer may have closed an idle stream: once more on a fresh one
            else:
                return stream
        stream = await self._open()
        try:
            await stream.write(data)
        except BaseException:
            await stream.reset()
            raise
        return stream

    async def _open(self) -> P2pStream:
        try:
            return await self._host.open_stream(self.peer_id, V1_2_0)
        except ProtocolRefused:
            return await self._host.open_stream(self.peer_id, V1_1_0)
