"""What a private swarm's answers are to who is outside it: nothing to read, and no guess to test."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from shoal.cache.cid import RAW, cid_of, cid_text
from shoal.cache.key import request_key
from shoal.protocols.p2p.bitswap import Bitswap
from shoal.protocols.p2p.errors import BlockNotFound, DialFailed
from shoal.protocols.p2p.host import Host
from shoal.protocols.peer_id import Identity, PeerId
from shoal.providers.base import GenerateRequest

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, question, start, until
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_upstream import FakeUpstream
from tests.swarm.test_private_swarm import connected, create

OLD, NEW = "ab" * 32, "cd" * 32
LISTEN = 'listen = ["/ip4/127.0.0.1/tcp/0"]\n'
SAID = "ECHO<one two three>"


def swarm(key: str = "", *more: str) -> str:
    return "\n".join(['[swarm]\nname = "reef"', *([f'key = "{key}"'] if key else []), *more, LISTEN])


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def asked(node: NodeProcess, text: str = "one two three", **how: Any) -> Any:
    return await in_thread(client(node).chat.completions.with_raw_response.create, **question(text, **how))


ONLY_CACHED: Any = {"extra_headers": {"cache-control": "only-if-cached"}}


async def given_by(node: NodeProcess, cids: list[str], psk: str | None) -> list[bytes | None]:
    """What a libp2p host with this transport key gets of a node over bitswap. DialFailed when it gets no connection."""
    host = Host(Identity.generate(), psk=bytes.fromhex(psk) if psk else None)
    bitswap = Bitswap(host, {})  # type: ignore[arg-type]  # it has nothing to serve
    peer = PeerId(node.peer_id)
    found: list[bytes | None] = []
    async with host.running(), bitswap.running():
        await host.connect(peer, node.facts["addresses"])
        for cid in cids:
            try:
                found.append(await bitswap.fetch(cid, peers=[peer], timeout=3))
            except BlockNotFound:
                found.append(None)
    return found


async def test_who_lacks_the_key_reads_nothing_and_tests_no_guess_through_a_change_of_keys_and_after(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    guess = cid_text(cid_of(RAW, SAID.encode()))  # of the answer's text, which a record links
    request = request_key(GenerateRequest.of("one two three", model="echo", temperature=0.0))
    with await start(tmp_path / "a", config=fast(upstream.url()) + swarm(OLD)) as node:
        reply = await asked(node)
        cid = reply.headers["x-shoal-cid"]
        assert reply.parse().model_extra["shoal"]["request"] != request.text
        for key in (None, NEW):
            with pytest.raises(DialFailed):
                await given_by(node, [cid], key)
        record, text = await given_by(node, [cid, guess], OLD)
        assert record is not None
        assert text == SAID.encode()

    rotated = swarm(NEW, f'old_keys = ["{OLD}"]')
    node = await start(tmp_path / "a", config=fast(upstream.url()) + rotated)
    invited = ("--join", node.invite)
    other = await start(tmp_path / "b", *invited, config=NO_MODEL + rotated + "[router]\nforward = false\n")
    with node, other:
        await until(other, ("peers",), connected(1))
        again = await asked(node)  # under its earlier name
        assert (again.headers["x-shoal-cache"], again.headers["x-shoal-cid"]) == ("disk", cid)
        fresh = (await asked(node, "something new")).headers["x-shoal-cid"]
        found = await asked(other, "something new", **ONLY_CACHED)
        assert (found.headers["x-shoal-cache"], found.headers["x-shoal-cid"]) == ("swarm", fresh)
        with pytest.raises(DialFailed):
            await given_by(node, [fresh], OLD)
        assert len(upstream.chats) == 2

    with await start(tmp_path / "a", config=NO_MODEL + swarm()) as node:  # it has left the swarm for an open one
        assert await given_by(node, [cid, fresh, guess, request.text], None) == [None, None, None, None]
        kept = json.loads((await in_thread(node.shoal, "cache", "get", cid, "--json")).stdout)
        assert kept["content"] == SAID


async def test_roles_and_revocation_hold_for_answers_too(tmp_path: Path, upstream: FakeUpstream) -> None:
    """The owner has an answer that the giver signed; a member that may only ask reads no cache."""
    await in_thread(create, tmp_path / "owner", "--private")
    place = '[swarm]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n'
    owner = await start(tmp_path / "owner", config=NO_MODEL + place)
    with owner:
        invite = json.loads((await in_thread(owner.shoal, "swarm", "invite", "--json")).stdout)["invite"]
        asks = ("swarm", "invite", "--role", "ask", "--json")
        asks_only = json.loads((await in_thread(owner.shoal, *asks)).stdout)["invite"]
        giver = await start(tmp_path / "giver", "--join", invite, config=fast(upstream.url(), share=True) + place)
        reader = await start(tmp_path / "reader", "--join", asks_only, config=NO_MODEL + place)
        with giver, reader:
            for node in (owner, giver, reader):
                await until(node, ("peers",), connected(2), within=15)
            await until(owner, ("peers",), lambda said: any(p["models"] for p in said["peers"]))
            reply = await asked(owner)
            assert reply.headers["x-shoal-peer"] == giver.peer_id
            cid = reply.headers["x-shoal-cid"]
            with pytest.raises(openai.APIStatusError) as refused:
                await asked(reader, **ONLY_CACHED)
            assert refused.value.status_code == 504
            block = await in_thread(httpx.get, f"{reader.rpc}/ipfs/{cid}?format=raw", timeout=20)
            assert block.status_code == 404
            assert (await asked(owner, **ONLY_CACHED)).headers["x-shoal-cache"] == "memory"
            await in_thread(owner.shoal, "swarm", "revoke", giver.peer_id)
            await until(owner, ("peers",), connected(1))
            with pytest.raises(openai.APIStatusError):  # it is kept, and believed no longer
                await asked(owner, **ONLY_CACHED)
    with await start(tmp_path / "owner", config=NO_MODEL + place) as owner:
        await until(owner, ("status",), lambda said: said["swarm"]["up"])
        with pytest.raises(openai.APIStatusError):  # though it was met in an earlier run
            await asked(owner, **ONLY_CACHED)
        checked = await in_thread(owner.shoal, "verify", cid, check=False)
        assert "trust" in checked.stdout
        assert checked.returncode != 0
