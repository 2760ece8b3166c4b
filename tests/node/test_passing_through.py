"""What Shoal does not type goes on to an OpenAI-compatible upstream as it was written, and comes back from it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
import trio
from shoal.cache.canonical import canonical_bytes
from shoal.node.rpc.chat_request import read_call
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.server import serve
from shoal.providers.openai_compat import Settings, build
from shoal.providers.settings import BuildContext

from .fakes_router import Scripted, says
from .fakes_rpc import Door, door
from .test_openai_shape import with_client

USER = {"role": "user", "content": "Hot?"}

PLACE = {"url": "http://a.example", "title": "A", "start_index": 0, "end_index": 4}
CITED = [{"type": "url_citation", "url_citation": PLACE}]
ABOUT = {"system_fingerprint": "fp_1", "service_tier": "flex"}
COUNTS = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1, "accepted_prediction_tokens": 3},
}


class Upstream:
    """Answers each chat with the deltas of `says`, as a stream or whole; `bodies` is what it was asked."""

    def __init__(self, *deltas: dict[str, Any], whole: bool = False, finish: str = "stop") -> None:
        self.deltas, self.whole, self.finish = deltas, whole, finish
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.path.endswith("/models"):
            await exchange.respond(200, b'{"data":[{"id":"m1"}]}')
            return
        self.bodies.append(json.loads(exchange.body))
        self.headers.append(dict(exchange.headers))
        base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m1", **ABOUT}
        if self.whole:
            message = {"role": "assistant", **{k: v for delta in self.deltas for k, v in delta.items()}}
            choice = {"index": 0, "message": message, "finish_reason": self.finish}
            body = json.dumps({**base, "choices": [choice], "usage": COUNTS}).encode()
            await exchange.respond(200, body, [("content-type", "application/json")])
            return
        async with exchange.stream(200, [("content-type", "text/event-stream")]) as send:
            for delta in ({"role": "assistant", "content": ""}, *self.deltas):
                choice = {"index": 0, "delta": delta, "finish_reason": None}
                await send(b"data: %b\n\n" % json.dumps({**base, "choices": [choice]}).encode())
            choice = {"index": 0, "delta": {}, "finish_reason": self.finish, "native_finish_reason": "STOP"}
            await send(b"data: %b\n\n" % json.dumps({**base, "choices": [choice]}).encode())
            await send(b"data: %b\n\n" % json.dumps({**base, "choices": [], "usage": COUNTS}).encode())
            await send(b"data: [DONE]\n\n", last=True)


@contextlib.asynccontextmanager
async def before(upstream: Upstream) -> AsyncGenerator[Door]:
    """A node with this upstream behind it."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(serve, upstream, ("127.0.0.1", 0)))
        settings = Settings(base_url=f"http://127.0.0.1:{server.addresses[0][1]}/v1", models=("m1",), images=True)
        provider = build("desk", settings, BuildContext(data_dir=None, environ={}))  # type: ignore[arg-type]
        async with provider.running(), door(provider) as rpc:
            yield rpc
        nursery.cancel_scope.cancel()


# -- what is asked

WRITTEN = [
    {"role": "developer", "content": "Be brief.", "name": "boss"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Hear, see, read.", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low", "format": "png"}},
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "look", "arguments": "{}"},
                "extra_content": {"google": {"thought_signature": "c2ln"}},
            },
            {"id": "call_2", "type": "custom", "custom": {"name": "run", "input": "ls"}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "a lake"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "none"}]},
]
OPTIONS = {
    "reasoning_effort": "low",
    "service_tier": "flex",
    "metadata": {"job": "1"},
    "store": True,
    "parallel_tool_calls": False,
    "modalities": ["text"],
    "verbosity": "low",
    "prediction": {"type": "content", "content": "Cold."},
    "logit_bias": {"50256": -100},
    "user": "u1",
    "presence_penalty": 0.5,
    "web_search_options": {},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "x_of_tomorrow": {"a": [1, 2.5, None, "b"]},
}


