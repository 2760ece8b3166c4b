"""Two nodes over the real libp2p host, on loopback: join, forward, look up, lose each other, find each other again."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from shoal.node.swarm.peerbook import PeerBook
from shoal.protocols.p2p.host import Host
from shoal.protocols.session import SessionLimits
from shoal.providers.base import Finish, GenerateRequest, ProviderError, TextDelta

from .fakes_swarm import FakeNetwork, FakeNode, until

REQUEST = GenerateRequest.of("What is the opposite of hot?")


@asynccontextmanager
async def real_node(number: int, *, psk: bytes | None = None, path=None, listen="/ip4/127.0.0.1/tcp/0", **config):
    node = FakeNode(FakeNetwork(), number, key=psk.hex() if psk else None, **config)
    node.host = Host(node.identity, [listen], psk)
    node.book = PeerBook(path) if path is not None else None
    node.limits = SessionLimits()
    async with node.running():
        yield node


async def test_two_real_nodes_join_forward_and_look_up():
    async with real_node(0) as one, real_node(1) as two:
        await two.swarm.join(one.swarm.invite())
        await until(lambda: one.sees(two) and two.sees(one))
        (provider,) = two.swarm.candidates_for("tiny")
        async with provider.generate(REQUEST) as answer:
            events = [event async for event in answer]
        assert events[:2] == [TextDelta("Hel"), TextDelta("lo")]
        assert answer.result == {"provider": "fake", "model": "tiny", "record": b"signed"}
        two.blocks[b"cid"] = b"x" * 300_000
        assert await one.swarm.find(b"cid", 2.0) == [b"x" * 300_000]
        large = GenerateRequest.of("x" * 3_000_000)
        async with provider.generate(large) as answer:
            assert isinstance([event async for event in answer][-1], Finish)
        assert one.asked[-1][0] == large


async def test_leaving_an_answer_stops_the_real_peer_and_keeps_the_session():
    async with real_node(0) as one, real_node(1) as two:
        await two.swarm.join(one.swarm.invite())
        await until(lambda: one.sees(two) and two.sees(one))
        one.words = ("a", 3600)
        (provider,) = two.swarm.candidates_for(None)
        session = two.swarm._links.peers[one.id].session
        for _ in range(20):
            one.cancelled = trio.Event()
            async with provider.generate(REQUEST) as answer:
                await anext(answer)
            with trio.fail_after(2):
                await one.cancelled.wait()
        assert two.swarm._links.peers[one.id].session is session
        assert session.calls_in_flight == 0


async def test_a_real_peer_that_goes_away_interrupts_its_answer_and_is_found_again(tmp_path):
    async with real_node(0, path=tmp_path / "one.db") as one:
        (port,) = (address.split("/")[4] for address in one.host.addresses())
        async with real_node(1, path=tmp_path / "two.db") as two:
            await two.swarm.join(one.swarm.invite())
            await until(lambda: one.sees(two) and two.sees(one))
            two.words = ("a", 3600)
            (provider,) = one.swarm.candidates_for(None)
            async with provider.generate(REQUEST) as answer:
                await anext(answer)
                await one.host.disconnect(two.id)
                with trio.fail_after(2), pytest.raises(ProviderError, match="lost while answering"):
                    await anext(answer)
            await until(lambda: one.sees(two) and two.sees(one))
        await until(lambda: not one.sees(two))
        async with real_node(1, path=tmp_path / "two.db") as two:
            await until(lambda: one.sees(two) and two.sees(one), within=10)
            assert any(f"/tcp/{port}/" in address for address in two.swarm.peers()[0].addresses)


async def test_two_real_nodes_that_dial_each_other_end_with_one_session():
    async with real_node(0) as one, real_node(1) as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.swarm.join, two.swarm.invite())
            nursery.start_soon(two.swarm.join, one.swarm.invite())
        await until(lambda: one.sees(two) and two.sees(one))
        both = [node.swarm._links.peers[other.id] for node, other in ((one, two), (two, one))]
        await until(lambda: [len(peer.sessions) for peer in both] == [1, 1], within=10)
        assert both[0].session.initiator != both[1].session.initiator


async def test_a_stranger_without_the_key_stays_out():
    key = bytes(range(32))
    async with real_node(0, psk=key) as one, real_node(1, psk=key) as two, real_node(2) as stranger:
        await two.swarm.join(one.swarm.invite())
        await until(lambda: one.sees(two) and two.sees(one))
        stranger.swarm._links.seek(stranger.swarm.peer(one.id))
        stranger.swarm.peer(one.id).learn(tuple(one.host.addresses()))
        await until(lambda: bool(stranger.swarm.peers()[0].problem), within=20)
        assert not one.swarm.is_member(stranger.id)
        assert one.sees(two)
