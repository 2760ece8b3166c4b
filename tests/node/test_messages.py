"""Anthropic's `/v1/messages`: requests as they are sent, answers as its clients read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from shoal.node.rpc import messages
from shoal.node.rpc.token_estimate import of_text
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, ImagePart, ReasoningDelta, ToolCallDelta, Usage

from .fakes_router import STOP, Pause, Scripted, fails, says
from .fakes_rpc import Door, Reply, door

TOOL = {"name": "weather", "description": "The weather.", "input_schema": {"type": "object"}}
CALLS = [
    "Let me see.",
    ToolCallDelta(0, "c1", "weather", '{"city"'),
    ToolCallDelta(0, arguments=':"Oslo"}'),
    ToolCallDelta(1, "c2", "weather", ""),
    Usage(20, 9, cached_tokens=5),
    Finish("tool_calls"),
]


async def ask(rpc: Door, **body: Any) -> Reply:
    whole = {"model": "m1", "max_tokens": 100, "messages": [{"role": "user", "content": "Hot?"}], **body}
    return await rpc.ask("POST", "/v1/messages", whole, {"anthropic-version": "2023-06-01", "x-api-key": "none"})


def events_of(reply: Reply) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of each event; the two must agree."""
    found = []
    for block in reply.body.decode().split("\n\n"):
        if block:
            event, data = block.split("\n")
            found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(event == data["type"] for event, data in found)
    return found


async def test_a_whole_message() -> None:
    async with door(Scripted("first", [ReasoningDelta("Hm."), *says("Cold.", model="m1", usage=Usage(9, 2))])) as rpc:
        reply = await ask(rpc)
    body = reply.json
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "m1")
    assert body["id"].startswith("msg_")
    thought, text = body["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "Hm.")
    assert text == {"type": "text", "text": "Cold."}
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (9, 2)
    assert reply.headers["x-shoal-provider"] == "first"
    assert body["shoal"]["provider"] == "first"


async def test_a_stream_opens_and_closes_each_block_in_turn() -> None:
    async with door(Scripted("first", CALLS)) as rpc:
        events = events_of(await ask(rpc, stream=True, tools=[TOOL]))
    assert [event for event, _ in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_stop"),
        "message_delta",
        "message_stop",
    ]
    starts = [data for event, data in events if event == "content_block_start"]
    assert [start["index"] for start in starts] == [0, 1, 2]
    assert starts[1]["content_block"] == {"type": "tool_use", "id": "c1", "name": "weather", "input": {}}
    pieces = [
        data["delta"]["partial_json"] for _, data in events if data.get("delta", {}).get("type") == "input_json_delta"
    ]
    assert json.loads("".join(pieces)) == {"city": "Oslo"}
    last = dict(events)["message_delta"]
    assert last["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert (last["usage"]["input_tokens"], last["usage"]["cache_read_input_tokens"]) == (15, 5)


async def test_tool_calls_are_blocks_with_their_input() -> None:
    async with door(Scripted("first", CALLS)) as rpc:
        body = (await ask(rpc, tools=[TOOL])).json
    assert body["content"][1] == {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}}
    assert body["content"][2]["input"] == {}
    assert body["stop_reason"] == "tool_use"


async def test_a_conversation_with_tools_reaches_the_provider_in_its_own_words() -> None:
    provider = Scripted("first", says("It rains."))
    async with door(provider) as rpc:
        reply = await ask(
            rpc,
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "x"},
                        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]},
                        {"type": "text", "text": "Well?"},
                    ],
                },
            ],
            tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            stop_sequences=["END"],
            top_k=5,
            temperature=0.5,
            metadata={"user_id": "u"},
            thinking={"type": "enabled", "budget_tokens": 1024},
        )
    assert reply.status == 200
    request = provider.calls[0]
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "Be brief."),
        ("user", "Weather?"),
        ("assistant", None),
        ("tool", "rain"),
        ("user", "Well?"),
    ]
    assert request.messages[2].tool_calls[0].function.arguments == '{"city":"Oslo"}'
    assert request.messages[3].tool_call_id == "c1"
    assert [tool["function"]["name"] for tool in request.tools] == ["weather"], "hosted tools are not here"
    assert request.tool_choice == "required"
    assert (request.stop, request.max_tokens, request.temperature) == (("END",), 100, 0.5)
    assert request.extra == {"top_k": 5, "parallel_tool_calls": False}


async def test_images_come_as_data_or_by_address() -> None:
    provider = Scripted("first", says("A cat."))
    sources = [{"type": "base64", "media_type": "image/png", "data": "AAAA"}, {"type": "url", "url": "https://x/y.png"}]
    content = [{"type": "image", "source": source} for source in sources]
    async with door(provider) as rpc:
        assert (await ask(rpc, messages=[{"role": "user", "content": content}])).status == 200
    parts = provider.calls[0].messages[0].content
    assert isinstance(parts, tuple)
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    assert urls == ["data:image/png;base64,AAAA", "https://x/y.png"]


