"""Chat completions over real HTTP: the whole answer, the stream, and what each says of where it came from."""

from __future__ import annotations

import json

import pytest
import trio
from shoal.node.routing.limits import RoutingLimits
from shoal.providers.base import ErrorKind, Finish, ReasoningDelta, ToolCallDelta, Usage

from .fakes_router import ME, STOP, Pause, Scripted, Wait, fails, says
from .fakes_rpc import door


def text_of(events: list) -> str:
    choices = [c for e in events if e != "[DONE]" for c in e.get("choices", ())]
    return "".join(c["delta"].get("content") or "" for c in choices)


async def test_a_whole_answer_has_openais_shape_and_says_who_gave_it() -> None:
    async with door(Scripted("first", says("Co", "ld.", model="m1", usage=Usage(7, 2)))) as rpc:
        reply = await rpc.chat(temperature=0)
        assert reply.status == 200
        body = reply.json
        assert body["object"] == "chat.completion"
        assert body["id"].startswith("chatcmpl-")
        assert body["model"] == "m1"
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Cold.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert body["usage"]["total_tokens"] == 9
        assert reply.headers["x-shoal-provider"] == "first"
        assert reply.headers["x-shoal-peer"] == "local"
        assert reply.headers["x-shoal-cache"] == "miss"
        assert reply.headers["x-shoal-route"].startswith("first;ok;")
        assert reply.headers["x-shoal-cid"] == body["shoal"]["cid"]
        assert body["shoal"]["route"][0]["provider"] == "first"
        assert rpc.cache.peek(rpc.cache.key(rpc.router.ask(_request(0)).request)) is not None  # type: ignore[arg-type]


def _request(temperature: float):  # type: ignore[no-untyped-def]
    from shoal.providers.base import GenerateRequest

    return GenerateRequest.of("What is the opposite of hot?", temperature=temperature)


async def test_a_second_question_is_answered_from_memory() -> None:
    provider = Scripted("first", says("Cold.", model="m1", usage=Usage(7, 2)))
    async with door(provider) as rpc:
        made, found = await rpc.chat(), await rpc.chat()
        streamed = await rpc.chat(stream=True, stream_options={"include_usage": True})
    assert len(provider.calls) == 1
    assert found.headers["x-shoal-cache"] == "memory"
    assert found.headers["x-shoal-cid"] == made.headers["x-shoal-cid"] == streamed.headers["x-shoal-cid"]
    assert found.json["choices"] == made.json["choices"]
    for hit, tier in ((found, "memory"), (streamed, "memory")):
        assert hit.headers["x-shoal-route"] == f"cache:{tier};hit;0"
        assert {"x-shoal-provider", "x-shoal-peer", "x-shoal-cache"} <= hit.headers.keys()
    assert found.json["shoal"]["route"] == [{"provider": "cache:memory", "outcome": "hit"}]
    assert found.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 7
    assert found.json["id"] != made.json["id"]
    assert text_of(streamed.events) == "Cold."
    assert streamed.events[-2]["usage"]["total_tokens"] == 9


async def test_a_stream_has_role_text_finish_and_done() -> None:
    async with door(Scripted("first", says("Co", "ld.", model="m1"))) as rpc:
        reply = await rpc.chat(stream=True)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-shoal-provider"] == "first"
    events = reply.events
    assert events[-1] == "[DONE]"
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [e["choices"][0]["delta"].get("content") for e in events[1:3]] == ["Co", "ld."]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["shoal"]["cid"].startswith("bafy")
    assert len({e["id"] for e in events[:-1]}) == 1
    assert all("usage" not in e for e in events[:-1]), "nobody asked for it"


async def test_usage_is_a_chunk_of_its_own_when_it_was_asked_for() -> None:
    async with door(Scripted("first", says("Cold.", usage=Usage(7, 2, reasoning_tokens=1)))) as rpc:
        reply = await rpc.chat(stream=True, stream_options={"include_usage": True})
    *deltas, last, done = reply.events
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}
    assert "shoal" in last
    assert all(e["usage"] is None for e in deltas)


async def test_text_arrives_as_it_is_written() -> None:
    go_on = trio.Event()
    async with door(Scripted("first", ["Co", Wait(go_on), "ld.", STOP])) as rpc, await rpc.open() as stream:
        body = json.dumps({"messages": [{"role": "user", "content": "Hot?"}], "stream": True}).encode()
        await stream.send_all(rpc.head("POST", "/v1/chat/completions", {}, body))
        data = b""
        with trio.fail_after(5):
            while b'"Co"' not in data:
                data += await stream.receive_some(65536)
            assert b"ld." not in data
            go_on.set()
            while b"[DONE]" not in data:
                data += await stream.receive_some(65536)


