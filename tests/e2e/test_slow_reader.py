"""Callers who ask and do not read: nobody else waits for them, and what they cost in memory has a bound."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import psutil
import pytest
import trio
from shoal.protocols.http.client import Client

from tests.chaos.caller import ask
from tests.chaos.nodes import status
from tests.e2e.fixtures import NO_MODEL, fast, start, until_a_peer_offers
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream

SLOW = 8
ALLOWED_MB = 60  # for all of them together: 4,096 events each are read ahead, and buffers

PATIENT = "[rpc]\nwrite_timeout_s = 300\n"
"""They must still be there when the looking is over, however slow the machine is; that they go in the end is tested in
tests/protocols/test_http_server.py."""


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


def sit(node: NodeProcess, i: int) -> socket.socket:
    """Ask for a very long answer, and read nothing of it."""
    body = {"model": "long", "messages": [{"role": "user", "content": f"tell me {i}"}], "stream": True}
    data = json.dumps(body).encode()
    sitting = socket.socket()
    sitting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sitting.connect(("127.0.0.1", node.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{node.port}\r\ncontent-type: application/json\r\n"
    sitting.sendall(f"{head}cache-control: no-store\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    return sitting


def megabytes(node: NodeProcess) -> float:
    return float(psutil.Process(node.process.pid).memory_info().rss) / 2**20


async def seconds(client: Client, node: NodeProcess, word: str) -> float:
    """The median of twenty short answers."""
    took = []
    for n in range(20):
        outcome = await ask(client, node.rpc, f"{word} {n} one two three")
        assert outcome.kind == "whole"
        took.append(outcome.took)
    return sorted(took)[10]


async def test_callers_who_do_not_read_cost_nobody_else_anything_and_a_bounded_amount_of_memory(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    long = f'[providers.long]\ntype = "openai_compat"\nbase_url = "{upstream.url("words150000+each")}"\n'
    config = fast(upstream.url("each"), share=True) + long + 'models = ["long"]\nshare = true\nmax_concurrent = 64\n'
    giver = await start(tmp_path / "giver", config=config)
    asker = await start(tmp_path / "asker", "--join", giver.invite, config=NO_MODEL + PATIENT)
    nodes = (giver, asker)
    sitting: list[socket.socket] = []
    try:
        await until_a_peer_offers(asker, "long")
        client = Client()
        async with client.running():
            await ask(client, asker.rpc, "warm up")
            alone = await seconds(client, asker, "alone")
            before = [megabytes(node) for node in nodes]
            sitting = [sit(asker, i) for i in range(SLOW)]
            with trio.fail_after(20):
                while upstream.in_flight < SLOW:
                    await trio.sleep(0.05)
            assert await seconds(client, asker, "quick") < max(1.0, 3 * alone)  # the machine may be busy with others
            await trio.sleep(2)
            assert upstream.in_flight == SLOW, "they are held, not thrown away"
            grown = [megabytes(node) - was for node, was in zip(nodes, before, strict=True)]
            assert max(grown) < ALLOWED_MB, grown
        for socket_ in sitting:
            socket_.close()
        with trio.fail_after(10):
            for node in nodes:
                while (await trio.to_thread.run_sync(status, node))["requests"]["in_flight"]:
                    await trio.sleep(0.05)
        await upstream.until(idle=True)
    finally:
        for socket_ in sitting:
            socket_.close()
        for node in nodes:
            node.kill()
