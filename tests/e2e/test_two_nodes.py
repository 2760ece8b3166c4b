"""Two real nodes in one swarm: what one cannot answer the other does, and each death on the way is told."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, question, start, until, until_a_peer_offers
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def pair(folder: Path, base_url: str) -> tuple[NodeProcess, NodeProcess]:
    """A node that shares its provider, and one without any that has joined it and knows its models."""
    giver = await start(folder / "giver", config=fast(base_url, share=True))
    asker = await start(folder / "asker", config=NO_MODEL)
    await in_thread(asker.shoal, "join", giver.invite)
    await until_a_peer_offers(asker, "echo")
    return giver, asker


async def test_a_peer_answers_and_both_nodes_keep_its_signed_record(tmp_path: Path, upstream: FakeUpstream) -> None:
    giver, asker = await pair(tmp_path, upstream.url())
    with giver, asker:
        first = await in_thread(client(asker).chat.completions.with_raw_response.create, **question())
        assert first.parse().choices[0].message.content == "ECHO<one two three>"
        assert first.headers["x-shoal-peer"] == giver.peer_id
        assert first.headers["x-shoal-cache"] == "miss"
        cid = first.headers["x-shoal-cid"]
        for node in (asker, giver):
            again = await in_thread(client(node).chat.completions.with_raw_response.create, **question())
            assert (again.headers["x-shoal-cache"], again.headers["x-shoal-cid"]) == ("memory", cid)
            verified = await in_thread(node.shoal, "verify", cid)
            assert giver.peer_id in verified.stdout
        assert len(upstream.chats) == 1
    assert (giver.process.returncode, asker.process.returncode) == (0, 0)


async def test_an_answer_that_a_peer_has_is_taken_from_its_cache(tmp_path: Path, upstream: FakeUpstream) -> None:
    """The giver shares no provider here: only what it has already answered."""
    giver = await start(tmp_path / "giver", config=fast(upstream.url(), share=False))
    with giver:
        told = await in_thread(client(giver).chat.completions.with_raw_response.create, **question())
        asker = await start(tmp_path / "asker", "--join", giver.invite, config=NO_MODEL)
        with asker:
            await until(asker, ("peers",), lambda said: any(p["connected"] for p in said["peers"]))
            got = await in_thread(client(asker).chat.completions.with_raw_response.create, **question())
            assert got.headers["x-shoal-cache"] == "swarm"
            assert got.headers["x-shoal-cid"] == told.headers["x-shoal-cid"]
            assert got.parse().choices[0].message.content == "ECHO<one two three>"
            with pytest.raises(openai.NotFoundError):  # and nothing that was not shared
                await in_thread(client(asker).chat.completions.create, **question("something else"))
            assert len(upstream.chats) == 1


async def test_a_stream_through_a_peer_stops_there_when_the_caller_leaves(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    giver, asker = await pair(tmp_path, upstream.url("stall"))
    with giver, asker:

        def leave_after_the_first_chunk() -> None:
            stream = client(asker).chat.completions.create(**question(stream=True))
            next(iter(stream))
            stream.close()

        await in_thread(leave_after_the_first_chunk)
        await upstream.until(disconnects=1, within=2)


async def test_a_peer_killed_mid_stream_is_noticed_at_once_and_said(tmp_path: Path, upstream: FakeUpstream) -> None:
    giver, asker = await pair(tmp_path, upstream.url("hold"))
    with giver, asker:
        stream = await in_thread(client(asker).chat.completions.create, **question(stream=True))
        chunks = iter(stream)
        said = await in_thread(next, chunks)
        while not (said.choices and said.choices[0].delta.content):
            said = await in_thread(next, chunks)
        giver.kill()
        began = trio.current_time()

        def rest() -> Any:
            with pytest.raises(openai.APIError) as failure:
                list(chunks)
            return failure.value

        error = await in_thread(rest)
        assert trio.current_time() - began < 1
        assert error.code == "interrupted"
        # the dead peer is out of every route, and the node lives
        with pytest.raises(openai.NotFoundError):
            await in_thread(client(asker).chat.completions.create, **question("and now?"))


async def test_a_peer_that_was_killed_and_returns_is_used_again(tmp_path: Path, upstream: FakeUpstream) -> None:
    giver, asker = await pair(tmp_path, upstream.url())
    with asker:
        listen = next(a for a in giver.facts["addresses"]).rsplit("/p2p/", 1)[0]
        giver.kill()
        await until(asker, ("peers",), lambda said: not any(p["connected"] for p in said["peers"]))
        config = fast(upstream.url(), share=True)
        with await start(tmp_path / "giver", "--listen", listen, config=config) as giver:
            await until_a_peer_offers(asker, "echo", within=20)
            answer = await in_thread(client(asker).chat.completions.create, **question("back again"))
            assert answer.choices[0].message.content == "ECHO<back again>"


async def test_garbage_on_the_swarm_port_and_a_wrong_swarm_disturb_nobody(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    giver, asker = await pair(tmp_path, upstream.url())
    with giver, asker:
        host, port = swarm_port(giver)
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 65536, struct.pack(">I", 2**31) + b"\xc1" * 4096, b"\x13"):
            with socket.create_connection((host, port), timeout=5) as connection:
                connection.sendall(garbage)
        stranger_config = NO_MODEL + f'[swarm]\nname = "elsewhere"\npeers = ["{giver.facts["addresses"][0]}"]\n'
        with await start(tmp_path / "stranger", config=stranger_config) as stranger:
            answer = await in_thread(client(asker).chat.completions.create, **question("still there?"))
            assert answer.choices[0].message.content == "ECHO<still there?>"
            said = json.loads((await in_thread(giver.shoal, "peers", "--json")).stdout)
            assert not any(p["peer"] == stranger.peer_id and p["connected"] for p in said["peers"])


def swarm_port(node: NodeProcess) -> tuple[str, int]:
    parts = node.facts["addresses"][0].split("/")
    return parts[2], int(parts[4])
