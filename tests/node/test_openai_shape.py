"""OpenAI's own Python package, unchanged, against the RPC on a real socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
import trio
from shoal.providers.base import ErrorKind, Finish, ToolCallDelta, Usage

from .fakes_router import STOP, Pause, Scripted, fails, says
from .fakes_rpc import Door, door

HOT: Any = [{"role": "user", "content": "What is the opposite of hot?"}]


async def with_client(rpc: Door, work: Callable[[openai.OpenAI], Any]) -> Any:
    """Runs `work` in a thread with a client that retries nothing."""

    def run() -> Any:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{rpc.port}/v1", api_key="none", max_retries=0) as client:
            return work(client)

    with trio.fail_after(20):
        return await trio.to_thread.run_sync(run, abandon_on_cancel=True)


async def test_a_whole_answer() -> None:
    async with door(Scripted("first", says("Cold.", model="m1", usage=Usage(7, 2)))) as rpc:
        answer = await with_client(rpc, lambda c: c.chat.completions.create(model="m1", messages=HOT))
    assert answer.choices[0].message.content == "Cold."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 9
    assert answer.shoal["provider"] == "first"


async def test_a_stream_with_usage() -> None:
    def work(client: openai.OpenAI) -> Any:
        stream = client.chat.completions.create(
            model="m1", messages=HOT, stream=True, stream_options={"include_usage": True}
        )
        return list(stream)

    async with door(Scripted("first", says("Co", "ld.", usage=Usage(7, 2)))) as rpc:
        chunks = await with_client(rpc, work)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Cold."
    assert chunks[-1].usage.total_tokens == 9
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_the_streaming_helper_puts_tool_calls_together() -> None:
    def work(client: openai.OpenAI) -> Any:
        tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
        with client.chat.completions.stream(model="m1", messages=HOT, tools=tools) as stream:
            return stream.get_final_completion()

    script = [
        ToolCallDelta(0, "c1", "weather", '{"city"'),
        ToolCallDelta(0, arguments=':"Rome"}'),
        Finish("tool_calls"),
    ]
    async with door(Scripted("first", script)) as rpc:
        answer = await with_client(rpc, work)
    call = answer.choices[0].message.tool_calls[0]
    assert (call.id, call.function.name, call.function.arguments) == ("c1", "weather", '{"city":"Rome"}')


async def test_an_answer_sent_back_as_history_is_taken() -> None:
    def work(client: openai.OpenAI) -> Any:
        first = client.chat.completions.create(model="m1", messages=HOT)
        history = [*HOT, first.choices[0].message.model_dump(), {"role": "user", "content": "And of wet?"}]
        return client.chat.completions.create(model="m1", messages=history)

    async with door(Scripted("first", says("Cold."), says("Dry."))) as rpc:
        answer = await with_client(rpc, work)
    assert answer.choices[0].message.content == "Dry."


async def test_the_list_of_models() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        models = await with_client(rpc, lambda c: [m.id for m in c.models.list()])
        one = await with_client(rpc, lambda c: c.models.retrieve("m1"))
    assert models == ["m1", "m9", "m8"]
    assert one.owned_by == "first"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (ErrorKind.BAD_REQUEST, openai.BadRequestError),
        (ErrorKind.CONTEXT_LENGTH, openai.BadRequestError),
        (ErrorKind.RATE_LIMITED, openai.RateLimitError),
        (ErrorKind.UPSTREAM, openai.InternalServerError),
        (ErrorKind.AUTH, openai.InternalServerError),
    ],
)
async def test_failures_are_the_exceptions_that_callers_know(kind: ErrorKind, error: type[Exception]) -> None:
    async with door(Scripted("first", fails(kind, "it says why"))) as rpc:
        with pytest.raises(error, match="it says why"):
            await with_client(rpc, lambda c: c.chat.completions.create(model="m1", messages=HOT))


async def test_an_unknown_model_is_not_found() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        with pytest.raises(openai.NotFoundError) as caught:
            await with_client(rpc, lambda c: c.chat.completions.create(model="gpt-99", messages=HOT))
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_a_refused_credential_of_the_node_is_not_retried_by_the_client() -> None:
    provider = Scripted("first", fails(ErrorKind.AUTH, "no key"))

    def work() -> None:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=3) as client:
            client.chat.completions.create(model="m1", messages=HOT)

    async with door(provider) as rpc:
        port = rpc.port
        with pytest.raises(openai.InternalServerError):
            await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    assert len(provider.calls) == 1


async def test_a_broken_stream_is_an_error_and_not_a_short_answer() -> None:
    def work(client: openai.OpenAI) -> Any:
        seen = []
        try:
            for chunk in client.chat.completions.create(model="m1", messages=HOT, stream=True):
                seen.append(chunk.choices[0].delta.content or "")
        except openai.APIError as error:
            return "".join(seen), error.message
        return "".join(seen), None

    async with door(Scripted("first", ["Co", *fails(ErrorKind.CONNECTION, "reset")])) as rpc:
        text, message = await with_client(rpc, work)
    assert text == "Co"
    assert message == "first broke off: reset"


async def test_comments_in_a_silence_do_not_disturb_the_client() -> None:
    def work(client: openai.OpenAI) -> Any:
        chunks = list(client.chat.completions.create(model="m1", messages=HOT, stream=True))
        return "".join(c.choices[0].delta.content or "" for c in chunks)

    script = [Pause(0.1), "Co", Pause(0.1), "ld.", STOP]
    async with door(Scripted("first", script), keep_alive_s=0.02) as rpc:
        assert await with_client(rpc, work) == "Cold."


async def test_json_schema_and_other_options_reach_the_provider() -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    provider = Scripted("first", says("{}"))

    def work(client: openai.OpenAI) -> Any:
        return client.chat.completions.create(
            model="m1",
            messages=[{"role": "system", "content": "Short."}, *HOT],
            response_format=schema,
            max_completion_tokens=5,
            temperature=0.5,
            top_p=0.9,
            stop=["\n"],
            seed=1,
            logit_bias={"50256": -100},
            extra_body={"top_k": 3},
        )

    async with door(provider) as rpc:
        await with_client(rpc, work)
    request = provider.calls[0]
    assert request.response_format == schema
    assert (request.max_tokens, request.temperature, request.top_p, request.stop, request.seed) == (
        5,
        0.5,
        0.9,
        ("\n",),
        1,
    )
    assert request.extra == {"logit_bias": {"50256": -100}, "top_k": 3}


async def test_embeddings_are_a_clean_refusal() -> None:
    async with door(Scripted("first", says("x"))) as rpc:
        with pytest.raises(openai.InternalServerError, match="makes embeddings"):
            await with_client(rpc, lambda c: c.embeddings.create(model="m1", input="x"))
