"""`/v1/completions` through real nodes: to a server that has it, across a peer, and by the local model itself."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest
from shoal.providers import weights

from tests.e2e.fixtures import NO_MODEL, client, in_thread, start, until_a_peer_offers
from tests.e2e.node_process import NodeProcess
from tests.providers.fake_completions import TextServer

FRANCE = "The capital of France is"


@pytest.fixture
async def server() -> AsyncGenerator[TextServer]:
    async with TextServer().running() as server:
        yield server


def desk(url: str) -> str:
    return f'[providers.desk]\ntype = "openai_compat"\nbase_url = "{url}"\nshare = true\n'


async def test_a_peers_server_gets_the_text_and_both_nodes_keep_one_record(tmp_path: Path, server: TextServer) -> None:
    giver = await start(tmp_path / "giver", config=desk(server.url))
    asker = await start(tmp_path / "asker", config=NO_MODEL)
    with giver, asker:
        await in_thread(asker.shoal, "join", giver.invite)
        await until_a_peer_offers(asker, "base")
        complete = client(asker).completions.with_raw_response.create
        first = await in_thread(complete, model="base", prompt="one two", temperature=0)
        assert first.parse().choices[0].text == " three four five"
        assert first.headers["x-shoal-peer"] == giver.peer_id
        cid = first.headers["x-shoal-cid"]
        for node in (asker, giver):
            again = client(node).completions.with_raw_response.create
            kept = await in_thread(again, model="base", prompt="one two", temperature=0)
            assert (kept.headers["x-shoal-cache"], kept.headers["x-shoal-cid"]) == ("memory", cid)
        tokens = await in_thread(
            complete, model="base", prompt=[[7, 8], [9]], echo=True, logprobs=1, max_tokens=0, temperature=0
        )
        assert [choice.logprobs.token_logprobs for choice in tokens.parse().choices] == [[None, -0.25]] * 2
        chunks = await in_thread(lambda: list(client(asker).completions.create(model="base", prompt="x", stream=True)))
        assert "".join(chunk.choices[0].text for chunk in chunks) == " three four five"
        with pytest.raises(openai.BadRequestError):
            await in_thread(complete, model="base", prompt=[], temperature=0)
    alone, *both = [body["prompt"] for body in server.bodies[:3]]
    assert alone == "one two"
    assert sorted(both) == [[7, 8], [9]]  # prompts of one request are asked at once


@pytest.mark.model
async def test_the_local_model_goes_on_with_text_for_a_node_that_takes_it_for_a_server(tmp_path: Path) -> None:
    """One node computes; the other one knows it by its address alone, as it would know any OpenAI-compatible server."""
    store = weights.models_dir(os.environ)
    model = await in_thread(
        NodeProcess, tmp_path / "model", config=f'[providers.local_hf]\nmodels_dir = "{store}"\nthreads = 1\n'
    )
    with model:
        front = await start(tmp_path / "front", config=desk(f"{model.rpc}/v1"))
        with front:
            for node in (model, front):
                ask: Any = client(node).completions.create
                whole = await in_thread(ask, model="smollm2", prompt=FRANCE, max_tokens=2, temperature=0, logprobs=2)
                choice = whole.choices[0]
                assert (choice.text, choice.finish_reason) == (" Paris.", "length")
                assert choice.logprobs.tokens == [" Paris", "."]
                assert choice.logprobs.text_offset == [0, 6]
                assert len(choice.logprobs.top_logprobs[0]) == 2
                assert whole.usage.prompt_tokens == 5

                chunks = await in_thread(
                    lambda ask=ask: list(
                        ask(model="smollm2", prompt=FRANCE, max_tokens=2, temperature=0, stream=True, echo=True)
                    )
                )
                assert "".join(chunk.choices[0].text for chunk in chunks) == f"{FRANCE} Paris."

                likely = await in_thread(
                    ask, model="smollm2", prompt=f"{FRANCE} Paris", max_tokens=0, echo=True, logprobs=1, temperature=0
                )
                told = likely.choices[0].logprobs
                assert "".join(told.tokens) == f"{FRANCE} Paris" == likely.choices[0].text
                assert told.token_logprobs[0] is told.top_logprobs[0] is None
                assert told.token_logprobs[-1] == pytest.approx(-0.26, abs=0.05)
                assert max(told.top_logprobs[-1], key=told.top_logprobs[-1].get) == " Paris"

                with pytest.raises(openai.BadRequestError, match="suffix"):
                    await in_thread(ask, model="smollm2", prompt="def f(", suffix=")", max_tokens=4)

                body = {"model": "smollm2", "messages": [{"role": "user", "content": "What is the opposite of hot?"}]}
                counted = await in_thread(posted, node, "/v1/messages/count_tokens", body)
                chat = await in_thread(posted, node, "/v1/chat/completions", {**body, "max_tokens": 1})
                assert counted == {"input_tokens": chat["usage"]["prompt_tokens"], "shoal": {"estimated": False}}

                told = await in_thread(
                    client(node).responses.create,
                    model="smollm2",
                    input="What is the opposite of hot?",
                    max_output_tokens=16,
                    include=["message.output_text.logprobs"],
                    top_logprobs=1,
                )
                part = told.output[0].content[0]
                assert "".join(token.token for token in part.logprobs) == part.text
                assert all(len(token.top_logprobs) == 1 for token in part.logprobs)


def posted(node: NodeProcess, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{node.rpc}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