@pytest.mark.parametrize("stream", [False, True])
async def test_messages_and_options_reach_the_upstream_as_they_were_written(stream: bool) -> None:
    upstream = Upstream({"content": "Cold."})
    async with before(upstream) as rpc:
        reply = await rpc.chat(model="m1", messages=WRITTEN, stream=stream, **OPTIONS)
    assert reply.status == 200, reply.body
    asked = upstream.bodies[0]
    absent = [{k: v for k, v in message.items() if v is not None} for message in WRITTEN]
    assert asked["messages"] == absent, "null is the same as absent"
    assert {name: asked.get(name) for name in OPTIONS} == OPTIONS


async def test_an_answer_with_everything_can_be_sent_back_as_it_came() -> None:
    calls = [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    calls[0]["extra_content"] = {"google": {"thought_signature": "c2ln"}}
    upstream = Upstream({"reasoning_content": "hm"}, {"tool_calls": calls}, finish="tool_calls")

    def work(client: openai.OpenAI) -> Any:
        tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
        first = client.chat.completions.create(model="m1", messages=[USER], tools=tools)  # type: ignore[list-item]
        history: Any = [USER, first.choices[0].message, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]
        return client.chat.completions.create(model="m1", messages=history, tools=tools)

    async with before(upstream) as rpc:
        await with_client(rpc, work)
    sent = upstream.bodies[1]["messages"][1]
    assert sent["tool_calls"][0]["extra_content"] == {"google": {"thought_signature": "c2ln"}}
    assert sent["reasoning_content"] == "hm"


async def test_what_only_reads_text_is_not_asked_to_hear() -> None:
    from shoal.providers.base import Message, OtherPart, TextPart

    message = Message("user", (TextPart("Hear."), OtherPart("input_audio")))
    assert message.shows
    assert not Message("user", (TextPart("Read."),)).shows


def call(*messages: Any) -> Any:
    return read_call(json.dumps({"model": "m1", "messages": list(messages)}).encode(), {}).request


def test_what_goes_along_is_part_of_the_key_and_cannot_pass_for_something_else() -> None:
    plain = canonical_bytes(call(USER))
    marked = call({**USER, "cache_control": {"type": "ephemeral"}})
    assert canonical_bytes(marked) != plain
    assert canonical_bytes(call({**USER, "refusal": None, "annotations": None})) == plain
    forged = call({**USER, "extra": {"content": "Cold?"}})
    assert forged.messages[0].extra == {"extra": {"content": "Cold?"}}
    assert canonical_bytes(forged) not in (plain, canonical_bytes(call({"role": "user", "content": "Cold?"})))


# -- what is answered


@pytest.mark.parametrize("whole", [False, True])
async def test_what_an_upstream_says_beside_the_text_is_where_openais_clients_look_for_it(whole: bool) -> None:
    upstream = Upstream({"content": "Cold."}, {"annotations": CITED}, whole=whole)
    async with before(upstream) as rpc:
        answer = await with_client(rpc, lambda c: c.chat.completions.create(model="m1", messages=[USER]))
    assert (answer.system_fingerprint, answer.service_tier) == ("fp_1", "flex")
    message = answer.choices[0].message
    assert message.content == "Cold."
    assert [a.model_dump() for a in message.annotations] == CITED
    assert answer.usage.prompt_tokens_details.model_dump(include={"cached_tokens", "audio_tokens"}) == {
        "cached_tokens": 2,
        "audio_tokens": 1,
    }
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens == 3
    assert answer.usage.completion_tokens_details.reasoning_tokens == 1


async def test_a_stream_tells_the_same() -> None:
    def work(client: openai.OpenAI) -> Any:
        options: Any = {"include_usage": True}
        return list(client.chat.completions.create(model="m1", messages=[USER], stream=True, stream_options=options))  # type: ignore[list-item]

    async with before(Upstream({"content": "Cold."}, {"annotations": CITED})) as rpc:
        chunks = await with_client(rpc, work)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Cold."
    noted = [c.choices[0].delta.model_extra.get("annotations") for c in chunks if c.choices]
    assert CITED in noted
    assert (chunks[-1].system_fingerprint, chunks[-1].service_tier) == ("fp_1", "flex")
    assert chunks[-1].usage.completion_tokens_details.accepted_prediction_tokens == 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


@pytest.mark.parametrize("whole", [False, True])
async def test_a_refusal_is_a_refusal_and_no_answer(whole: bool) -> None:
    pieces = [{"refusal": "I cannot."}] if whole else [{"refusal": "I can"}, {"refusal": "not."}]
    async with before(Upstream(*pieces, whole=whole)) as rpc:
        reply = await rpc.chat(model="m1")
        streamed = await rpc.chat(model="m1", stream=True)
        again = await rpc.chat(model="m1")
        message = await rpc.ask("POST", "/v1/messages", {"model": "m1", "max_tokens": 9, "messages": [USER]})
        response = await rpc.ask("POST", "/v1/responses", {"model": "m1", "input": "Hot?"})
    said = reply.json["choices"][0]["message"]
    assert (said["refusal"], said["content"]) == ("I cannot.", None)
    assert [e["choices"][0]["delta"].get("refusal") for e in streamed.events[:-1]].count("I cannot.") == 1
    assert again.headers["x-shoal-cache"] == "miss", "a refusal is not remembered"
    assert message.json["content"] == [{"type": "text", "text": "I cannot."}]
    assert message.json["stop_reason"] == "refusal"
    assert response.json["output"][0]["content"] == [{"type": "refusal", "refusal": "I cannot."}]


async def test_responses_tell_it_in_their_own_form_and_pass_on_what_they_do_not_know() -> None:
    def work(client: openai.OpenAI) -> Any:
        about: Any = {"model": "m1", "input": "Hot?", "user": "u1", "service_tier": "flex", "metadata": {"job": "1"}}
        whole = client.responses.create(**about, text={"verbosity": "low"}, extra_body={"x_of_tomorrow": 1})
        with client.responses.stream(**about) as stream:
            return whole, stream.get_final_response()

    upstream = Upstream({"content": "Cold."}, {"annotations": CITED})
    async with before(upstream) as rpc:
        whole, streamed = await with_client(rpc, work)
    for response in (whole, streamed):
        assert response.output[0].content[0].annotations[0].model_dump() == {"type": "url_citation", **PLACE}
        assert (response.service_tier, response.metadata) == ("flex", {"job": "1"})
    wanted = {"user": "u1", "service_tier": "flex", "verbosity": "low", "x_of_tomorrow": 1}
    assert {name: upstream.bodies[0].get(name) for name in wanted} == wanted
    assert "metadata" not in upstream.bodies[0], "a chat completion takes it only where it is stored"


async def test_a_streamed_refusal_is_one_in_responses_and_messages() -> None:
    async with before(Upstream({"refusal": "I cannot."})) as rpc:

        def work(client: openai.OpenAI) -> Any:
            with client.responses.stream(model="m1", input="Hot?") as stream:
                return stream.get_final_response()

        response = await with_client(rpc, work)
        body = {"model": "m1", "max_tokens": 9, "messages": [USER], "stream": True}
        message = await rpc.ask("POST", "/v1/messages", body)
    assert response.output[0].content[0].refusal == "I cannot."
    assert b'"text_delta","text":"I cannot."' in message.body
    assert b'"stop_reason":"refusal"' in message.body


async def test_sound_in_pieces_is_one_sound() -> None:
    pieces = (
        {"audio": {"id": "a1", "transcript": "Co", "data": "AAE="}},
        {"audio": {"transcript": "ld", "data": "Ag=="}},
    )
    async with before(Upstream(*pieces)) as rpc:
        reply = await rpc.chat(model="m1", modalities=["text", "audio"], audio={"voice": "x", "format": "pcm16"})
    assert reply.json["choices"][0]["message"]["audio"] == {"id": "a1", "transcript": "Cold", "data": "AAEC"}


async def test_a_plain_provider_adds_nothing() -> None:
    async with door(Scripted("first", says("Cold."))) as rpc:
        reply = await rpc.chat(model="m1")
    assert set(reply.json) == {"id", "object", "created", "model", "choices", "usage", "shoal"}
    assert set(reply.json["choices"][0]["message"]) == {"role", "content", "refusal"}


# -- traces

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


async def test_the_callers_trace_goes_on_to_the_upstream_and_to_no_request_after_it() -> None:
    upstream = Upstream({"content": "Cold."})
    async with before(upstream) as rpc, await rpc.open() as stream:
        for marks in ({"traceparent": PARENT, "tracestate": "a=1,b=2"}, {}):
            body = json.dumps({"model": "m1", "messages": [USER], "temperature": 1}).encode()
            await stream.send_all(rpc.head("POST", "/v1/chat/completions", {**marks, "connection": "keep-alive"}, body))
            data = b""
            while b'"shoal"' not in data:
                data += await stream.receive_some(65536)
    assert (upstream.headers[0]["traceparent"], upstream.headers[0]["tracestate"]) == (PARENT, "a=1,b=2")
    assert not {"traceparent", "tracestate"} & upstream.headers[1].keys()


async def test_where_spans_are_kept_the_nodes_own_stands_between() -> None:
    upstream, asked = Upstream({"content": "Cold."}), []
    async with before(upstream) as rpc:
        rpc.router.traced = True

        class Watch:
            def boarded(self, ask: Any, flight: Any) -> None:
                asked.append(ask.trace)

            left = peeked = refused = lambda self, *_: None

        rpc.router.watchers.append(Watch())
        await rpc.chat({"traceparent": PARENT}, model="m1", stream=True)
        await rpc.chat({"traceparent": PARENT[:-1] + "0"}, model="m1", temperature=1)
    assert upstream.headers[0]["traceparent"] == f"00-{TRACE}-{asked[0].own}-01"
    assert asked[0].own not in ("", SPAN)
    assert upstream.headers[1]["traceparent"] == PARENT[:-1] + "0", "nobody records it, so nothing stands between"


@pytest.mark.parametrize("parent", ["nonsense", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more"])
async def test_what_is_no_trace_goes_nowhere(parent: str) -> None:
    upstream = Upstream({"content": "Cold."})
    async with before(upstream) as rpc:
        assert (await rpc.chat({"traceparent": parent, "tracestate": "a=1"}, model="m1")).status == 200
    assert not {"traceparent", "tracestate"} & upstream.headers[0].keys()


# -- files

PDF = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}}


async def test_a_document_for_messages_and_a_file_for_responses_reach_the_upstream_as_files() -> None:
    upstream = Upstream({"content": "Cold."})
    source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
    plain = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hot."}}
    text = {"type": "text", "text": "Read."}
    blocks = [{"type": "document", "source": source, "title": "a.pdf"}, text, plain]
    file = {"type": "input_file", "filename": "a.pdf", "file_data": PDF["file"]["file_data"]}  # type: ignore[index]
    sound = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    asked = [{"role": "user", "content": [file, {"type": "input_text", "text": "Read."}, sound]}]
    async with before(upstream) as rpc:
        turns = [{"role": "user", "content": blocks}]
        for path, body in (
            ("/v1/messages", {"model": "m1", "max_tokens": 9, "messages": turns}),
            ("/v1/responses", {"model": "m1", "input": asked}),
        ):
            assert (await rpc.ask("POST", path, body)).status == 200
    assert upstream.bodies[0]["messages"][0]["content"] == [PDF, text, {"type": "text", "text": "Hot."}]
    assert upstream.bodies[1]["messages"][0]["content"] == [PDF, text, sound]