async def test_a_client_that_leaves_cancels_the_work() -> None:
    never = trio.Event()
    provider = Scripted("first", ["Co", Wait(never)])
    async with door(provider) as rpc:
        stream = await rpc.open()
        body = json.dumps({"messages": [{"role": "user", "content": "Hot?"}], "stream": True}).encode()
        await stream.send_all(rpc.head("POST", "/v1/chat/completions", {}, body))
        with trio.fail_after(5):
            await stream.receive_some(65536)
            assert provider.open == 1
            await stream.aclose()
            while provider.open:
                await trio.sleep(0.001)
    assert provider.cancelled == 1


async def test_a_stream_that_breaks_ends_with_an_error_event_and_without_done() -> None:
    async with door(Scripted("first", ["Co", *fails(ErrorKind.CONNECTION, "reset")])) as rpc:
        reply = await rpc.chat(stream=True)
    assert reply.status == 200
    assert text_of(reply.events) == "Co"
    error = reply.events[-1]["error"]
    assert error["code"] == "interrupted"
    assert "first broke off: reset" in error["message"]


async def test_a_whole_answer_that_breaks_is_an_error_with_its_status() -> None:
    async with door(Scripted("first", ["Co", *fails(ErrorKind.CONNECTION, "reset")])) as rpc:
        reply = await rpc.chat()
    assert (reply.status, reply.error["code"]) == (502, "upstream_unreachable")
    assert reply.headers["x-shoal-route"].startswith("first;interrupted;")


async def test_a_whole_answer_that_breaks_once_is_made_anew() -> None:
    async with door(Scripted("first", ["Co", *fails(ErrorKind.CONNECTION, "reset")], says("Hot."))) as rpc:
        reply = await rpc.chat()
    assert (reply.status, reply.json["choices"][0]["message"]["content"]) == (200, "Hot.")


async def test_a_failure_before_the_first_token_has_a_status_even_when_a_stream_was_asked_for() -> None:
    async with door(Scripted("first", fails(ErrorKind.QUOTA, "empty"))) as rpc:
        reply = await rpc.chat(stream=True)
    assert (reply.status, reply.error["type"], reply.error["code"]) == (429, "insufficient_quota", "insufficient_quota")
    assert reply.headers["x-should-retry"] == "false"


async def test_a_rate_limit_comes_with_the_time_to_wait() -> None:
    async with door(Scripted("first", fails(ErrorKind.RATE_LIMITED, retry_after=70.2))) as rpc:
        reply = await rpc.chat()
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert reply.headers["retry-after"] == "71"


async def test_an_unknown_model_is_404_as_clients_know_it() -> None:
    async with door(Scripted("first", says("Cold."))) as rpc:
        reply = await rpc.chat(model="gpt-99")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


async def test_a_silent_stream_gets_comments_and_then_its_text() -> None:
    provider = Scripted("first", [Pause(0.2), "Cold.", STOP])
    async with door(provider, keep_alive_s=0.05) as rpc:
        reply = await rpc.chat(stream=True)
    assert reply.body.startswith(b": keep-alive\n\n")
    assert text_of(reply.events) == "Cold."


async def test_an_error_after_comments_is_an_event() -> None:
    provider = Scripted("first", [Pause(0.2), *fails(ErrorKind.AUTH, "no key")])
    async with door(provider, keep_alive_s=0.05) as rpc:
        reply = await rpc.chat(stream=True)
    assert reply.status == 200
    assert reply.events[-1]["error"]["message"] == "no key"


async def test_a_timeout_in_the_header_or_the_body_ends_the_request() -> None:
    never = trio.Event()
    async with door(Scripted("first", [Wait(never)])) as rpc:
        for reply in (await rpc.chat({"x-shoal-timeout-ms": "30"}), await rpc.chat(timeout=0.03)):
            assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")


async def test_a_provider_can_be_pinned_in_the_body_or_by_a_header() -> None:
    first, second = Scripted("first", says("Cold.")), Scripted("second", says("Icy."))
    async with door(first, second) as rpc:
        assert (await rpc.chat(provider="second")).headers["x-shoal-provider"] == "second"
        assert (await rpc.chat({"x-shoal-provider": "second"})).headers["x-shoal-cache"] == "memory"
        missing = await rpc.chat(provider="third")
    assert (missing.status, missing.error["code"], missing.error["param"]) == (404, "provider_not_found", "provider")
    assert first.calls == []


async def test_fallback_can_be_forbidden() -> None:
    async with door(Scripted("first", fails(ErrorKind.AUTH, "no key")), Scripted("second", says("Icy."))) as rpc:
        assert (await rpc.chat(fallback=False)).status == 502
        assert (await rpc.chat()).status == 200


@pytest.mark.parametrize("name", ["auto", ""])
async def test_a_client_that_must_name_a_model_can_leave_the_choice_to_the_node(name: str) -> None:
    provider = Scripted("first", says("Cold."))
    async with door(provider) as rpc:
        reply = await rpc.chat(model=name)
    assert reply.json["model"] == "m1"
    assert provider.calls[0].model == "m1"


