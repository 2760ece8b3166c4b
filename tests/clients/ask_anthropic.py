"""What anthropic's package for Python does for its users, against the node at BASE."""

# ruff: noqa: PT017, PT018  (these run without pytest)

import os

import anthropic
from anthropic import Anthropic

c = Anthropic(base_url=os.environ["BASE"], api_key="none", max_retries=0)
hot = [{"role": "user", "content": "one two"}]
tool = {"name": "bash", "input_schema": {"type": "object"}}


def plain():
    m = c.messages.create(model="echo", max_tokens=50, messages=hot)
    assert m.content[0].text == "ECHO<one two>" and m.stop_reason == "end_turn", m
    assert m.usage.input_tokens > 0 and m.usage.output_tokens > 0, m
    with c.messages.stream(model="echo", max_tokens=50, messages=hot, system="Be brief.") as s:
        assert "".join(s.text_stream) == "ECHO<one two>"
        assert s.get_final_message().usage.output_tokens > 0
    thought = c.messages.create(model="thinker", max_tokens=50, messages=hot)
    assert [b.type for b in thought.content] == ["thinking", "text"], thought


def tools():
    """The call, whole and streamed, and its result sent back."""
    for make in (False, True):
        if make:
            with c.messages.stream(model="caller", max_tokens=50, messages=hot, tools=[tool]) as s:
                m = s.get_final_message()
        else:
            m = c.messages.create(model="caller", max_tokens=50, messages=hot, tools=[tool])
        calls = [b for b in m.content if b.type == "tool_use"]
        assert m.stop_reason == "tool_use" and calls[0].input == {"command": "touch X"}, m
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "done"} for call in calls]
    history = [*hot, {"role": "assistant", "content": m.content}, {"role": "user", "content": results}]
    told = c.messages.create(model="echo", max_tokens=50, messages=history, tools=[tool])
    assert told.content[0].text == "ECHO<one two>", told


def others():
    counted = c.messages.count_tokens(model="echo", messages=hot, tools=[tool])
    assert 5 < counted.input_tokens < 100, counted
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    asked = [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "one two"}]}]
    assert c.messages.create(model="echo", max_tokens=50, messages=asked).content[0].text == "ECHO<one two>"
    assert "echo" in [m.id for m in c.models.list()]


def errors():
    for error, how in (
        (anthropic.NotFoundError, {"model": "nonesuch"}),
        (anthropic.BadRequestError, {"max_tokens": 0}),
        (anthropic.RateLimitError, {"model": "busy"}),
        (anthropic.InternalServerError, {"model": "broken"}),
    ):
        try:
            c.messages.create(**{"model": "echo", "max_tokens": 9, "messages": hot, **how})
        except error as caught:
            assert caught.body["type"] == "error" and caught.body["error"]["message"], caught.body
        else:
            raise AssertionError(f"{how} is no {error.__name__}")


for check in (plain, tools, others, errors):
    check()
print("done")
