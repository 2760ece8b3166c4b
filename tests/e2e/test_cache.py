"""Answers that outlive their node: found at peers, kept after the peer is gone, moved in files, sealed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from shoal.cache.key import request_key
from shoal.cache.receipt import write
from shoal.cache.record import sign
from shoal.protocols.peer_id import Identity
from shoal.providers.base import GenerateRequest

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, question, start, until, until_a_peer_offers
from tests.providers.fake_upstream import FakeUpstream

LONG = "The sea was calm. " * 16_000  # 288,000 bytes: more than a record holds


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def test_a_peer_has_an_answer_that_is_too_long_for_its_record(tmp_path: Path) -> None:
    request = GenerateRequest.of("long", model="echo", temperature=0.0)
    key, author = request_key(request), Identity.generate()
    signed = sign(author, key, request, provider="p", model="echo", content=LONG, finish="stop", link_text=True)
    (tmp_path / "long.car").write_bytes(write(signed))
    config = NO_MODEL + '[cache]\ntrust = "any"\n'
    with await start(tmp_path / "a", config=config) as first:
        await in_thread(first.shoal, "cache", "import", str(tmp_path / "long.car"))
        with await start(tmp_path / "b", "--join", first.invite, config=config) as second:
            await until(second, ("peers",), lambda said: any(peer["connected"] for peer in said["peers"]))
            found = await in_thread(client(second).chat.completions.with_raw_response.create, **question("long"))
            assert found.headers["x-shoal-cache"] == "swarm"
            assert found.parse().choices[0].message.content == LONG


async def test_an_answer_outlives_the_node_that_gave_it(tmp_path: Path, upstream: FakeUpstream) -> None:
    giving = await start(tmp_path / "a", config=fast(upstream.url(), share=True))
    with giving, await start(tmp_path / "b", "--join", giving.invite, config=NO_MODEL) as asking:
        await until_a_peer_offers(asking, "echo")
        said = await in_thread(client(asking).chat.completions.with_raw_response.create, **question())
        assert said.headers["x-shoal-peer"] == giving.peer_id
        await until(asking, ("cache", "stats"), lambda stats: stats["disk"]["answers"] == 1)
    with await start(tmp_path / "b", "--join", giving.invite, config=NO_MODEL) as alone:
        again = await in_thread(client(alone).chat.completions.with_raw_response.create, **question())
        assert again.headers["x-shoal-cache"] == "disk"
        record = json.loads(
            (await in_thread(alone.shoal, "cache", "get", again.headers["x-shoal-cid"], "--json")).stdout
        )
        assert record["node"] == giving.peer_id
        receipt = tmp_path / "answer.receipt"
        await in_thread(alone.shoal, "receipt", again.headers["x-shoal-cid"], "-o", str(receipt))
    verified = await in_thread(alone.shoal, "verify", str(receipt))  # without any node
    assert all(words in verified.stdout for words in ("verified", giving.peer_id, "ECHO<one two three>"))


async def test_answers_of_a_private_swarm_move_in_files_and_are_named_by_its_key(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    key, old = "ab" * 32, "cd" * 32
    config = fast(upstream.url()) + f'[swarm]\nname = "reef"\nkey = "{old}"\n'
    with await start(tmp_path / "a", config=config) as node:
        asked = await in_thread(client(node).chat.completions.with_raw_response.create, **question())
        stats = json.loads((await in_thread(node.shoal, "cache", "stats", "--json")).stdout)
        assert stats["sealed"] is True
        await in_thread(node.shoal, "cache", "export", str(tmp_path / "a.car"))
    rotated = fast(upstream.url()) + f'[swarm]\nname = "reef"\nkey = "{key}"\nold_keys = ["{old}"]\n'
    with await start(tmp_path / "b", config=rotated) as node:
        told = json.loads((await in_thread(node.shoal, "cache", "import", str(tmp_path / "a.car"), "--json")).stdout)
        assert (told["imported"], told["refused"]) == (1, {})
        pinned = await in_thread(node.shoal, "cache", "pin", asked.headers["x-shoal-cid"])
        assert "1 answer pinned" in pinned.stdout
    assert len(upstream.chats) == 1
