"""`/v1/embeddings`: asked by OpenAI's package, answered by providers that make vectors."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.cache.memory import Memory
from shoal.cache.record import RecordRefused, sign
from shoal.cache.tiers import AnswerCache
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import Server, serve
from shoal.providers.base import (
    Capabilities,
    Embed,
    ErrorKind,
    GenerateRequest,
    ModelInfo,
    Provider,
    ProviderError,
    Status,
)
from shoal.providers.embedding import Embeddings, EmbedRequest, pack, text_of, unpack, vectors_of
from shoal.providers.openai_compat import Settings, build
from shoal.providers.openai_embeddings import embeddings_of
from shoal.providers.settings import BuildContext

from .fakes_router import ME, OTHER, Scripted, ScriptedPeer, says
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
    fault = ProviderError(ErrorKind.UPSTREAM, "it fails")
    broken = Encoder("broken", fault, fault)
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


@pytest.mark.parametrize("given_", [None, "", [], [""], ["a", 1], [[]], [["a"]], [1.5], [-1], [[2**32]], {"a": 1}])
async def test_what_is_no_input_is_a_400_that_names_it(given_: Any) -> None:
    async with door(Encoder("first")) as rpc:
        reply = await rpc.ask("POST", "/v1/embeddings", {"input": given_})
    assert (reply.status, reply.error["param"]) == (400, "input")


# -- the cache -------------------------------------------------------------------------------------------------


async def test_the_same_texts_are_embedded_once_in_whichever_form_they_are_asked_for() -> None:
    provider = Encoder("first")
    async with door(provider) as rpc:
        first = await rpc.ask("POST", "/v1/embeddings", {"input": "one", "model": "m1"})
        listed = await rpc.ask("POST", "/v1/embeddings", {"input": ["one"], "model": "m1", "user": "somebody"})
        text = await rpc.ask("POST", "/v1/embeddings", {"input": "one", "model": "m1", "encoding_format": "base64"})
        fewer = await rpc.ask("POST", "/v1/embeddings", {"input": "one", "model": "m1", "dimensions": 2})
        anew = await rpc.ask("POST", "/v1/embeddings", {"input": "one", "model": "m1"}, {"cache-control": "no-cache"})
        kept = await rpc.ask("POST", "/v1/embeddings", {"input": "x", "model": "m1"}, {"cache-control": "no-store"})
    caches = [reply.headers["x-shoal-cache"] for reply in (first, listed, text, fewer, anew, kept)]
    assert caches == ["miss", "memory", "memory", "miss", "miss", "bypass"]
    assert first.json["data"] == listed.json["data"]
    assert unpack(base64.b64decode(text.json["data"][0]["embedding"])) == first.json["data"][0]["embedding"]
    assert [reply.json["usage"]["total_tokens"] for reply in (first, listed)] == [7, 7]
    assert len(provider.asked) == 4


async def test_a_record_of_vectors_is_signed_found_by_its_request_and_verifies() -> None:
    async with door(Encoder("first")) as rpc:
        made = await rpc.ask("POST", "/v1/embeddings", {"input": ["one", "three"], "model": "m1"})
        about = made.json["shoal"]
        checked = await rpc.ask("GET", f"/shoal/v1/verify/{about['cid']}")
        kept = await rpc.ask("GET", f"/shoal/v1/cache/{about['request']}")
        gone = await rpc.ask(
            "POST", "/v1/embeddings", {"input": "none", "model": "m1"}, {"cache-control": "only-if-cached"}
        )
    assert checked.json["ok"]
    assert vectors_of(kept.json["content"], 2) == (pack([3, 0.5]), pack([5, 0.5]))
    assert (gone.status, gone.error["code"]) == (504, "not_cached")


@pytest.mark.parametrize("near", [True, False])
async def test_what_was_embedded_is_forgotten_by_its_text(near: bool) -> None:
    async with door(Encoder("first")) as rpc:
        asked = {"input": "one", "model": "m1"}
        await rpc.ask("POST", "/v1/embeddings", asked)
        request: dict[str, Any] = {"messages": [{"role": "user", "content": "one"}], "model": "m1"} if near else asked
        gone = await rpc.ask("POST", "/shoal/v1/cache/forget", {"request": request, "near": near})
        again = await rpc.ask("POST", "/v1/embeddings", asked)
    assert gone.json["records"] == 1
    assert again.headers["x-shoal-cache"] == "miss"


async def test_callers_at_the_same_time_share_one_call() -> None:
    provider = Encoder("first", wait=0.3)
    replies: list[Any] = []
    async with door(provider) as rpc:

        async def ask() -> None:
            replies.append(await rpc.ask("POST", "/v1/embeddings", {"input": "one", "model": "m1"}))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
    assert [reply.status for reply in replies] == [200] * 4
    assert len(provider.asked) == 1


@pytest.mark.parametrize(
    "content",
    [
        "Cold.",
        text_of([pack([1.0])]),
        text_of([pack([1.0]), pack([1.0, 2.0])]),
        text_of([pack([1.0]), pack([math.inf])]),
        text_of([pack([1.0]), pack([2.0])]).replace(":", ": "),
        text_of([b"", b""]),
    ],
)
def test_what_a_peer_offers_as_vectors_is_refused_unless_it_is_that(content: str) -> None:
    request = GenerateRequest(messages=(), model="m1", embed=Embed(("one", "two")))
    cache = AnswerCache(ME.peer_id, memory=Memory(1 << 20))
    key = cache.key(request)
    assert key is not None
    record = sign(OTHER, key, request, provider="p", model="m1", content=content, finish="stop")
    with pytest.raises(RecordRefused) as caught:
        cache.remember_foreign(record.block, key, request=request)
    assert caught.value.reason == "content"


class Parrot(ScriptedPeer):
    """A peer that says it makes vectors, and says "Cold." """

    embeds = True

    def makes_vectors(self, model: str | None) -> bool:
        return True


class Reef:
    def __init__(self, peer: Provider) -> None:
        self._peer = peer

    def candidates_for(self, model: str | None) -> list[Provider]:
        return [self._peer]


async def test_words_of_a_peer_are_no_vectors_and_are_not_kept() -> None:
    peer = Parrot(OTHER.peer_id, says("Cold."))
    async with door(swarm=Reef(peer)) as rpc:
        replies = [await rpc.ask("POST", "/v1/embeddings", {"input": "one", "model": "m1"}) for _ in range(2)]
    assert [reply.status for reply in replies] == [502, 502]
    assert "no embeddings" in replies[0].error["message"]
    assert len(peer.calls) == 2
    assert peer.calls[0].embed == Embed(("one",))


async def test_metrics_tell_embeddings_from_chats() -> None:
    async with door(Encoder("first")) as rpc:
        for _ in range(2):
            await rpc.ask("POST", "/v1/embeddings", {"input": "one", "model": "m1"})
        told = (await rpc.ask("GET", "/metrics")).body.decode()
    assert 'gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="embeddings"' in told
    assert 'gen_ai_operation_name="chat"' not in told
    assert "time_to_first_token_seconds_count" not in told


async def test_a_model_that_only_makes_vectors_is_not_asked_to_write() -> None:
    encoder = Encoder("first")
    encoder.status = Status(ready=True, models=(ModelInfo("e1", 512, Capabilities(writes=False, embeds=True)),))
    async with door(encoder) as rpc:
        wrote = await rpc.ask(
            "POST", "/v1/chat/completions", {"model": "e1", "messages": [{"role": "user", "content": "x"}]}
        )
        found = await rpc.ask("POST", "/v1/embeddings", {"input": "x"})
    assert wrote.status == 404
    assert "embeddings" in wrote.error["message"]
    assert found.status == 200
    assert encoder.asked[0].model == "e1"


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1)
)
def test_vectors_come_out_of_their_text_as_they_went_in(vectors: list[list[float]]) -> None:
    packed = tuple(pack(each) for each in vectors)
    assert vectors_of(text_of(packed), len(packed)) == packed


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
