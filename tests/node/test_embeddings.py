"""`/v1/embeddings`: asked by OpenAI's package, answered by providers that make vectors."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import Server, serve
from shoal.providers.base import ErrorKind, ProviderError
from shoal.providers.embedding import Embeddings, EmbedRequest, pack, unpack
from shoal.providers.openai_compat import Settings, build
from shoal.providers.openai_embeddings import embeddings_of
from shoal.providers.settings import BuildContext

from .fakes_router import Scripted, says
from .fakes_rpc import door
from .test_openai_shape import with_client


class Encoder(Scripted):
    """Makes a vector of each input's length; the first calls fail as told."""

    def __init__(self, name: str, *failures: ProviderError, wait: float = 0) -> None:
        super().__init__(name, says("x"))
        self.failures, self.wait, self.asked = list(failures), wait, list[EmbedRequest]()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self.asked.append(request)
        await trio.sleep(self.wait)
        if self.failures:
            raise self.failures.pop(0)
        return Embeddings(vectors=tuple(pack([len(i), 0.5]) for i in request.inputs), model="m1", tokens=7)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_vectors_as_numbers_and_as_base64(encoding: str | None) -> None:
    provider = Encoder("first")
    options: Any = {} if encoding is None else {"encoding_format": encoding}

    def work(client: openai.OpenAI) -> Any:
        return client.embeddings.create(model="m1", input=["one", "three"], dimensions=2, user="u", **options)

    async with door(provider) as rpc:
        found = await with_client(rpc, work)
    vectors = [
        e.embedding if not isinstance(e.embedding, str) else unpack(base64.b64decode(e.embedding)) for e in found.data
    ]
    assert vectors == [[3.0, 0.5], [5.0, 0.5]]
    assert [e.index for e in found.data] == [0, 1]
    assert found.usage.total_tokens == 7
    assert (provider.asked[0].dimensions, provider.asked[0].extra) == (2, {"user": "u"})


async def test_an_answer_says_who_gave_it_and_a_failed_provider_is_passed_over() -> None:
    broken = Encoder("broken", ProviderError(ErrorKind.UPSTREAM, "it fails"))
    async with door(broken, Encoder("second")) as rpc:
        reply = await rpc.ask("POST", "/v1/embeddings", {"input": [[1, 2], [3]]})
    assert reply.status == 200
    assert reply.headers["x-shoal-provider"] == "second"
    assert reply.headers["x-shoal-route"].startswith("broken;upstream;")
    assert "second;ok;" in reply.headers["x-shoal-route"]


async def test_a_node_without_an_encoder_says_so() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        nobody = await rpc.ask("POST", "/v1/embeddings", {"input": "x", "model": "m1"})
        unknown = await rpc.ask("POST", "/v1/embeddings", {"input": "x", "model": "other"})
    assert (nobody.status, nobody.error["code"]) == (501, "no_embeddings")
    assert nobody.headers["x-should-retry"] == "false"
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")


async def test_an_encoder_that_takes_too_long_is_a_504() -> None:
    async with door(Encoder("slow", wait=60)) as rpc:
        reply = await rpc.ask("POST", "/v1/embeddings", {"input": "x"}, {"x-shoal-timeout-ms": "50"})
    assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("given_", [None, "", [], [""], ["a", 1], [[]], [["a"]], [1.5], {"a": 1}])
async def test_what_is_no_input_is_a_400_that_names_it(given_: Any) -> None:
    async with door(Encoder("first")) as rpc:
        reply = await rpc.ask("POST", "/v1/embeddings", {"input": given_})
    assert (reply.status, reply.error["param"]) == (400, "input")


# -- an OpenAI-compatible upstream -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def upstream(answer: Any, status: int = 200) -> AsyncGenerator[tuple[str, list[Any]]]:
    seen: list[Any] = []

    async def handler(exchange: Exchange) -> None:
        if exchange.method == "POST":
            seen.append((exchange.path, json.loads(exchange.body)))
        listed = {"data": [{"id": "e1"}]}
        await exchange.respond(status, json.dumps(answer if exchange.method == "POST" else listed).encode())

    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve, handler, ("127.0.0.1", 0))
        yield f"http://127.0.0.1:{server.addresses[0][1]}/v1", seen
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("vector", [[1.0, 0.5], base64.b64encode(pack([1.0, 0.5])).decode()])
async def test_an_openai_compatible_provider_passes_them_through(vector: Any, tmp_path: Any) -> None:
    answer = {"data": [{"embedding": vector, "index": 0}], "model": "e1-large", "usage": {"prompt_tokens": 3}}
    async with upstream(answer) as (url, seen):
        provider = build("up", Settings(base_url=url), BuildContext(tmp_path, {}))
        async with provider.running(), door(provider) as rpc:
            reply = await rpc.ask("POST", "/v1/embeddings", {"input": "x", "model": "e1", "dimensions": 2})
    assert reply.json["data"][0]["embedding"] == [1.0, 0.5]
    assert (reply.json["model"], reply.json["usage"]["total_tokens"]) == ("e1-large", 3)
    assert seen == [("/v1/embeddings", {"model": "e1", "input": ["x"], "dimensions": 2})]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": []},
        {"data": [{"embedding": "!", "index": 0}]},
        {"data": [{"embedding": "YQ==", "index": 0}]},
        {"data": [{"embedding": [1e99], "index": 0}]},
        {"data": [{"embedding": [1], "index": 7}]},
    ],
)
def test_an_answer_that_makes_no_sense_is_the_upstreams_fault(answer: Any) -> None:
    with pytest.raises(ProviderError) as caught:
        embeddings_of(json.dumps(answer).encode(), 1)
    assert caught.value.kind is ErrorKind.UPSTREAM


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_packing_keeps_every_float32(numbers: list[float]) -> None:
    assert unpack(pack(numbers)) == numbers
