"""The same question to five real nodes of a swarm at once: one generation, and two when its node is killed.

Many rounds of it, with callers that come late and nodes that come back: `python -m tests.chaos.together`.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import pytest
import trio
from shoal.protocols.http.client import Client

from tests.chaos.together import CALLERS, NODES, WORDS, Crowd, own, swarm
from tests.e2e.fixtures import NO_MODEL, fast, in_thread
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def begun(upstream: FakeUpstream, generations: int) -> None:
    """So many have begun, and everybody has had time to begin one more."""
    with trio.fail_after(20):
        while len(upstream.chats) < generations:
            await trio.sleep(0.01)
    await trio.sleep(1)


async def test_a_hundred_callers_of_five_nodes_with_a_provider_each_cost_one_generation(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    client = Client()
    configs = [own(upstream, i, "hold+each") for i in range(NODES)]
    async with swarm(tmp_path, configs) as nodes, client.running():
        crowd = Crowd(client, nodes, WORDS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.ask)
            await begun(upstream, 1)
            upstream.release()
        assert crowd.kinds == {"whole": CALLERS}
        assert len(upstream.chats) == 1


def offered(node: NodeProcess) -> bool:
    with urllib.request.urlopen(f"{node.rpc}/shoal/v1/peers", timeout=10) as answer:
        return any(peer["models"] for peer in json.load(answer)["peers"])


async def test_a_hundred_callers_of_five_nodes_of_which_one_has_a_provider_cost_one_generation(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    configs = [fast(upstream.url("hold+each"), share=True), *[NO_MODEL] * (NODES - 1)]
    client = Client()
    async with swarm(tmp_path, configs) as nodes, client.running():
        with trio.fail_after(10):
            for node in nodes[1:]:
                assert node.node is not None
                while not await in_thread(partial(offered, node.node)):
                    await trio.sleep(0.05)
        crowd = Crowd(client, nodes, WORDS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.ask)
            await begun(upstream, 1)
            upstream.release()
        assert crowd.kinds == {"whole": CALLERS}
        assert len(upstream.chats) == 1


async def test_when_the_generating_node_is_killed_one_other_goes_on_for_all(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    client = Client()
    configs = [own(upstream, i, "hold+each", continues="true") for i in range(NODES)]
    async with swarm(tmp_path, configs) as nodes, client.running():
        crowd = Crowd(client, nodes, WORDS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.ask)
            await begun(upstream, 1)
            nodes[int(upstream.chats[0].scenario[-1])].kill()
            await begun(upstream, 2)
            upstream.release()
        assert crowd.kinds == {"whole": CALLERS}
        assert crowd.retries == CALLERS // NODES
        assert len(upstream.chats) == 2
