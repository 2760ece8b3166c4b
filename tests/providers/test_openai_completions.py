"""Bare text at a server that has /v1/completions, at one that has not, and at one whose model is none for it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from shoal.protocols.framing import MAX_ITEMS, encode_body
from shoal.protocols.items import check_items
from shoal.providers import openai_compat
from shoal.providers.base import (
    Completion,
    Dropped,
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    Logprobs,
    Provider,
    ProviderError,
    TextDelta,
    Usage,
)
from shoal.providers.openai_completions import TextAnswer
from shoal.providers.settings import BuildContext

from tests.providers.fake_completions import WORDS, TextServer
from tests.providers.test_backend_pool import pool_of

BARE = GenerateRequest.of("one two", completion=Completion("one two"), model="base")
TOKENS = GenerateRequest(messages=(), completion=Completion((7, 8)), model="base")


@pytest.fixture
async def server() -> AsyncGenerator[TextServer]:
    async with TextServer().running() as server:
        yield server


@asynccontextmanager
async def desk(server: TextServer, **keys: Any) -> AsyncGenerator[Provider]:
    settings = msgspec.convert({"base_url": server.url, **keys}, openai_compat.Settings)
    provider = openai_compat.build("desk", settings, BuildContext(Path("unused"), {}))
    async with provider.running():
        yield provider


async def collect(provider: Provider, request: GenerateRequest) -> list[Event]:
    with trio.fail_after(10):
        async with provider.generate(request) as events:
            return [event async for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_the_text_goes_to_the_servers_own_completions_with_all_that_was_asked(server: TextServer) -> None:
    request = msgspec.structs.replace(
        BARE, max_tokens=2, temperature=0.5, stop=("\n",), seed=7, extra={"top_k": 3, "logprobs": True}
    )
    async with desk(server) as provider:
        events = await collect(provider, request)
    assert text_of(events) == " three four"
    assert events[-2:] == [Usage(2, 2), Finish("stop", "base")]
    assert [told.tokens[0]["token"] for told in events if isinstance(told, Logprobs)] == [" three", " four"]
    (body,) = server.bodies
    assert body == {
        "model": "base",
        "prompt": "one two",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 2,
        "temperature": 0.5,
        "stop": ["\n"],
        "seed": 7,
        "top_k": 3,
        "logprobs": 0,
    }


@pytest.mark.parametrize(
    ("completion", "sent"),
    [
        (Completion((7, 8)), {"prompt": [7, 8], "stream": True}),
        (Completion("a", suffix="z"), {"prompt": "a", "suffix": "z", "stream": True}),
        (Completion("a", best_of=3), {"prompt": "a", "best_of": 3, "stream": False}),
        (Completion("one two", echo=True), {"prompt": "one two", "echo": True, "stream": False}),
    ],
)
async def test_what_only_a_completion_can_say_is_said(
    server: TextServer, completion: Completion, sent: dict[str, Any]
) -> None:
    async with desk(server) as provider:
        await collect(provider, GenerateRequest(messages=(), completion=completion, model="base"))
    assert server.bodies[0].items() >= sent.items()


async def test_the_prompts_own_log_probabilities_come_with_it(server: TextServer) -> None:
    request = GenerateRequest(
        messages=(),
        model="base",
        max_tokens=0,
        completion=Completion("one two", echo=True),
        extra={"logprobs": True, "top_logprobs": 1},
    )
    async with desk(server) as provider:
        events = await collect(provider, request)
    assert text_of(events) == "one two"
    (told,) = [event for event in events if isinstance(event, Logprobs)]
    assert [(t["token"], t["logprob"], t["text_offset"]) for t in told.tokens] == [("one", None, 0), (" two", -0.25, 3)]


async def test_a_text_that_exists_in_part_is_gone_on_with_behind_the_prompt(server: TextServer) -> None:
    async with desk(server) as provider:
        events = await collect(provider, msgspec.structs.replace(BARE, prefix=" three"))
    assert server.bodies[0]["prompt"] == "one two three"
    assert text_of(events) == " four five"


async def test_to_end_at_once_is_an_answer(server: TextServer) -> None:
    said = "".join(WORDS)
    async with desk(server) as provider:
        events = await collect(provider, GenerateRequest.of(said, completion=Completion(said), model="base"))
    assert text_of(events) == ""
    assert events[-1] == Finish("stop", "base")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, {"detail": "Not Found"}),
        (405, {"detail": "Method Not Allowed"}),
        (404, {"error": {"message": "This is a chat model and not supported in the v1/completions endpoint."}}),
    ],
)
async def test_a_server_without_completions_gets_a_chat_and_is_not_asked_again(
    server: TextServer, status: int, said: dict[str, Any]
) -> None:
    server.refuse, server.chats = (status, said), True
    async with desk(server) as provider:
        first = await collect(provider, BARE)
        second = await collect(provider, BARE)
        info = (await provider.probe()).info("base")
    assert first == second
    assert first[0] == Dropped(("completion",))
    assert text_of(first) == "as a chat"
    posts = [path for path in server.paths if path != "/v1/models"]
    assert posts == ["/v1/completions", "/v1/chat/completions", "/v1/chat/completions"]
    assert info is not None
    assert info.capabilities.completes is False


async def test_after_a_while_it_is_asked_again(server: TextServer, autojump_clock: trio.testing.MockClock) -> None:
    server.refuse, server.chats = (404, {}), True
    async with desk(server) as provider:
        await collect(provider, BARE)
        server.refuse = None
        await trio.sleep(601)
        events = await collect(provider, BARE)
    assert text_of(events) == " three four five"


async def test_what_no_chat_can_say_is_refused_so_that_the_next_one_is_asked(server: TextServer) -> None:
    server.refuse, server.chats = (404, {}), True
    async with desk(server) as provider:
        with pytest.raises(ProviderError) as caught:
            await collect(provider, TOKENS)
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert len(server.bodies) == 1


async def test_a_model_that_is_not_there_is_no_lack_of_completions(server: TextServer) -> None:
    server.refuse = (404, {"error": {"message": "The model `base` does not exist.", "type": "NotFoundError"}})
    async with desk(server) as provider:
        with pytest.raises(ProviderError) as caught:
            await collect(provider, BARE)
        server.refuse = None
        assert text_of(await collect(provider, BARE)) == " three four five"
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_an_error_never_repeats_the_prompt(server: TextServer) -> None:
    secret = "the launch code is 0000 0000 0000"
    server.refuse = (400, {"error": {"message": f"cannot complete {secret}", "type": "invalid_request_error"}})
    async with desk(server) as provider:
        with pytest.raises(ProviderError) as caught:
            await collect(provider, GenerateRequest(messages=(), completion=Completion(secret), model="base"))
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert "launch" not in caught.value.message


async def test_a_stream_that_breaks_is_interrupted(server: TextServer) -> None:
    server.cut = 2
    async with desk(server) as provider:
        with pytest.raises(ProviderError) as caught:
            await collect(provider, BARE)
    assert caught.value.kind is ErrorKind.INTERRUPTED


@pytest.mark.parametrize("prompt", ["one two", (7, 8, 9, 10)])
async def test_a_server_that_passes_over_echo_has_not_answered(
    server: TextServer, prompt: str | tuple[int, ...]
) -> None:
    server.deaf = True
    request = GenerateRequest(
        messages=(), model="base", completion=Completion(prompt, echo=True), extra={"logprobs": True}
    )
    async with desk(server) as provider:
        with pytest.raises(ProviderError) as caught:
            await collect(provider, request)
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert "echo" in caught.value.message


async def test_a_pool_asks_the_backend_that_completes_for_what_no_chat_can_say(server: TextServer) -> None:
    async with TextServer().running() as chatting:
        chatting.refuse, chatting.chats = (404, {}), True
        pool = pool_of({"a": chatting.url, "b": server.url}, strategy="round_robin")
        async with pool.running():
            assert pool.completes
            for _ in range(2):
                assert text_of(await collect(pool, TOKENS)) == " three four five"
    assert chatting.paths.count("/v1/completions") <= 1
    assert "/v1/chat/completions" not in chatting.paths


async def test_the_owner_may_say_that_a_server_has_none(server: TextServer) -> None:
    async with desk(server, completions=False) as provider:
        assert not provider.completes
    async with desk(server) as provider:
        assert provider.completes


def test_many_log_probabilities_are_told_in_pieces_that_fit_into_a_frame() -> None:
    token = {"token": "x", "logprob": -1.0, "bytes": [120]}
    answer = TextAnswer(TOKENS)
    told = {"content": [{**token, "top_logprobs": [token] * 20}] * 100}
    body = {"choices": [{"text": "x" * 100, "finish_reason": "length", "logprobs": told}]}
    pieces = [event for event in answer.whole(json.dumps(body).encode()) if isinstance(event, Logprobs)]
    assert sum(len(piece.tokens) for piece in pieces) == 100
    for piece in pieces:
        check_items(encode_body(piece), MAX_ITEMS)
