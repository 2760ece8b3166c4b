"""What langchain-openai does for its users, against the node at BASE."""

# ruff: noqa: PT018  (these run without pytest)

import asyncio
import json
import os

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

how = {"base_url": os.environ["BASE"] + "/v1", "api_key": "none", "max_retries": 0}


@tool
def bash(command: str) -> str:
    "Run a command."
    return f"ran {command}"


class Said(BaseModel):
    """What was said."""

    word: str


def chat(model, **options):
    return ChatOpenAI(model=model, **how, **options)


def plain():
    whole = chat("echo").invoke("one two")
    assert whole.content == "ECHO<one two>" and whole.usage_metadata["total_tokens"] > 0, whole
    pieces = list(chat("echo", stream_usage=True).stream("one two"))
    assert "".join(piece.content for piece in pieces) == "ECHO<one two>"
    assert any(piece.usage_metadata for piece in pieces)
    assert [m.content for m in chat("echo").batch(["a", "b"])] == ["ECHO<a>", "ECHO<b>"]
    assert asyncio.run(chat("echo").ainvoke("one two")).content == "ECHO<one two>"


def tools():
    asked = [HumanMessage("one two")]
    called = chat("caller").bind_tools([bash]).invoke(asked)
    call = called.tool_calls[0]
    assert (call["name"], call["args"]) == ("bash", {"command": "touch X"}), called
    results = [ToolMessage("done", tool_call_id=each["id"]) for each in called.tool_calls]
    assert bash.invoke(call).content == "ran touch X"
    assert chat("echo").bind_tools([bash]).invoke([*asked, called, *results]).content == "ECHO<one two>"
    streamed = None
    for piece in chat("caller").bind_tools([bash]).stream(asked):
        streamed = piece if streamed is None else streamed + piece
    assert streamed.tool_calls[0]["args"] == {"command": "touch X"}, streamed


def structured():
    wanted = json.dumps({"word": "cold"})
    for method in ("json_schema", "json_mode"):
        assert chat("json").with_structured_output(Said, method=method).invoke(wanted) == Said(word="cold"), method


def others():
    vectors = OpenAIEmbeddings(model="echo", check_embedding_ctx_length=False, **how)
    assert len(vectors.embed_documents(["a", "b"])) == 2 and len(vectors.embed_query("a")) == 3
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    asked = HumanMessage([{"type": "text", "text": "one two"}, picture])
    assert chat("echo").invoke([asked]).content == "ECHO<one two>"
    try:
        chat("busy").invoke("x")
    except openai.RateLimitError:
        pass
    else:
        raise AssertionError("no RateLimitError")


for check in (plain, tools, structured, others):
    check()
print("done")
