"""A caller who leaves ends the work at the end of the line: a process tree, an upstream, a local model's slot."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from shoal.protocols.http.client import Client

from tests.chaos.cancels import Upstream, lending, run
from tests.e2e.fixtures import NO_MODEL, in_thread, start, until_a_peer_offers
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

GONE_S = 0.25
LOADED = 4  # times as long on a machine that other tests keep busy


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


class Caller:
    """Asks for a stream, and leaves when told."""

    def __init__(self, client: Client, node: NodeProcess, model: str) -> None:
        self.client, self.node, self.model = client, node, model
        self.heard = trio.Event()
        self.left_at = 0.0
        self._scope = trio.CancelScope()

    async def ask(self) -> None:
        body = {"model": self.model, "messages": [{"role": "user", "content": "one two three"}], "stream": True}
        with self._scope:
            async with self.client.request(
                "POST",
                f"{self.node.rpc}/v1/chat/completions",
                headers=[("content-type", "application/json")],
                body=json.dumps(body | {"max_tokens": 400}).encode(),
            ) as response:
                async for _ in response:
                    self.heard.set()

    def leave(self) -> None:
        self.left_at = time.monotonic()
        self._scope.cancel()


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and was not asked how does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def held(condition: Any, within: float = 15) -> None:
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.005)


async def test_a_caller_who_leaves_ends_the_process_tree_and_the_upstreams_answer_at_a_peer(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    giver = await start(tmp_path / "giver", config=lending(tmp_path / "tools", upstream.url("words500+slow20+each")))
    asker = await start(tmp_path / "asker", "--join", giver.invite, config=NO_MODEL)
    try:
        await until_a_peer_offers(asker, "echo")
        await until_a_peer_offers(asker, "tree")
        process = psutil.Process(giver.process.pid)
        client = Client()
        async with client.running(), trio.open_nursery() as nursery:
            tree = Caller(client, asker, "tree")
            nursery.start_soon(tree.ask)
            await held(lambda: len(process.children(recursive=True)) == 3)
            family = process.children(recursive=True)
            tree.leave()
            await held(lambda: not any(map(alive, family)))
            assert time.monotonic() - tree.left_at < GONE_S * LOADED
            echo = Caller(client, asker, "echo")
            nursery.start_soon(echo.ask)
            with trio.fail_after(10):
                await echo.heard.wait()
            assert upstream.in_flight == 1
            echo.leave()
            await upstream.until(disconnects=1, idle=True)
            assert time.monotonic() - echo.left_at < GONE_S * LOADED
    finally:
        for node in (giver, asker):
            node.kill()


async def test_a_caller_who_leaves_frees_the_local_models_slot_and_its_computing(tmp_path: Path) -> None:
    def running(node: NodeProcess) -> int:
        with urllib.request.urlopen(f"{node.rpc}/shoal/v1/providers", timeout=10) as answer:
            rows = json.load(answer)["providers"]
        row = next(row for row in rows if row["name"] == "local_hf")
        return int(row["facts"]["running"])

    node = await start(tmp_path / "n", config="")
    client = Client()
    try:
        async with client.running(), trio.open_nursery() as nursery:
            caller = Caller(client, node, "smollm2")
            nursery.start_soon(caller.ask)
            with trio.fail_after(60):
                await caller.heard.wait()
            assert await in_thread(running, node) == 1
            (worker,) = psutil.Process(node.process.pid).children()
            caller.leave()
            with trio.fail_after(10):
                while await in_thread(running, node):
                    await trio.sleep(0.005)
            assert time.monotonic() - caller.left_at < GONE_S * LOADED
            with trio.fail_after(12):  # a step under way ends first, and what drafts is made once
                used, last = 1.0, sum(worker.cpu_times()[:2])
                while used > 0.03:
                    await trio.sleep(0.5)
                    now = sum(worker.cpu_times()[:2])
                    used, last = now - last, now
    finally:
        node.kill()


async def test_callers_who_leave_at_random_leave_nothing_behind_on_either_node(tmp_path: Path) -> None:
    """The short form of `python -m tests.chaos.cancels`, which `make chaos` runs with a thousand."""
    with Upstream() as server:
        assert await run(tmp_path, server, 60)
