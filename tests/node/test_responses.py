"""OpenAI's `/v1/responses`, asked by OpenAI's own package and by hand."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from shoal.providers.base import ErrorKind, Finish, ImagePart, Logprobs, Message, ReasoningDelta, ToolCallDelta, Usage

from .fakes_router import Pause, Scripted, fails, says
from .fakes_rpc import door
from .test_openai_shape import with_client

TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
CALLS = [
    ReasoningDelta("Hm."),
    "Let me see.",
    ToolCallDelta(0, "c1", "weather", '{"city"'),
    ToolCallDelta(1, "c2", "weather", ""),
    ToolCallDelta(0, arguments=':"Oslo"}'),
    Usage(20, 9, cached_tokens=5, reasoning_tokens=3),
    Finish("tool_calls"),
]


async def test_a_whole_response() -> None:
    provider = Scripted("first", says("Cold.", model="m1", usage=Usage(7, 2)))
    async with door(provider) as rpc:
        found = await with_client(
            rpc, lambda c: c.responses.create(model="m1", input="Hot?", instructions="Be brief.", max_output_tokens=20)
        )
    assert found.output_text == "Cold."
    assert (found.status, found.model, found.usage.total_tokens) == ("completed", "m1", 9)
    assert found.shoal["provider"] == "first"
    request = provider.calls[0]
    assert request.messages == (Message("system", "Be brief."), Message("user", "Hot?"))
    assert request.max_tokens == 20


async def test_openais_streaming_helper_puts_the_response_together() -> None:
    def work(client: openai.OpenAI) -> Any:
        with client.responses.stream(model="m1", input="Weather?", tools=[TOOL]) as stream:
            kinds = [event.type for event in stream]
            return kinds, stream.get_final_response()

    async with door(Scripted("first", CALLS)) as rpc:
        kinds, found = await with_client(rpc, work)
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    thought, message, first, second = found.output
    assert thought.content[0].text == "Hm."
    assert message.content[0].text == "Let me see."
    assert (first.call_id, first.arguments) == ("c1", '{"city":"Oslo"}')
    assert (second.call_id, second.arguments) == ("c2", "")
    assert found.usage.input_tokens_details.cached_tokens == 5
    assert found.usage.output_tokens_details.reasoning_tokens == 3


async def test_the_events_of_a_stream_are_numbered_and_each_item_is_opened_and_closed() -> None:
    async with door(Scripted("first", CALLS)) as rpc:
        reply = await rpc.ask("POST", "/v1/responses", {"model": "m1", "input": "x", "stream": True, "tools": [TOOL]})
    events = [json.loads(block.split("\ndata: ")[1]) for block in reply.body.decode().split("\n\n") if block]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    added = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
    done = [e["output_index"] for e in events if e["type"] == "response.output_item.done"]
    assert added == sorted(done) == [0, 1, 2, 3]
    assert [e["item"] for e in events if e["type"] == "response.output_item.done"] == events[-1]["response"]["output"]


async def test_a_conversation_with_tools_reaches_the_provider() -> None:
    provider = Scripted("first", says("It rains."))
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
    ]
    body = {
        "model": "m1",
        "input": items,
        "tools": [TOOL, {"type": "web_search"}],
        "tool_choice": "required",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "parallel_tool_calls": False,
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    async with door(provider) as rpc:
        reply = await rpc.ask("POST", "/v1/responses", body)
    assert reply.status == 200
    request = provider.calls[0]
    assert [m.role for m in request.messages] == ["developer", "user", "assistant", "tool", "tool", "user"]
    assert [call.id for call in request.messages[2].tool_calls] == ["c1", "c2"]
    assert [m.content for m in request.messages[3:5]] == ["rain", "sun"]
    assert isinstance((request.messages[5].content or ())[0], ImagePart)
    assert [tool["function"]["name"] for tool in request.tools] == ["weather"]
    assert request.tool_choice == "required"
    assert request.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
    }
    assert request.extra == {"parallel_tool_calls": False, "reasoning_effort": "low"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_custom_tool_takes_free_text_and_its_call_comes_back_as_one(stream: bool) -> None:
    custom = {"type": "custom", "name": "apply_patch", "description": "Patch.", "format": {"definition": "start: x"}}
    script = [ToolCallDelta(0, "c1", "apply_patch", '{"input": "*** Begin'), ToolCallDelta(0, arguments=' Patch"}')]
    provider = Scripted("first", [*script, Finish("tool_calls")])
    items = [
        {"type": "custom_tool_call", "call_id": "c0", "name": "apply_patch", "input": "one"},
        {"type": "custom_tool_call_output", "call_id": "c0", "output": "done"},
    ]

    def work(client: openai.OpenAI) -> Any:
        asked: Any = {"model": "m1", "input": items, "tools": [custom]}
        if stream:
            return list(client.responses.create(**asked, stream=True))[-1].response
        return client.responses.create(**asked)

    async with door(provider) as rpc:
        found = await with_client(rpc, work)
    call = found.output[0]
    assert (call.type, call.call_id, call.input) == ("custom_tool_call", "c1", "*** Begin Patch")
    request = provider.calls[0]
    assert request.messages[0].tool_calls[0].function.arguments == '{"input":"one"}'
    assert "start: x" in request.tools[0]["function"]["description"]


async def test_an_answer_that_was_cut_is_incomplete() -> None:
    async with door(Scripted("first", ["Co", Finish("length")])) as rpc:
        found = await with_client(rpc, lambda c: c.responses.create(model="m1", input="Hot?"))
    assert found.status == "incomplete"
    assert found.incomplete_details.reason == "max_output_tokens"


async def test_a_stream_that_breaks_off_ends_with_a_failed_response() -> None:
    script = ["Co", Pause(0.05), *fails(ErrorKind.CONNECTION, "reset")]
    async with door(Scripted("first", script)) as rpc:
        events = await with_client(rpc, lambda c: list(c.responses.create(model="m1", input="Hot?", stream=True)))
    assert events[-1].type == "response.failed"
    assert "reset" in events[-1].response.error.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].arguments"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        reply = await rpc.ask("POST", "/v1/responses", body)
    assert (reply.status, reply.error["param"]) == (400, param)


async def test_nothing_is_stored() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        with pytest.raises(openai.NotFoundError, match="stores no responses"):
            await with_client(rpc, lambda c: c.responses.retrieve("resp_1"))


async def test_tools_are_told_as_openai_tells_them() -> None:
    tools = [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "look"}]}]
    async with door(Scripted("first", says("Cold."))) as rpc:
        reply = await rpc.ask("POST", "/v1/responses", {"model": "m1", "input": "Hot?", "tools": tools})
    assert reply.json["tools"] == [{"type": "function", "name": "look", "parameters": None, "strict": None}]


TOKENS = [
    {
        "token": "Co",
        "logprob": -0.5,
        "bytes": [67, 111],
        "top_logprobs": [{"token": "Hi", "logprob": -2.0, "bytes": None}],
    },
    {"token": "ld", "logprob": -0.25, "bytes": None, "top_logprobs": []},
]
TOLD = [
    {"token": "Co", "logprob": -0.5, "bytes": [67, 111]},
    {"token": "ld", "logprob": -0.25, "bytes": [108, 100], "top_logprobs": []},
]
TOLD[0]["top_logprobs"] = [{"token": "Hi", "logprob": -2.0, "bytes": [72, 105]}]
LIKELY = ["Co", Logprobs((TOKENS[0],)), "ld", Logprobs((TOKENS[1],)), Usage(7, 2), Finish("stop")]
ASKED: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}


async def test_log_probabilities_of_a_whole_response() -> None:
    provider = Scripted("first", LIKELY)
    async with door(provider) as rpc:
        found = await with_client(rpc, lambda c: c.responses.create(model="m1", input="Hot?", **ASKED))
        plain = await with_client(rpc, lambda c: c.responses.create(model="m1", input="Cold?", include=[]))
    assert [token.model_dump() for token in found.output[0].content[0].logprobs] == TOLD
    assert found.top_logprobs == 1
    assert [call.extra for call in provider.calls] == [{"logprobs": True, "top_logprobs": 1}, {}]
    assert plain.output_text == "Cold"


async def test_log_probabilities_of_a_streamed_response_stand_beside_their_text() -> None:
    def work(client: openai.OpenAI) -> Any:
        return list(client.responses.create(model="m1", input="Hot?", stream=True, **ASKED))

    async with door(Scripted("first", LIKELY)) as rpc:
        events = await with_client(rpc, work)
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    told = [(token.token, token.logprob) for event in deltas for token in event.logprobs]
    assert "".join(event.delta for event in deltas) == "Cold"
    assert told == [("Co", -0.5), ("ld", -0.25)]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [token.token for token in done.logprobs] == ["Co", "ld"]
    assert done.logprobs[0].top_logprobs[0].token == "Hi"
    (part,) = [event for event in events if event.type == "response.content_part.done"]
    assert [token.model_dump() for token in part.part.logprobs] == TOLD
    assert [token.model_dump() for token in events[-1].response.output[0].content[0].logprobs] == TOLD


async def test_more_than_twenty_likely_tokens_are_refused_by_name() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        reply = await rpc.ask("POST", "/v1/responses", {"model": "m1", "input": "x", "top_logprobs": 21})
    assert (reply.status, reply.error["param"]) == (400, "top_logprobs")
