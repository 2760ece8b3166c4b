"""The OpenAI-compatible provider against a real server on loopback, in good days and bad."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from shoal.providers import openai_compat, openai_stream
from shoal.providers.base import (
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    Provider,
    ProviderError,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from shoal.providers.settings import BuildContext

from tests.providers.fake_upstream import FakeUpstream

KEY = "sk-planted-key"
ASK = GenerateRequest.of("one two three four")
REPLY = "ECHO<one two three four>"


def provider_at(url: str, environ: dict[str, str] | None = None, **keys: Any) -> Provider:
    settings = msgspec.convert({"base_url": url, **keys}, openai_compat.Settings)
    return openai_compat.build("desk", settings, BuildContext(Path("unused"), environ or {}))


@asynccontextmanager
async def desk(upstream: FakeUpstream, scenario: str = "ok", **keys: Any) -> AsyncGenerator[Provider]:
    provider = provider_at(upstream.url(scenario), **{"models": ["stub"], **keys})
    async with provider.running():
        yield provider


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


async def collect(provider: Provider, request: GenerateRequest = ASK) -> list[Event]:
    with trio.fail_after(10):
        async with provider.generate(request) as events:
            return [event async for event in events]


async def fail(provider: Provider, request: GenerateRequest = ASK) -> tuple[list[Event], ProviderError]:
    """The events before the failure, and the failure."""
    seen: list[Event] = []
    with trio.fail_after(10), pytest.raises(ProviderError) as caught:  # noqa: PT012
        async with provider.generate(request) as events:
            async for event in events:
                seen.append(event)
    return seen, caught.value


def text_of(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


# -- good days


@pytest.mark.parametrize("scenario", ["ok", "each", "json", "nodone", "or", "slow1"])
async def test_text_usage_and_finish_come_in_every_manner_of_answering(upstream: FakeUpstream, scenario: str) -> None:
    async with desk(upstream, scenario) as provider:
        events = await collect(provider)
    assert text_of(events) == REPLY
    assert isinstance(events[-2], Usage)
    assert events[-2].completion_tokens == 4
    assert isinstance(events[-1], Finish)
    assert (events[-1].reason, events[-1].model) == ("stop", "stub")


async def test_reasoning_and_text_are_kept_apart(upstream: FakeUpstream) -> None:
    async with desk(upstream, "reasoning") as provider:
        events = await collect(provider)
    assert "".join(e.text for e in events if isinstance(e, ReasoningDelta)) == "First I think. Then I think again."
    assert text_of(events) == REPLY


@pytest.mark.parametrize("scenario", ["toolcall", "toolcall+json", "toolcall+notools"])
async def test_tool_calls_arrive_whole(upstream: FakeUpstream, scenario: str) -> None:
    async with desk(upstream, scenario) as provider:
        events = await collect(provider)
    calls = [e for e in events if isinstance(e, ToolCallDelta)]
    arguments = {i: "".join(c.arguments for c in calls if c.index == i) for i in (0, 1)}
    assert [c.name for c in calls if c.name] == ["bash", "create"]
    assert [c.id for c in calls if c.id] == ["call_1", "call_2"]
    assert json.loads(arguments[0]) == {"command": "touch X"}
    assert json.loads(arguments[1]) == {"path": "Y"}
    assert isinstance(events[-1], Finish)
    assert events[-1].reason == "tool_calls"


async def test_the_length_stop_is_told(upstream: FakeUpstream) -> None:
    async with desk(upstream, "length") as provider:
        events = await collect(provider, msgspec.structs.replace(ASK, max_tokens=2))
    assert (text_of(events), events[-1]) == ("ECHO<one two ", Finish("length", "stub"))


async def test_answers_share_a_connection(upstream: FakeUpstream) -> None:
    async with desk(upstream) as provider:
        for _ in range(5):
            await collect(provider)
    assert len(upstream.chats) == 5
    assert upstream.connections == 1


async def test_the_request_carries_key_headers_and_model(upstream: FakeUpstream) -> None:
    keys = {"api_key_env": "DESK_KEY", "headers": {"X-Team": "whales"}, "models": ["stub", "stub-2"]}
    provider = provider_at(upstream.url(), {"DESK_KEY": f" {KEY} \n"}, **keys)
    async with provider.running():
        await collect(provider)
        await collect(provider, msgspec.structs.replace(ASK, model="stub-2"))
    first, second = upstream.chats
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.headers["x-team"] == "whales"
    assert (first.body["model"], second.body["model"]) == ("stub", "stub-2")


async def test_without_a_key_none_is_sent(upstream: FakeUpstream) -> None:
    async with desk(upstream) as provider:
        await collect(provider)
    assert "authorization" not in upstream.chats[0].headers


async def test_a_key_file_is_read_again_when_it_changes(upstream: FakeUpstream, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first\n")
    async with desk(upstream, api_key_file=str(file)) as provider:
        await collect(provider)
        file.write_text("second-key\n")
        await collect(provider)
        file.write_text("two words\n")
        _, error = await fail(provider)
    assert [r.headers["authorization"] for r in upstream.chats] == ["Bearer first", "Bearer second-key"]
    assert error.kind is ErrorKind.UNAVAILABLE
    assert "two words" not in str(error)


# -- bad days


@pytest.mark.parametrize(
    ("scenario", "kind", "words"),
    [
        ("s400", ErrorKind.BAD_REQUEST, "HTTP 400"),
        ("s400ctx", ErrorKind.CONTEXT_LENGTH, "context_length_exceeded"),
        ("s400filter", ErrorKind.CONTENT_FILTER, "content_filter"),
        ("s400model", ErrorKind.UNAVAILABLE, "not a valid model ID"),
        ("s401", ErrorKind.AUTH, "DESK_KEY"),
        ("s402", ErrorKind.QUOTA, "credit"),
        ("s403", ErrorKind.AUTH, "DESK_KEY"),
        ("s404", ErrorKind.UNAVAILABLE, "does not exist"),
        ("s429", ErrorKind.RATE_LIMITED, "rate limit"),
        ("s500", ErrorKind.UPSTREAM, "HTTP 500"),
        ("s502", ErrorKind.UPSTREAM, "HTTP 502"),
        ("s503", ErrorKind.OVERLOADED, "HTTP 503"),
        ("s529", ErrorKind.OVERLOADED, "HTTP 529"),
        ("drop", ErrorKind.CONNECTION, "before it answered"),
        ("garbage", ErrorKind.UPSTREAM, "does not answer in HTTP"),
        ("err200", ErrorKind.UPSTREAM, "HTTP 502"),
        ("errsse", ErrorKind.UPSTREAM, "HTTP 502"),
        ("empty", ErrorKind.UPSTREAM, "finished with no text"),
        ("empty+json", ErrorKind.UPSTREAM, "finished with no text"),
        ("empty+filter", ErrorKind.CONTENT_FILTER, "content filter"),
        ("empty+nofinish", ErrorKind.UPSTREAM, "before the answer was finished"),
    ],
)
async def test_a_failure_before_the_first_text_has_its_kind(
    upstream: FakeUpstream, scenario: str, kind: ErrorKind, words: str
) -> None:
    provider = provider_at(upstream.url(scenario), {"DESK_KEY": KEY}, models=["stub"], api_key_env="DESK_KEY")
    async with provider.running():
        events, error = await fail(provider)
    assert events == []
    assert error.kind is kind
    assert words in error.message
    assert KEY not in str(error)


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("cut", "closed the connection"),
        ("reset", "closed the connection"),
        ("errmid", "error in mid-stream"),
        ("malformed", "not a chat completion chunk"),
        ("nofinish", "before the answer was finished"),
    ],
)
async def test_a_failure_after_text_is_an_interruption_and_the_text_was_given(
    upstream: FakeUpstream, scenario: str, words: str
) -> None:
    async with desk(upstream, scenario) as provider:
        events, error = await fail(provider)
    assert text_of(events) == (REPLY if scenario == "nofinish" else "ECHO<one two ")
    assert error.kind is ErrorKind.INTERRUPTED
    assert words in error.message


@pytest.mark.parametrize(("scenario", "least", "most"), [("s429ra", 1, 1), ("s429date", 25, 30)])
async def test_a_rate_limit_says_when_to_come_back(
    upstream: FakeUpstream, scenario: str, least: float, most: float
) -> None:
    async with desk(upstream, scenario) as provider:
        _, error = await fail(provider)
    assert error.retry_after is not None
    assert least <= error.retry_after <= most


async def test_nobody_listening_is_a_connection_failure_that_names_the_address() -> None:
    async with FakeUpstream() as gone:
        url = gone.url()
    provider = provider_at(url, models=["stub"])
    async with provider.running():
        _, error = await fail(provider)
        status = await provider.probe()
    assert error.kind is ErrorKind.CONNECTION
    assert url in error.message
    assert "is the server running?" in error.message
    assert not status.ready
    assert "is the server running?" in status.reason


async def test_an_error_that_quotes_the_prompt_is_not_repeated(upstream: FakeUpstream) -> None:
    async with desk(upstream, "s400echo") as provider:
        _, error = await fail(provider, GenerateRequest.of("a very private question indeed"))
    assert error.kind is ErrorKind.BAD_REQUEST
    assert "private" not in str(error)


async def test_what_it_cannot_do_is_refused_before_anything_is_sent(upstream: FakeUpstream) -> None:
    async with desk(upstream) as provider:
        assert (await fail(provider, msgspec.structs.replace(ASK, n=2)))[1].kind is ErrorKind.BAD_REQUEST
        assert (await fail(provider, msgspec.structs.replace(ASK, prefix="EC")))[1].kind is ErrorKind.UNAVAILABLE
    assert upstream.count == 0


async def test_a_missing_key_says_which_variable_and_sends_nothing(upstream: FakeUpstream) -> None:
    async with desk(upstream, api_key_env="DESK_KEY") as provider:
        _, error = await fail(provider)
        status = await provider.probe()
    assert error.kind is ErrorKind.UNAVAILABLE
    assert "set DESK_KEY" in error.message
    assert status.reason == "no key; set DESK_KEY"
    assert upstream.count == 0


# -- leaving


@pytest.mark.parametrize("scenario", ["hang", "stall", "slow50"])
async def test_leaving_closes_the_connection_at_once(upstream: FakeUpstream, scenario: str) -> None:
    async with desk(upstream, scenario) as provider:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, provider)
            await upstream.until(count=1)
            nursery.cancel_scope.cancel()
        await upstream.until(disconnects=1, idle=True, within=2)


async def test_leaving_in_the_middle_of_an_answer_closes_the_connection(upstream: FakeUpstream) -> None:
    async with desk(upstream, "hold") as provider:
        async with provider.generate(ASK) as events:
            assert await anext(events) == TextDelta("ECHO<one ")
        upstream.release()
        await upstream.until(idle=True)
        assert text_of(await collect(provider)) == REPLY
    assert upstream.connections == 2


async def test_a_tail_that_never_comes_does_not_hold_a_whole_answer_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_stream, "_TAIL_S", 0.05)

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        chunk = {"choices": [{"index": 0, "delta": {"content": "cold"}, "finish_reason": "stop"}]}
        event = b"data: %b\n\n" % json.dumps(chunk).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"%x\r\n%b\r\n" % (len(event), event))
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        provider = provider_at(f"http://127.0.0.1:{port}/v1", models=["stub"])
        async with provider.running():
            assert await collect(provider) == [TextDelta("cold"), Finish("stop")]
        nursery.cancel_scope.cancel()


# -- one at a time


async def test_requests_beyond_the_limit_wait_and_beyond_the_queue_are_refused(upstream: FakeUpstream) -> None:
    async with desk(upstream, "hold", max_concurrent=2, max_queue=1) as provider, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(collect, provider)
        await upstream.until(count=2)
        nursery.start_soon(collect, provider)
        await trio.testing.wait_all_tasks_blocked()
        _, error = await fail(provider)
        assert error.kind is ErrorKind.OVERLOADED
        assert "desk works on 2 requests and 1 more wait" in error.message
        assert upstream.count == 2
        upstream.release()
    assert len(upstream.chats) == 3


# -- probes


async def test_the_probe_lists_models_with_their_context_lengths_and_spends_no_request(upstream: FakeUpstream) -> None:
    async with desk(upstream, models=[]) as provider:
        status = await provider.probe()
    assert status.ready
    assert [(m.name, m.context_length) for m in status.models] == [("stub", 8192), ("stub-2", 8192), ("echo", 8192)]
    assert status.default_model == "stub"
    assert status.offers("stub-2")
    assert not status.offers("other")
    assert upstream.chats == []


async def test_configured_models_narrow_the_list_and_the_servers_lengths_win(upstream: FakeUpstream) -> None:
    async with desk(upstream, models=["own", "stub"], context_length=100) as provider:
        status = await provider.probe()
    assert [(m.name, m.context_length) for m in status.models] == [("own", 100), ("stub", 8192)]
    assert status.default_model == "own"


async def test_a_server_without_a_list_is_ready_when_the_models_are_named(upstream: FakeUpstream) -> None:
    async with desk(upstream, "s404", models=["own"]) as provider:
        assert [m.name for m in (await provider.probe()).models] == ["own"]
    async with desk(upstream, "s404", models=[]) as provider:
        assert not (await provider.probe()).ready


async def test_a_server_that_is_away_names_its_models_so_that_who_asks_for_one_is_told_why() -> None:
    provider = provider_at("http://127.0.0.1:1/v1", models=["own"])
    async with provider.running():
        status = await provider.probe()
    assert (status.ready, [m.name for m in status.models]) == (False, ["own"])
    assert not status.offers("own")


async def test_a_refused_key_shows_in_the_probe(upstream: FakeUpstream) -> None:
    provider = provider_at(upstream.url("s401"), {"DESK_KEY": KEY}, api_key_env="DESK_KEY")
    async with provider.running():
        status = await provider.probe()
    assert not status.ready
    assert "check DESK_KEY" in status.reason


async def test_a_server_that_does_not_answer_the_probe_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, lambda stream: trio.sleep_forever(), 0)
        port = listeners[0].socket.getsockname()[1]
        provider = provider_at(f"http://127.0.0.1:{port}/v1", probe_timeout_s=0.05)
        async with provider.running():
            status = await provider.probe()
        nursery.cancel_scope.cancel()
    assert "did not answer within 0.05 s" in status.reason


async def test_one_list_serves_all_who_ask_at_once_and_for_a_while(upstream: FakeUpstream) -> None:
    async with desk(upstream, models=[]) as provider:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(provider.probe)
        await provider.probe()
        assert text_of(await collect(provider)) == REPLY
    assert [r.path for r in upstream.requests] == ["/v1/models", "/v1/chat/completions"]


async def test_a_list_that_is_too_old_is_renewed_behind_the_request(upstream: FakeUpstream) -> None:
    async with desk(upstream, models=[], models_ttl_s=0.000001) as provider:
        first = await provider.probe()
        assert await provider.probe() is first
        await upstream.until(count=2, idle=True)


async def test_the_first_model_of_the_list_answers_a_request_that_names_none(upstream: FakeUpstream) -> None:
    async with desk(upstream, models=[]) as provider:
        await collect(provider)
    assert upstream.chats[0].body["model"] == "stub"


def test_nothing_shows_the_key() -> None:
    provider = provider_at("http://127.0.0.1:9/v1", {"DESK_KEY": KEY}, api_key_env="DESK_KEY")
    assert isinstance(provider, openai_compat.OpenAiCompat)
    assert KEY not in repr(vars(provider))
