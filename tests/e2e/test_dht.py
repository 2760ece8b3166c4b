"""Five real nodes in a row: each is connected with its neighbours alone, and finds what is at the other end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trio

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, question, start
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

# Neighbours are those that are named, and nothing is heard of anybody else.
LINE = """
[swarm]
{key}listen = ["/ip4/127.0.0.1/tcp/0"]
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
async def a_line(folder: Path, *configs: str, key: str = "") -> AsyncGenerator[list[NodeProcess]]:
    with contextlib.ExitStack() as stack:
        nodes: list[NodeProcess] = []
        for number, config in enumerate(configs):
            peers = f'"{nodes[-1].facts["addresses"][0]}"' if nodes else ""
            node = await start(folder / f"node{number}", config=config + LINE.format(peers=peers, key=key))
            nodes.append(stack.enter_context(node))
        for number, node in enumerate(nodes):
            near = {other.peer_id for other in nodes[max(0, number - 1) : number + 2]} - {node.peer_id}
            with trio.fail_after(10):
                while await connected(node) != near:
                    await trio.sleep(0.05)
        yield nodes


async def said(node: NodeProcess, path: str) -> Any:
    return (await in_thread(httpx.get, f"{node.rpc}/shoal/v1/{path}", trust_env=False)).json()


async def connected(node: NodeProcess) -> set[str]:
    return {peer["peer"] for peer in (await said(node, "peers"))["peers"] if peer["connected"]}


async def until_announced(node: NodeProcess, **counts: int) -> None:
    with trio.fail_after(20):
        while not counts.items() <= (await said(node, "status"))["dht"]["swarm"]["announced"].items():
            await trio.sleep(0.05)


async def asked(node: NodeProcess, text: str = "one two three") -> Any:
    return await in_thread(client(node).chat.completions.with_raw_response.create, **question(text))


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def test_a_model_and_an_answer_are_found_at_the_other_end_of_a_line(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with a_line(tmp_path, *[NO_MODEL] * 4, fast(upstream.url(), share=True)) as nodes:
        asker, giver = nodes[0], nodes[4]
        await until_announced(giver, models=1)
        told = await asked(asker)
        assert told.parse().choices[0].message.content == "ECHO<one two three>"
        assert told.headers["x-shoal-peer"] == giver.peer_id
        assert (await said(asker, "status"))["dht"]["swarm"]["found"]["model"] == 1
        assert giver.peer_id in await connected(asker)

        # What is lent no more is announced no more.
        await in_thread(giver.shoal, "pause")
        await until_announced(giver, models=0, answers=1)
        with pytest.raises(openai.NotFoundError):
            await asked(nodes[1], "something else")

        # Both ends have the answer; the node in the middle is connected to neither.
        again = await asked(nodes[2])
        assert again.headers["x-shoal-cache"] == "dht"
        assert again.headers["x-shoal-cid"] == told.headers["x-shoal-cid"]
        assert len(upstream.chats) == 1
        stats = await said(nodes[2], "cache")
        assert (stats["hits"]["dht"], stats["looked_up"]["dht"]["found"]) == (1, 1)
        scraped = await in_thread(httpx.get, f"{nodes[2].rpc}/metrics", trust_env=False)
        assert 'shoal_cache_hits_total{shoal_tier="dht"} 1' in scraped.text

        forgotten = await in_thread(giver.shoal, "cache", "forget", told.headers["x-shoal-cid"])
        assert "announced no more" in forgotten.stdout + forgotten.stderr
        await until_announced(giver, answers=0)


async def test_in_a_private_swarm_an_answer_is_found_by_members_under_a_name_that_only_they_can_make(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    key = f'key = "{"5a" * 32}"\n'
    async with a_line(tmp_path, NO_MODEL, NO_MODEL, fast(upstream.url()), key=key) as nodes:
        told = await asked(nodes[2])
        await until_announced(nodes[2], answers=1)
        found = await asked(nodes[0])
        assert found.headers["x-shoal-cache"] == "dht"
        assert found.headers["x-shoal-cid"] == told.headers["x-shoal-cid"]
        with pytest.raises(openai.NotFoundError):  # and nothing that was not asked before
            await asked(nodes[0], "something else")
