"""Blocks found through provider records of an IPFS DHT: a real Kubo in the middle, to which everybody else connects.

Nobody who fetches is connected to who has the block, nor told where it is, before it asks.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from shoal.node.config import IpfsSection
from shoal.node.ipfs_dht import IpfsDht
from shoal.protocols.p2p.bitswap import Bitswap
from shoal.protocols.p2p.host import Host
from shoal.protocols.peer_id import Identity

from tests.cache.answers import LONG, answer
from tests.e2e.fixtures import client, fast, in_thread, question, start, until
from tests.interop.ipfs_processes import Spoken, a_helia
from tests.interop.test_kubo import Kubo, a_kubo
from tests.providers.fake_upstream import FakeUpstream

pytestmark = pytest.mark.interop

LAN = "/ipfs/lan/kad/1.0.0"


def at(node: Spoken) -> str:
    return f"{node.addresses[0]}/p2p/{node.peer_id}"


async def enters(helia: Spoken, middle: Kubo) -> None:
    """Connect, and wait until Helia has found out that the other speaks the DHT's protocol."""
    await helia.do("connect", address=at(middle))
    with trio.fail_after(20):
        while not await helia.do("known"):
            await trio.sleep(0.02)


class Shoal:
    """Host, bitswap, and the IPFS DHT, put together as a node does it."""

    def __init__(self, host: Host, dht: IpfsDht, blocks: dict[bytes, bytes]) -> None:
        self.id, self.host, self.dht, self.blocks = host.peer_id, host, dht, blocks

    async def announce(self, cid: bytes, block: bytes) -> None:
        self.blocks[cid] = block
        self.dht.publish(cid)
        with trio.fail_after(15):
            while not self.dht.stats().get("announced"):
                await trio.sleep(0.02)


@contextlib.asynccontextmanager
async def a_shoal(*known: Spoken) -> AsyncIterator[Shoal]:
    identity = Identity.generate()
    host, blocks = Host(identity, ["/ip4/127.0.0.1/tcp/0"]), dict[bytes, bytes]()
    bitswap = Bitswap(host, blocks)

    async def none(limit: int) -> list[bytes]:
        return []

    config = IpfsSection(dht_peers=tuple(map(at, known)), dht_protocol=LAN)

    async def still(cids: Sequence[bytes]) -> set[bytes]:
        return set(cids) & blocks.keys()

    dht = IpfsDht(identity, config, none, still)
    async with host.running(), bitswap.running(), dht.taken(host, bitswap):
        yield Shoal(host, dht, blocks)


async def test_kubo_finds_and_fetches_an_answer_that_a_node_has_announced(tmp_path: pathlib.Path) -> None:
    signed = answer()
    async with (
        a_kubo(tmp_path / "a", "dhtserver") as middle,
        a_kubo(tmp_path / "b", "dhtserver") as fetcher,
        a_shoal(middle) as shoal,
    ):
        await shoal.announce(signed.cid, signed.block)
        await fetcher.do("connect", address=at(middle))
        assert shoal.host.connected() == [middle.peer_id]
        began = trio.current_time()
        with trio.fail_after(30):
            assert await fetcher.do("pin", cid=signed.cid_text) >= 0
        print(f"Kubo found and fetched it in {(trio.current_time() - began) * 1000:.0f} ms")
        assert fetcher.block(signed.cid) == signed.block
        assert fetcher.peer_id in shoal.host.connected()


async def test_helia_finds_and_fetches_an_answer_that_a_node_has_announced(tmp_path: pathlib.Path) -> None:
    signed = answer()
    async with (
        a_kubo(tmp_path / "a", "dhtserver") as middle,
        a_helia(tmp_path, LAN) as fetcher,
        a_shoal(middle) as shoal,
    ):
        await shoal.announce(signed.cid, signed.block)
        await enters(fetcher, middle)
        assert shoal.id not in await fetcher.do("peers")
        began = trio.current_time()
        with trio.fail_after(30):
            found = await fetcher.do("get", cid=signed.cid_text, timeout_ms=20_000)
        print(f"Helia found and fetched it in {(trio.current_time() - began) * 1000:.0f} ms")
        assert bytes.fromhex(found) == signed.block
        assert shoal.id in await fetcher.do("peers")


async def test_a_block_that_only_kubo_has_is_found_and_fetched(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"what Kubo knows " * 1000)
    async with a_kubo(tmp_path / "a", "dhtserver") as middle, a_kubo(tmp_path / "b", "dhtserver") as keeper:
        await keeper.do("connect", address=at(middle))
        async with a_shoal(middle) as shoal:
            cid = await keeper.do("add", path=str(tmp_path / "file"))
            began, block = trio.current_time(), None
            with trio.fail_after(30):
                while block is None:  # Kubo announces in its own time
                    block = await shoal.dht.fetch(cid, 5)
            print(f"announced, found and fetched from Kubo in {(trio.current_time() - began) * 1000:.0f} ms")
            assert b"what Kubo knows " * 1000 in block
            assert keeper.peer_id in shoal.host.connected()


async def test_what_nobody_has_announced_is_not_found_by_anybody(tmp_path: pathlib.Path) -> None:
    kept = answer(content=LONG)
    async with (
        a_kubo(tmp_path / "a", "dhtserver") as middle,
        a_helia(tmp_path, LAN) as fetcher,
        a_shoal(middle) as shoal,
    ):
        await enters(fetcher, middle)
        shoal.blocks[kept.cid] = kept.block
        with pytest.raises(AssertionError, match=r"Abort|Timeout|LoadBlock|NotFound"):
            await fetcher.do("get", cid=kept.cid_text, timeout_ms=3000)
        with trio.fail_after(10):
            assert await shoal.dht.fetch(kept.cid_text, 3) is None


async def test_a_whole_node_announces_its_answers_and_finds_those_of_others(tmp_path: pathlib.Path) -> None:
    theirs = answer()
    async with (
        FakeUpstream() as upstream,
        a_kubo(tmp_path / "a", "dhtserver") as middle,
        a_helia(tmp_path, LAN) as helia,
    ):
        await enters(helia, middle)
        said = await helia.do("add", hex=theirs.block.hex(), codec=0x71)
        assert said == theirs.cid_text
        await helia.do("provide", cid=said)
        ipfs = f'[ipfs]\ndht_peers = ["{at(middle)}"]\ndht_protocol = "{LAN}"\n[cache]\ntrust = "any"\n'
        config = fast(upstream.url()) + ipfs
        with await start(tmp_path / "node", config=config) as node:
            told = await in_thread(client(node).chat.completions.with_raw_response.create, **question())
            cid = told.headers["x-shoal-cid"]
            await until(node, ("status",), lambda found: found["dht"]["ipfs"].get("announced"), 30)
            with trio.fail_after(30):
                block = bytes.fromhex(await helia.do("get", cid=cid, timeout_ms=20_000))
            assert b"ECHO<one two three>" in block
            shown = await in_thread(node.shoal, "verify", said)
            assert theirs.record.node in shown.stdout
            forgotten = await in_thread(node.shoal, "cache", "forget", cid)
            assert "announced no more" in forgotten.stdout + forgotten.stderr
