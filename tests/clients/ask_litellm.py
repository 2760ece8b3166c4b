"""What litellm does as a client, against the node at BASE."""

# ruff: noqa: PT018  (these run without pytest)

import asyncio
import json
import os

import litellm

litellm.telemetry = False
BASE = os.environ["BASE"]
hot = [{"role": "user", "content": "one two"}]
how = {"api_base": BASE + "/v1", "api_key": "none", "num_retries": 0, "max_retries": 0}
weather = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object", "properties": {}}}}


def plain():
    whole = litellm.completion(model="openai/echo", messages=hot, **how)
    assert whole.choices[0].message.content == "ECHO<one two>" and whole.usage.total_tokens > 0
    options = {"include_usage": True}
    chunks = list(litellm.completion(model="openai/echo", messages=hot, stream=True, stream_options=options, **how))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "ECHO<one two>"
    assert any(getattr(c, "usage", None) for c in chunks)
    later = asyncio.run(litellm.acompletion(model="openai/echo", messages=hot, **how))
    assert later.choices[0].message.content == "ECHO<one two>"
    by_messages = {"model": "anthropic/echo", "api_base": BASE, "api_key": "none", "messages": hot, "max_tokens": 50}
    assert litellm.completion(**by_messages).choices[0].message.content == "ECHO<one two>"
    thought = litellm.completion(model="openai/thinker", messages=hot, **how).choices[0].message
    assert thought.reasoning_content.startswith("First I think."), thought


def tools():
    first = litellm.completion(model="openai/caller", messages=hot, tools=[weather], **how).choices[0]
    assert first.finish_reason == "tool_calls" and json.loads(first.message.tool_calls[0].function.arguments)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in first.message.tool_calls]
    told = litellm.completion(model="openai/echo", messages=[*hot, first.message, *results], tools=[weather], **how)
    assert told.choices[0].message.content == "ECHO<one two>", told


def others():
    vectors = litellm.embedding(model="openai/echo", input=["a", "b"], **how)
    assert len(vectors.data) == 2 and len(vectors.data[0]["embedding"]) == 3, vectors
    old = litellm.text_completion(model="text-completion-openai/echo", prompt="x", **how)
    assert old.choices[0].text == "ECHO<x>", old
    for error, model in (
        (litellm.RateLimitError, "busy"),
        (litellm.NotFoundError, "nonesuch"),
        (litellm.BadGatewayError, "broken"),
    ):
        try:
            litellm.completion(model=f"openai/{model}", messages=hot, **how)
        except error:
            pass
        else:
            raise AssertionError(f"{model} is no {error.__name__}")


for check in (plain, tools, others):
    check()
print("done")
