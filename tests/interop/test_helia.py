"""Answers to and from a real Helia over bitswap, and a node's gateway read by JavaScript's own CAR reader."""

from __future__ import annotations

import pathlib

import pytest
import trio
from shoal.cache.cid import RAW, cid_text
from shoal.cache.record import verify

from tests.cache.answers import LONG, answer, ask
from tests.interop.ipfs_processes import a_helia, a_node
from tests.node.fakes_rpc import door
from tests.node.test_rpc_ipfs import remember

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("content", ["Cold.", LONG], ids=["short", "long"])
async def test_helia_fetches_an_answer_and_what_it_links(tmp_path: pathlib.Path, content: str) -> None:
    signed = answer(content=content, link_text=True)
    async with a_helia(tmp_path) as helia, a_node(tmp_path) as (host, _, cache):
        cache.remember(signed)
        await host.connect(helia.peer_id, helia.addresses)
        for cid, block in signed.blocks:
            began = trio.current_time()
            with trio.fail_after(20):
                assert bytes.fromhex(await helia.do("get", cid=cid_text(cid))) == block
            print(f"Helia fetched {len(block)} bytes in {(trio.current_time() - began) * 1000:.0f} ms")


async def test_helia_that_dials_us_fetches_too_and_gets_nothing_private(tmp_path: pathlib.Path) -> None:
    public, private = answer(ask("p")), answer(ask("s"))
    async with a_helia(tmp_path) as helia, a_node(tmp_path) as (host, _, cache):
        cache.remember(public)
        cache.remember(private, public=False)
        with trio.fail_after(20):
            await helia.do("connect", address=host.addresses()[0])
            assert bytes.fromhex(await helia.do("get", cid=public.cid_text)) == public.block
            with pytest.raises(AssertionError, match=r"Abort|Timeout|LoadBlock|NotFound"):
                await helia.do("get", cid=private.cid_text, timeout_ms=1500)


async def test_helia_gets_an_answer_that_is_made_after_it_asked(tmp_path: pathlib.Path) -> None:
    signed = answer()
    async with a_helia(tmp_path) as helia, a_node(tmp_path) as (host, bitswap, cache), trio.open_nursery() as nursery:
        await host.connect(helia.peer_id, helia.addresses)

        async def remember_when_wanted() -> None:
            while not any(signed.cid in peer._wanted for peer in bitswap._peers.values()):
                await trio.sleep(0.01)
            cache.remember(signed)

        nursery.start_soon(remember_when_wanted)
        with trio.fail_after(20):
            assert bytes.fromhex(await helia.do("get", cid=signed.cid_text)) == signed.block


async def test_an_answer_is_fetched_from_helia_and_believed(tmp_path: pathlib.Path) -> None:
    signed = answer(content=LONG)
    async with a_helia(tmp_path) as helia, a_node(tmp_path) as (host, bitswap, _):
        for cid, block in signed.blocks:
            said = await helia.do("add", hex=block.hex(), codec=0x55 if cid[1] == RAW else 0x71)
            assert said == cid_text(cid)
        await host.connect(helia.peer_id, helia.addresses)
        began = trio.current_time()
        fetched = [await bitswap.fetch(cid_text(cid), timeout=10) for cid, _ in signed.blocks]
        print(f"fetched {sum(map(len, fetched))} bytes from Helia in {(trio.current_time() - began) * 1000:.0f} ms")
    assert verify(fetched[1], signed.cid, extra=fetched[0]).content == LONG


async def test_the_nodes_gateway_serves_a_car_that_javascript_verifies(tmp_path: pathlib.Path) -> None:
    async with a_helia(tmp_path) as helia, door() as rpc:
        signed = remember(rpc.cache)
        url = f"http://127.0.0.1:{rpc.port}/ipfs/{signed.cid_text}?format=car"
        with trio.fail_after(20):
            found = await helia.do("car", url=url)
    assert found == {"roots": [signed.cid_text], "cids": [signed.cid_text, cid_text(signed.record.text_cid or b"")]}
