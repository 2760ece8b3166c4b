"""Bitswap between nodes of our own kind, and against peers that misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from shoal.protocols.p2p import cids
from shoal.protocols.p2p.bitswap import Bitswap
from shoal.protocols.p2p.bitswap_message import Block, Message, Presence, Want, decode, encode_varint, frame
from shoal.protocols.p2p.bitswap_peer import V1_2_0, BitswapLimits
from shoal.protocols.p2p.errors import BlockNotFound, StreamLost
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.stream import P2pStream

from .fakes_p2p import a_host, a_process

RAW, DAG_CBOR = 0x55, 0x71


def cid_of(data: bytes, codec: int = RAW) -> bytes:
    return bytes([1, codec, 0x12, 0x20]) + hashlib.sha256(data).digest()


class Blocks(dict[bytes, bytes]):
    def put(self, data: bytes, codec: int = RAW) -> bytes:
        cid = cid_of(data, codec)
        self[cid] = data
        return cid


class Node:
    def __init__(self, limits: BitswapLimits | None = None) -> None:
        self.host = a_host()
        self.blocks = Blocks()
        self.bitswap = Bitswap(self.host, self.blocks, limits=limits)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.host.running(), self.bitswap.running():
            yield


@contextlib.asynccontextmanager
async def nodes(count: int, limits: BitswapLimits | None = None) -> AsyncIterator[list[Node]]:
    """Nodes of which the first is connected to every other."""
    made = [Node(limits) for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        for node in made:
            await stack.enter_async_context(node.running())
        for other in made[1:]:
            await made[0].host.connect(other.host.peer_id, other.host.addresses())
        yield made


class Asker:
    """A peer that speaks bitswap by hand, as Kubo does: it asks on its stream and listens on those opened to it."""

    def __init__(self, host: Host, stream: P2pStream, answers: trio.MemoryReceiveChannel[Message]) -> None:
        self.host, self.stream, self._answers = host, stream, answers

    async def say(self, message: Message) -> None:
        await self.stream.write(frame(message))

    async def answer(self) -> Message:
        with trio.fail_after(3):
            return await self._answers.receive()


@contextlib.asynccontextmanager
async def an_asker(node: Node) -> AsyncIterator[Asker]:
    send, receive = trio.open_memory_channel[Message](100)

    async def collect(stream: P2pStream) -> None:
        buffer = b""
        while data := await stream.read():
            buffer += data
            while buffer:
                size, rest = cids.varint(buffer)
                if len(rest) < size:
                    break
                buffer = rest[size:]
                await send.send(decode(rest[:size]))

    host = a_host()
    async with host.running():
        host.handle(V1_2_0, collect)
        await host.connect(node.host.peer_id, node.host.addresses())
        yield Asker(host, await host.open_stream(node.host.peer_id, V1_2_0), receive)


async def told(node: Node, **counts: int) -> None:
    """Until a node has counted so much: it does that when its write has returned, which may be after the peer has read
    the last byte."""
    with trio.fail_after(3):
        while any(getattr(node.bitswap.counters, name) < count for name, count in counts.items()):
            await trio.sleep(0.001)


# -- fetching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 262_144, 2 * 1024 * 1024])
async def test_a_block_is_fetched_by_its_cid(size: int) -> None:
    async with nodes(2) as (ours, theirs):
        cid = theirs.blocks.put(bytes(size), DAG_CBOR)
        assert await ours.bitswap.fetch(cid) == bytes(size)
        await told(theirs, served_bytes=size)
        assert theirs.bitswap.counters.served_bytes == size


async def test_the_peer_that_has_it_is_found_among_those_that_have_not() -> None:
    async with nodes(5) as (ours, *others):
        cid = others[-1].blocks.put(b"only the last one has it")
        with trio.fail_after(3):
            assert await ours.bitswap.fetch(cid) == b"only the last one has it"
        await told(others[-1], served_blocks=1)
        assert [other.bitswap.counters.served_blocks for other in others] == [0, 0, 0, 1]


async def test_many_blocks_at_once_come_without_a_retry() -> None:
    async with nodes(2) as (ours, theirs):
        wanted = [theirs.blocks.put(f"block {i}".encode() * 200) for i in range(200)]
        got: dict[bytes, bytes] = {}

        async def fetch(cid: bytes) -> None:
            got[cid] = await ours.bitswap.fetch(cid)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for cid in wanted:
                    nursery.start_soon(fetch, cid)
        assert got == dict(theirs.blocks)
        assert ours.bitswap.counters.unrequested_blocks == 0


async def test_a_block_that_nobody_has_is_known_to_be_missing_at_once() -> None:
    async with nodes(3) as (ours, *_):
        with trio.fail_after(2), pytest.raises(BlockNotFound, match="none of the 2 peers"):
            await ours.bitswap.fetch(cid_of(b"nobody"), timeout=30)


async def test_without_a_peer_or_a_sensible_cid_there_is_nothing_to_wait_for() -> None:
    async with nodes(1) as (ours,):
        with pytest.raises(BlockNotFound, match="no peer to ask"):
            await ours.bitswap.fetch(cid_of(b"x"))
        with pytest.raises(ValueError, match="not a CID"):
            await ours.bitswap.fetch("nonsense")


async def test_a_peer_that_does_not_speak_bitswap_is_passed_over() -> None:
    async with nodes(2) as (ours, theirs), a_host().running() as mute:
        await ours.host.connect(mute.peer_id, mute.addresses())
        cid = theirs.blocks.put(b"block")
        peers = [mute.peer_id, theirs.host.peer_id]
        with trio.fail_after(3):
            assert await ours.bitswap.fetch(cid, peers=peers) == b"block"
            with pytest.raises(BlockNotFound):
                await ours.bitswap.fetch(cid, peers=[mute.peer_id], timeout=30)


async def test_a_peer_that_dies_ends_the_wait_for_it() -> None:
    async with a_process() as (peer, addresses, process), nodes(1) as (ours,):
        await ours.host.connect(peer, addresses)
        process.send_signal(signal.SIGSTOP)  # it will not even refuse the protocol
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                await trio.sleep(0.2)
                process.send_signal(signal.SIGKILL)

            nursery.start_soon(kill)
            with trio.fail_after(3), pytest.raises(BlockNotFound):
                await ours.bitswap.fetch(cid_of(b"x"), timeout=30)


# -- serving ---------------------------------------------------------------------------------------------------------


async def test_answers_come_on_a_stream_of_ours() -> None:
    async with nodes(1) as (node,), an_asker(node) as asker:
        cid = node.blocks.put(b"block", DAG_CBOR)
        await asker.say(Message(wants=(Want(cid),)))
        assert (await asker.answer()).blocks == (Block(bytes([1, DAG_CBOR, 0x12, 0x20]), b"block"),)


async def test_whoever_asks_whether_is_told_whether() -> None:
    async with nodes(1) as (node,), an_asker(node) as asker:
        cid, missing = node.blocks.put(b"block"), cid_of(b"missing")
        await asker.say(Message(wants=(Want(cid, have=True), Want(missing, have=True, dont_have=True))))
        answer = await asker.answer()
        assert answer.presences == (Presence(cid, have=True), Presence(missing, have=False))
        assert answer.blocks == ()


async def test_a_cidv0_is_answered_with_its_own_prefix() -> None:
    async with nodes(1) as (node,), an_asker(node) as asker:
        cid = cids.multihash_of(b"unixfs")
        node.blocks[cid] = b"unixfs"
        await asker.say(Message(wants=(Want(cid),)))
        assert (await asker.answer()).blocks == (Block(cids.V0_PREFIX, b"unixfs"),)


async def test_a_want_is_answered_when_the_block_is_added_later() -> None:
    async with nodes(1) as (node,), an_asker(node) as asker:
        late, cancelled = cid_of(b"late"), cid_of(b"cancelled")
        await asker.say(Message(wants=(Want(late, dont_have=True), Want(cancelled))))
        assert (await asker.answer()).presences == (Presence(late, have=False),)
        await asker.say(Message(wants=(Want(cancelled, cancel=True), Want(cid_of(b"sync"), dont_have=True))))
        await asker.answer()
        for data in (b"cancelled", b"late"):
            node.bitswap.announce(node.blocks.put(data))
        assert [block.data for block in (await asker.answer()).blocks] == [b"late"]


async def test_what_was_not_asked_for_is_dropped() -> None:
    async with nodes(1) as (node,), an_asker(node) as asker:
        await asker.say(
            Message(blocks=(Block(b"\x01\x55\x12\x20", b"a gift"),), wants=(Want(b"\x01", dont_have=True),))
        )
        await asker.answer()
        assert node.bitswap.counters.unrequested_blocks == 1
        assert not node.blocks


async def test_a_block_under_a_false_cid_is_not_believed() -> None:
    async with nodes(1) as (node,), an_asker(node) as asker, trio.open_nursery() as nursery:
        cid = cid_of(b"the truth")

        async def lie() -> None:
            while not (message := await asker.answer()).wants:
                pass
            assert message.wants[0].cid == cid
            await asker.say(Message(blocks=(Block(cids.prefix(cid), b"a lie"),)))
            await asker.say(Message(presences=(Presence(cid, have=False),)))

        nursery.start_soon(lie)
        with pytest.raises(BlockNotFound):
            await node.bitswap.fetch(cid, timeout=3)
        assert node.bitswap.counters.unrequested_blocks == 1


async def test_garbage_ends_its_own_stream_only() -> None:
    async with nodes(1) as (node,), an_asker(node) as asker:
        for garbage in (b"\x05\x0a\xff\xff\xff\xff", b"\xff" * 20, encode_varint(1 << 30), b"\x03\x08"):
            stream = await asker.host.open_stream(node.host.peer_id, V1_2_0)
            await stream.write(garbage)
            await stream.close_write()
            with trio.fail_after(3), pytest.raises(StreamLost):
                await stream.read()
            await stream.close()
        assert node.bitswap.counters.violations == 4
        await asker.say(Message(wants=(Want(cid_of(b"x"), dont_have=True),)))
        assert await asker.answer()


async def test_a_large_message_from_a_peer_that_owes_us_nothing_is_skipped() -> None:
    async with nodes(1, BitswapLimits(unasked_bytes=1000)) as (node,), an_asker(node) as asker:
        await asker.say(Message(blocks=(Block(b"\x01\x55\x12\x20", bytes(100_000)),)))
        await asker.say(Message(wants=(Want(cid_of(b"x"), dont_have=True),)))
        assert (await asker.answer()).presences
        assert node.bitswap.counters.unrequested_blocks == 0


async def test_a_peer_has_no_more_streams_than_allowed() -> None:
    async with nodes(1, BitswapLimits(streams=2)) as (node,), an_asker(node) as asker:
        second = await asker.host.open_stream(node.host.peer_id, V1_2_0)
        third = await asker.host.open_stream(node.host.peer_id, V1_2_0)
        with trio.fail_after(3), pytest.raises(StreamLost):
            await third.read()
        await second.close()


async def test_a_store_that_fails_answers_that_it_has_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Blocks, cid: bytes) -> bytes:
        raise OSError("disk")

    monkeypatch.setattr(Blocks, "get", broken)
    async with nodes(1) as (node,), an_asker(node) as asker:
        await asker.say(Message(wants=(Want(cid_of(b"x"), dont_have=True),)))
        assert not (await asker.answer()).presences[0].have
        assert "block store failed" in caplog.text