async def test_a_json_schema_for_the_answer_is_a_response_format() -> None:
    provider = Scripted("first", says("{}"))
    async with door(provider) as rpc:
        await ask(rpc, output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}})
    form = provider.calls[0].response_format
    assert form is not None
    assert form["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": None},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]},
        {"temperature": 2},
        {"tools": [{"description": "nameless"}]},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}},
        {"tool_choice": {"type": "any"}},
        {"output_config": {"format": {"type": "xml"}}},
    ],
)
async def test_what_cannot_be_understood_is_anthropics_error(body: dict[str, Any]) -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        reply = await ask(rpc, **body)
    assert reply.status == 400
    assert (reply.json["type"], reply.json["error"]["type"]) == ("error", "invalid_request_error")


async def test_failures_have_anthropics_names() -> None:
    async with door(Scripted("first", fails(ErrorKind.RATE_LIMITED, "slow down", retry_after=90))) as rpc:
        nobody = await ask(rpc, model="claude-none")
        limited = await ask(rpc)
        count = await rpc.ask("POST", "/v1/messages/count_tokens", {"model": "m1", "messages": []})
        assert count.json["error"]["type"] == "invalid_request_error"
        other = await rpc.ask("POST", "/v1/messages/batches", {})
        broken = await rpc.ask("POST", "/v1/messages", b"{")
    assert (nobody.status, nobody.json["error"]["type"]) == (404, "not_found_error")
    assert (limited.status, limited.json["error"]["type"]) == (429, "rate_limit_error")
    assert int(limited.headers["retry-after"]) >= 1
    assert (count.status, other.status, broken.status) == (400, 404, 400)
    assert other.json["error"]["type"] == "not_found_error"


async def test_a_stream_that_breaks_off_ends_with_an_error_event_and_no_stop() -> None:
    script = ["Co", Pause(0.05), *fails(ErrorKind.CONNECTION, "reset")]
    async with door(Scripted("first", script), keep_alive_s=0.02) as rpc:
        events = events_of(await ask(rpc, stream=True))
    names = [event for event, _ in events]
    assert "ping" in names
    assert names[-1] == "error"
    assert "message_stop" not in names


async def test_an_answer_from_the_cache_is_a_message_too() -> None:
    provider = Scripted("first", ["Cold.", STOP])
    async with door(provider) as rpc:
        await rpc.chat(model="m1", max_tokens=100, messages=[{"role": "user", "content": "Hot?"}])
        reply = await ask(rpc)
    assert reply.json["content"][0]["text"] == "Cold."
    assert reply.headers["x-shoal-cache"] == "memory"
    assert len(provider.calls) == 1


async def test_tokens_are_estimated_and_the_answer_says_so() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20  # 200 tokens in cl100k
    tool = {"name": "look", "description": "Look around.", "input_schema": {"type": "object"}}
    body = {"model": "m1", "system": "Be brief.", "messages": [{"role": "user", "content": text}]}
    provider = Scripted("first", says("x"))
    async with door(provider) as rpc:
        plain = await rpc.ask("POST", "/v1/messages/count_tokens", body)
        tooled = await rpc.ask("POST", "/v1/messages/count_tokens?beta=true", {**body, "tools": [tool]})
    assert plain.json == {"input_tokens": plain.json["input_tokens"], "shoal": {"estimated": True}}
    assert plain.headers["x-shoal-estimated"] == "input_tokens"
    assert 170 < plain.json["input_tokens"] < 260
    assert 10 < tooled.json["input_tokens"] - plain.json["input_tokens"] < 60
    assert not provider.calls, "nobody is asked"


class Counter(Scripted):
    """A provider that knows its tokenizer."""

    tokens: int | None = 17

    async def count(self, request: GenerateRequest) -> int | None:
        assert request.messages[-1].text == "Hot?"
        return self.tokens


async def test_tokens_are_counted_by_who_would_be_asked_first() -> None:
    body = {"model": "m1", "messages": [{"role": "user", "content": "Hot?"}]}
    provider = Counter("first", says("x"))
    async with door(provider, Scripted("second", says("x"))) as rpc:
        exact = await rpc.ask("POST", "/v1/messages/count_tokens", body)
        provider.tokens = None
        estimated = await rpc.ask("POST", "/v1/messages/count_tokens", body)
    assert exact.json == {"input_tokens": 17, "shoal": {"estimated": False}}
    assert "x-shoal-estimated" not in exact.headers
    assert estimated.json["shoal"] == {"estimated": True}
    assert not provider.calls, "nobody is asked"


async def test_who_counts_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "COUNT_S", 0.05)

    class Slow(Counter):
        async def count(self, request: GenerateRequest) -> int | None:
            await trio.sleep_forever()

    body = {"model": "m1", "messages": [{"role": "user", "content": "Hot?"}]}
    async with door(Slow("first", says("x"))) as rpc:
        reply = await rpc.ask("POST", "/v1/messages/count_tokens", body)
    assert reply.json["shoal"] == {"estimated": True}


def test_the_estimate_knows_other_scripts() -> None:
    russian, chinese = "Сегодня прекрасная погода, давайте гулять", "今天的天气非常好我们一起去公园散步"
    assert 18 <= of_text(russian) <= 26, "cl100k: 22"
    assert 16 <= of_text(chinese) <= 24
    assert of_text("") == 0
