"""A session on a relay, and a direct connection that comes up beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from shoal.providers.base import GenerateRequest

from .fakes_swarm import FakeNetwork, FakeNode, until

REQUEST = GenerateRequest.of("What is the opposite of hot?")


@asynccontextmanager
async def relayed_pair(numbers: tuple[int, int] = (0, 1)) -> AsyncIterator[tuple[FakeNode, FakeNode]]:
    """(who was called, who called), their session on a relay."""
    network = FakeNetwork()
    one, two = (FakeNode(network, number) for number in numbers)
    async with one.running(), two.running():
        network.link(one.id, two.id).relayed = True
        await two.swarm.join(one.swarm.invite())
        await until(lambda: one.sees(two) and two.sees(one))
        yield one, two


def via(node: FakeNode) -> str:
    (view,) = node.swarm.peers()
    return view.via


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
@pytest.mark.parametrize("dialler", [0, 1])
async def test_the_session_moves_and_an_answer_in_progress_ends_where_it_began(autojump_clock, numbers, dialler):
    async with relayed_pair(numbers) as pair:
        one, two = pair
        assert [via(node) for node in pair] == ["relayed", "relayed"]
        one.words = ("a", 30.0, "b", *one.words)
        (provider,) = two.swarm.candidates_for(None)
        async with provider.generate(REQUEST) as answer:
            await anext(answer)
            two.host._network.link(one.id, two.id).relayed = False
            if dialler == 0:
                one.host._connected.add(two.id)
            pair[dialler].swarm.went_direct(pair[1 - dialler].id)
            await until(lambda: [via(node) for node in pair] == ["direct", "direct"], within=0.5)
            peer = two.swarm._links.peers[one.id]
            assert len(peer.sessions) == 2, "the answer is still on the relay"
            assert len([event async for event in answer]) == 5
        await until(lambda: len(peer.sessions) == 1, within=10)
        await until(lambda: len(one.swarm._links.peers[two.id].sessions) == 1, within=10)
        assert [via(node) for node in pair] == ["direct", "direct"]
        assert one.sees(two)
        assert two.sees(one)


async def test_a_direct_connection_that_comes_before_the_session_waits_for_it(autojump_clock):
    network = FakeNetwork()
    one, two = FakeNode(network, 0), FakeNode(network, 1)
    link = network.link(one.id, two.id)
    link.relayed = True
    open_stream = two.host.open_stream

    async def first_relayed(peer_id, protocol):
        stream = await open_stream(peer_id, protocol)
        link.relayed = False
        return stream

    two.host.open_stream = first_relayed
    async with one.running(), two.running():
        two.swarm.went_direct(one.id)
        await two.swarm.join(one.swarm.invite())
        await until(lambda: via(one) == via(two) == "direct")


async def test_without_a_new_connection_nothing_changes(autojump_clock):
    async with relayed_pair() as (one, two):
        two.host._connected.clear()
        two.swarm.went_direct(one.id)
        await trio.sleep(5)
        assert [via(one), via(two)] == ["relayed", "relayed"]
        assert two.sees(one)
