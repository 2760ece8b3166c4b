"""Embeddings between real nodes: a peer makes them within its owner's limits, and once made they are an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import openai
import pytest

from tests.e2e.fixtures import NO_MODEL, client, fast, in_thread, start, until, until_a_peer_offers
from tests.providers.fake_upstream import FakeUpstream

PRIVATE = f'[swarm]\nname = "reef"\nkey = "{"ab" * 32}"\n'


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


async def test_a_peer_embeds_within_its_limits_and_everybody_in_the_swarm_has_it_then(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    limited = fast(upstream.url(), share=True) + PRIVATE + "[share.fast]\nrequests_per_minute = 2\n"
    with await start(tmp_path / "giver", config=limited) as giver:
        joined = ("--join", giver.invite)
        asker = await start(tmp_path / "asker", *joined, config=NO_MODEL + PRIVATE)
        other = await start(tmp_path / "other", *joined, config=NO_MODEL + PRIVATE + "[router]\nforward = false\n")
        with asker, other:
            await until_a_peer_offers(asker, "echo")
            embed = client(asker).embeddings.with_raw_response.create
            first = await in_thread(embed, model="echo", input=["a", "three"], encoding_format="float")
            assert [each.embedding for each in first.parse().data] == [[1, 0.5, -1.25], [5, 0.5, -1.25]]
            assert first.headers["x-shoal-peer"] == giver.peer_id
            again = await in_thread(embed, model="echo", input=["a", "three"])  # base64, as the package asks by default
            assert again.headers["x-shoal-cache"] == "memory"
            assert again.parse().data[1].embedding == [5, 0.5, -1.25]
            await until(other, ("peers",), lambda said: sum(peer["connected"] for peer in said["peers"]) == 2)
            found = await in_thread(
                client(other).embeddings.with_raw_response.create, model="echo", input=["a", "three"]
            )
            assert found.headers["x-shoal-cache"] == "swarm"
            assert found.headers["x-shoal-cid"] == first.headers["x-shoal-cid"]
            assert len(upstream.embeddings) == 1
            await in_thread(embed, model="echo", input="two")
            with pytest.raises(openai.RateLimitError):
                await in_thread(embed, model="echo", input="too many")
            account = json.loads((await in_thread(giver.shoal, "peers", "--json")).stdout)["peers"]
            used = next(peer["consumed"] for peer in account if peer["peer"] == asker.peer_id)
            assert (used["requests"], used["prompt_tokens"], used["completion_tokens"]) == (2, 3, 0)
            kept = await in_thread(asker.shoal, "cache", "get", first.headers["x-shoal-cid"], "--json")
            assert json.loads(kept.stdout)["sealed"].startswith("bafkrei")
            await in_thread(asker.shoal, "cache", "export", str(tmp_path / "vectors.car"))
    alone = await start(tmp_path / "alone", config=NO_MODEL + PRIVATE + f'[cache]\ntrust = ["{giver.peer_id}"]\n')
    with alone:
        await in_thread(alone.shoal, "cache", "import", str(tmp_path / "vectors.car"))
        offline = await in_thread(client(alone).embeddings.with_raw_response.create, model="echo", input=["a", "three"])
        assert offline.headers["x-shoal-cache"] == "disk"
