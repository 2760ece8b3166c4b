"""Five real nodes in a row: each is connected with its neighbours alone, and finds what is at the other end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, question, start, until
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

# Neighbours are those that are named, and nothing is heard of anybody else.
LINE = """
[swarm]
listen = ["/ip4/127.0.0.1/tcp/0"]
peers = [{peers}]
mdns = false
neighbours = 0
heard_adverts = 0
[dht]
announce_every_s = 0.5
refresh_s = 2
[cache]
swarm_wait_ms = 3000
"""


@contextlib.asynccontextmanager
async def a_line(folder: Path, *configs: str) -> AsyncGenerator[list[NodeProcess]]:
    with contextlib.ExitStack() as stack:
        nodes: list[NodeProcess] = []
        for number, config in enumerate(configs):
            peers = f'"{nodes[-1].facts["addresses"][0]}"' if nodes else ""
            node = await start(folder / f"node{number}", config=config + LINE.format(peers=peers))
            nodes.append(stack.enter_context(node))
        for number, node in enumerate(nodes):
            near = {other.peer_id for other in nodes[max(0, number - 1) : number + 2]} - {node.peer_id}
            await until(node, ("peers",), lambda said, near=near: connected(said) == near)
        yield nodes


def connected(said: Any) -> set[str]:
    return {peer["peer"] for peer in said["peers"] if peer["connected"]}


async def dht_of(node: NodeProcess) -> Any:
    said = json.loads((await in_thread(node.shoal, "status", "--json")).stdout)
    return said["dht"]["swarm"]


async def until_announced(node: NodeProcess, **counts: int) -> None:
    await until(node, ("status",), lambda said: counts.items() <= said["dht"]["swarm"]["announced"].items(), 20)


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def test_a_model_and_an_answer_are_found_at_the_other_end_of_a_line(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    giver_config, keeper_config = fast(upstream.url(), share=True), fast(upstream.url())
    configs = [NO_MODEL, NO_MODEL, keeper_config.replace('"echo"', '"parrot"'), NO_MODEL, giver_config]
    async with a_line(tmp_path, *configs) as nodes:
        asker, giver = nodes[0], nodes[4]
        await until_announced(giver, models=1)
        assert connected(json.loads((await in_thread(asker.shoal, "peers", "--json")).stdout)) == {nodes[1].peer_id}
        told = await in_thread(client(asker).chat.completions.with_raw_response.create, **question())
        assert told.parse().choices[0].message.content == "ECHO<one two three>"
        assert told.headers["x-shoal-peer"] == giver.peer_id
        assert (await dht_of(asker))["found"]["model"] == 1
        assert giver.peer_id in connected(json.loads((await in_thread(asker.shoal, "peers", "--json")).stdout))

        # What the giver was asked it has, and so has node 1, which is not connected to it.
        await until_announced(giver, answers=1)
        again = await in_thread(client(nodes[2]).chat.completions.with_raw_response.create, **question())
        assert again.headers["x-shoal-cache"] == "dht"
        assert again.headers["x-shoal-cid"] == told.headers["x-shoal-cid"]
        assert len(upstream.chats) == 1
        stats = json.loads((await in_thread(nodes[2].shoal, "cache", "stats", "--json")).stdout)
        assert stats["hits"]["dht"] == 1
