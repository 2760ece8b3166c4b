"""The same question to five real nodes of a swarm at once: one generation, and two when its node is killed."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from shoal.protocols.http.client import Client

from tests.chaos.caller import Outcome, ask
from tests.e2e.fixtures import NO_MODEL, fast, in_thread, start
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

NODES, CALLERS = 5, 100
TEXT = "一 zwei trois 🐟 " * 10


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


def connected(node: NodeProcess) -> int:
    with urllib.request.urlopen(f"{node.rpc}/shoal/v1/peers", timeout=10) as answer:
        return sum(peer["connected"] for peer in json.load(answer)["peers"])


@asynccontextmanager
async def swarm(folder: Path, configs: Sequence[str]) -> AsyncGenerator[list[NodeProcess]]:
    """Nodes of which each is connected with every other."""
    nodes: list[NodeProcess] = []
    try:
        for i, config in enumerate(configs):
            joins = [arg for node in nodes for arg in ("--join", node.invite)]
            nodes.append(await start(folder / f"n{i}", *joins, config=config))
        with trio.fail_after(30):
            for node in nodes:
                while await in_thread(connected, node) < len(configs) - 1:
                    await trio.sleep(0.05)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


async def begun(upstream: FakeUpstream, generations: int) -> None:
    """So many have begun, and everybody has had time to begin one more."""
    with trio.fail_after(20):
        while len(upstream.chats) < generations:
            await trio.sleep(0.01)
    await trio.sleep(1)


class Crowd:
    """Callers who all ask the same; one whose node dies asks the next one."""

    def __init__(self, client: Client, nodes: Sequence[NodeProcess]) -> None:
        self.client, self.nodes = client, nodes
        self.outcomes: list[Outcome] = []
        self.retries = 0

    async def ask(self, count: int) -> None:
        async with trio.open_nursery() as nursery:
            for i in range(count):
                nursery.start_soon(self._one, i)

    async def _one(self, i: int) -> None:
        while True:
            outcome = await ask(self.client, self.nodes[i % len(self.nodes)].rpc, TEXT, store=True)
            if outcome.kind != "lost":
                self.outcomes.append(outcome)
                return
            self.retries += 1
            i += 1


def own(upstream: FakeUpstream, i: int, **options: str) -> str:
    """A node with a provider of its own; the scenario tells which."""
    return fast(upstream.url(f"hold+each+slow{i + 1}")) + "".join(
        f"{key} = {value}\n" for key, value in options.items()
    )


async def test_a_hundred_callers_of_five_nodes_with_a_provider_each_cost_one_generation(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    client = Client()
    async with swarm(tmp_path, [own(upstream, i) for i in range(NODES)]) as nodes, client.running():
        crowd = Crowd(client, nodes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.ask, CALLERS)
            await begun(upstream, 1)
            upstream.release()
        assert [outcome.kind for outcome in crowd.outcomes] == ["whole"] * CALLERS
        assert len(upstream.chats) == 1


async def test_a_hundred_callers_of_five_nodes_of_which_one_has_a_provider_cost_one_generation(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    configs = [fast(upstream.url("hold+each"), share=True), *[NO_MODEL] * (NODES - 1)]
    client = Client()
    async with swarm(tmp_path, configs) as nodes, client.running():
        for node in nodes[1:]:
            await in_thread(partial(offered, node))
        crowd = Crowd(client, nodes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.ask, CALLERS)
            await begun(upstream, 1)
            upstream.release()
        assert [outcome.kind for outcome in crowd.outcomes] == ["whole"] * CALLERS
        assert len(upstream.chats) == 1


def offered(node: NodeProcess) -> None:
    while True:
        with urllib.request.urlopen(f"{node.rpc}/shoal/v1/peers", timeout=10) as answer:
            if any(peer["models"] for peer in json.load(answer)["peers"]):
                return


async def test_when_the_generating_node_is_killed_one_other_goes_on_for_all(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    client = Client()
    async with (
        swarm(tmp_path, [own(upstream, i, continues="true") for i in range(NODES)]) as nodes,
        client.running(),
    ):
        crowd = Crowd(client, nodes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.ask, CALLERS)
            await begun(upstream, 1)
            first = upstream.chats[0].scenario
            nodes[int(first[-1]) - 1].kill()
            await begun(upstream, 2)
            upstream.release()
        assert [outcome.kind for outcome in crowd.outcomes] == ["whole"] * CALLERS
        assert crowd.retries == CALLERS // NODES
        assert len(upstream.chats) == 2