async def test_cache_control_is_obeyed() -> None:
    provider = Scripted("first", says("Cold."))
    async with door(provider) as rpc:
        only = await rpc.chat({"cache-control": "only-if-cached"})
        assert (only.status, only.error["code"]) == (504, "not_cached")
        assert (await rpc.chat({"cache-control": "no-store"})).headers["x-shoal-cache"] == "bypass"
        assert (await rpc.chat()).headers["x-shoal-cache"] == "miss"
        assert (await rpc.chat({"cache-control": "no-cache"})).headers["x-shoal-cache"] == "miss"
        assert (await rpc.chat({"cache-control": "only-if-cached"})).headers["x-shoal-cache"] == "memory"
    assert len(provider.calls) == 3


async def test_tool_calls_and_reasoning_are_passed_on_whole_and_streamed() -> None:
    script = [
        ReasoningDelta("hm"),
        ToolCallDelta(0, "c1", "weather", '{"city"'),
        ToolCallDelta(0, arguments=':"Rome"}'),
        Finish("tool_calls"),
    ]
    async with door(Scripted("first", script)) as rpc:
        tools = [{"type": "function", "function": {"name": "weather"}}]
        whole, streamed = await rpc.chat(tools=tools), await rpc.chat(tools=tools, stream=True)
    message = whole.json["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    ]
    pieces = [
        c["delta"]["tool_calls"][0] for e in streamed.events[:-1] for c in e["choices"] if "tool_calls" in c["delta"]
    ]
    assert pieces[0] == {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city"'},
    }
    assert pieces[1] == {"index": 0, "function": {"arguments": ':"Rome"}'}}


async def test_names_from_upstream_cannot_break_out_of_a_header() -> None:
    evil = Scripted("first\r\nx-evil: 1", says("Cold.", model="m\r\nx: 1"))
    async with door(evil) as rpc:
        reply = await rpc.chat()
    assert reply.status == 200
    assert "x-evil" not in reply.headers
    assert reply.headers["x-shoal-provider"] == "first__x-evil:_1"


async def test_text_of_any_script_survives() -> None:
    words = ["Größe ", "日本 ", "👩‍👩‍👧", '"\\\n\x00']
    async with door(Scripted("first", says(*words))) as rpc:
        reply = await rpc.chat(stream=True)
        assert text_of(reply.events) == "".join(words)
        assert (await rpc.chat()).json["choices"][0]["message"]["content"] == "".join(words)


async def test_a_full_node_says_so_with_429() -> None:
    never = trio.Event()
    async with (
        door(Scripted("first", ["x", Wait(never)]), limits=None) as rpc,
        rpc.router.answer(rpc.router.ask(_request(0.5))) as answer,
    ):
        await answer.more()
        rpc.router.limits = RoutingLimits(max_in_flight=1)
        reply = await rpc.chat()
    assert (reply.status, reply.error["code"]) == (429, "node_full")
    assert reply.headers["retry-after"] == "1"


async def test_the_answers_record_names_this_node() -> None:
    async with door(Scripted("first", says("Cold."))) as rpc:
        cid = (await rpc.chat()).headers["x-shoal-cid"]
        found = (await rpc.ask("GET", f"/shoal/v1/cache/{cid}")).json
    assert (found["node"], found["content"], found["provider"]) == (ME.peer_id, "Cold.", "first")


async def test_a_repeated_question_is_the_same_question_only_with_the_same_headers() -> None:
    first, second = Scripted("first", says("one")), Scripted("second", says("two"))
    async with door(first, second) as rpc:
        for _ in range(3):
            assert (await rpc.chat(model="m1")).json["choices"][0]["message"]["content"] == "one"
        pinned = await rpc.chat(model="m1", headers={"x-shoal-provider": "second"})
        assert pinned.json["choices"][0]["message"]["content"] == "two"
        assert (await rpc.chat(model="m1", headers={"cache-control": "no-store"})).headers["x-shoal-cache"] == "bypass"
        again = [await rpc.chat(model="m1") for _ in range(2)]
    assert [reply.headers["x-shoal-cache"] for reply in again] == ["memory", "memory"]
    assert again[0].json["id"] != again[1].json["id"]
    assert (len(first.calls), len(second.calls)) == (2, 1)


async def test_what_was_forgotten_is_not_told_again() -> None:
    provider = Scripted("first", says("one"), says("two"))
    async with door(provider) as rpc:
        for _ in range(3):
            await rpc.chat(model="m1")
        rpc.cache.memory.clear()
        assert (await rpc.chat(model="m1")).json["choices"][0]["message"]["content"] == "two"
        assert (await rpc.chat(model="m1")).json["choices"][0]["message"]["content"] == "two"
