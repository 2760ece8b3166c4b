"""What openai's package for Python does for its users, against the node at BASE."""

# ruff: noqa: PT017, PT018  (these run without pytest)

import asyncio
import json
import os

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

BASE = os.environ["BASE"]
c = OpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0)
hot = [{"role": "user", "content": "one two"}]
weather = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object", "properties": {}}}}


class Said(BaseModel):
    word: str


def structured():
    """Structured outputs: the schema goes to the provider, and its JSON comes back as an object."""
    asked = [{"role": "user", "content": json.dumps({"word": "cold"})}]
    for parse in (c.beta.chat.completions.parse, c.chat.completions.parse):
        answer = parse(model="json", messages=asked, response_format=Said).choices[0].message
        assert answer.parsed == Said(word="cold") and answer.refusal is None, answer
    with c.chat.completions.stream(model="json", messages=asked, response_format=Said) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Said(word="cold")
    response = c.responses.parse(model="json", input=asked[0]["content"], text_format=Said)
    assert response.output_parsed == Said(word="cold"), response


def tools():
    """A call of a tool, its result sent back with the message as it came, and the answer to that."""
    first = c.chat.completions.create(model="caller", messages=hot, tools=[weather]).choices[0]
    calls = first.message.tool_calls
    assert first.finish_reason == "tool_calls" and [x.function.name for x in calls] == ["bash", "create"], first
    assert json.loads(calls[0].function.arguments) == {"command": "touch X"}
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in calls]
    told = c.chat.completions.create(model="echo", messages=[*hot, first.message, *results], tools=[weather])
    assert told.choices[0].message.content == "ECHO<one two>", told
    with c.chat.completions.stream(model="caller", messages=hot, tools=[weather]) as stream:
        whole = stream.get_final_completion().choices[0]
    assert [x.function.arguments for x in whole.message.tool_calls] == [x.function.arguments for x in calls]


def raw():
    """The answer's head, by both ways that there are; and a stream that is left early."""
    got = c.chat.completions.with_raw_response.create(model="echo", messages=hot)
    assert got.headers["x-shoal-provider"] == "plain" and got.parse().usage.prompt_tokens > 0
    with c.chat.completions.with_streaming_response.create(model="echo", messages=hot, stream=True) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        assert [line for line in got.iter_lines() if line][-1] == "data: [DONE]"
    with c.chat.completions.create(model="echo", messages=hot, stream=True) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"


def images():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
    asked = [{"role": "user", "content": [{"type": "text", "text": "one two"}, picture]}]
    assert c.chat.completions.create(model="echo", messages=asked).choices[0].message.content == "ECHO<one two>"


def vectors():
    """Asked for without a format, the package asks for base64 and gives numbers."""
    two = c.embeddings.create(model="echo", input=["a", "b"])
    assert [len(each.embedding) for each in two.data] == [3, 3] and two.usage.total_tokens > 0
    assert c.embeddings.create(model="echo", input="a", encoding_format="float").data[0].embedding
    assert c.embeddings.create(model="echo", input=[1, 2, 3]).data[0].embedding[0] == 3.0


def errors():
    for error, how in (
        (openai.NotFoundError, {"model": "nonesuch"}),
        (openai.BadRequestError, {"model": "echo", "temperature": 9}),
        (openai.RateLimitError, {"model": "busy"}),
        (openai.InternalServerError, {"model": "broken"}),
    ):
        for stream in (False, True):
            try:
                c.chat.completions.create(**{"messages": hot, "stream": stream, **how})
            except error as caught:
                assert caught.body["message"] and caught.request_id is None, caught
            else:
                raise AssertionError(f"{how} is no {error.__name__}")
    try:
        list(c.chat.completions.create(model="cut", messages=[{"role": "user", "content": "a b c d e"}], stream=True))
    except openai.APIError as error:
        assert "broke" in error.message or "closed" in error.message or "interrupted" in str(error.code), error
    else:
        raise AssertionError("a stream that was cut passed for a whole one")


async def several():
    """The asynchronous client, many questions at once."""
    async with AsyncOpenAI(base_url=BASE + "/v1", api_key="none") as a:

        async def one(i):
            asked = [{"role": "user", "content": f"number {i}"}]
            stream = await a.chat.completions.create(model="echo", messages=asked, stream=bool(i % 2))
            if i % 2:
                return "".join([x.choices[0].delta.content or "" async for x in stream if x.choices])
            return stream.choices[0].message.content

        assert await asyncio.gather(*(one(i) for i in range(20))) == [f"ECHO<number {i}>" for i in range(20)]


for check in (structured, tools, raw, images, vectors, errors):
    check()
asyncio.run(several())
print("done")
