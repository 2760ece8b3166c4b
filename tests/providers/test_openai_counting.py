"""How long a prompt is, asked of servers that tell, each in its own way, and of those that do not."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from shoal.protocols.http.exchange import Exchange
from shoal.protocols.http.limits import Limits
from shoal.protocols.http.server import serve
from shoal.providers import openai_compat
from shoal.providers.base import Completion, GenerateRequest
from shoal.providers.counting import Counts
from shoal.providers.settings import BuildContext

SECRET = "the launch code is four zeros"
ASK = GenerateRequest.of(SECRET, system="Be brief.", model="m")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

Answer = Callable[[str, dict[str, Any]], Any]
"""(path, body) -> what is answered; None: 404."""


def vllm(path: str, body: dict[str, Any]) -> Any:
    said = " ".join(message["content"] for message in body.get("messages", ()))
    return {"count": len(said.split()), "max_model_len": 2048, "tokens": []} if path == "/tokenize" else None


def llama_cpp(path: str, body: dict[str, Any]) -> Any:
    if path == "/apply-template":
        return {"prompt": "".join(f"<{m['role']}>{m['content']}" for m in body["messages"])}
    return {"tokens": list(range(len(body.get("content", ""))))} if path == "/tokenize" else None


def anthropic(path: str, body: dict[str, Any]) -> Any:
    if path != "/v1/messages/count_tokens":
        return None
    assert all(turn["role"] in ("user", "assistant") for turn in body["messages"])
    return {"input_tokens": 100 * len(body["messages"]) + len(body.get("system", "")) + 7 * len(body.get("tools", ()))}


def estimating(path: str, body: dict[str, Any]) -> Any:
    found = anthropic(path, body)
    return found and {**found, "shoal": {"estimated": True}}


def nonsense(path: str, body: dict[str, Any]) -> Any:
    return {"count": "many", "tokens": 3, "prompt": None, "input_tokens": -1}


def deaf(path: str, body: dict[str, Any]) -> Any:
    return None


class Asked:
    """A provider of a server that answers so, and what was asked of it."""

    def __init__(self, provider: openai_compat.OpenAiCompat, asked: list[tuple[str, str]]) -> None:
        self.provider, self.asked = provider, asked


@asynccontextmanager
async def server(answer: Answer) -> AsyncGenerator[Asked]:
    asked: list[tuple[str, str]] = []

    async def handle(exchange: Exchange) -> None:
        asked.append((exchange.path, exchange.body.decode()))
        said = answer(exchange.path, json.loads(exchange.body))
        status = 404 if said is None else 200
        await exchange.respond(status, json.dumps(said).encode(), [("content-type", "application/json")])

    async with trio.open_nursery() as nursery:
        running = await nursery.start(partial(serve, handle, ("127.0.0.1", 0), limits=Limits()))
        url = f"http://127.0.0.1:{running.addresses[0][1]}/v1"
        settings = msgspec.convert({"base_url": url, "models": ["m"]}, openai_compat.Settings)
        provider = openai_compat.build("desk", settings, BuildContext(Path("unused"), {}))
        async with provider.running():
            yield Asked(provider, asked)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (vllm, 8),
        (llama_cpp, len(f"<system>Be brief.<user>{SECRET}")),
        (anthropic, 109),
        (estimating, None),
        (nonsense, None),
        (deaf, None),
    ],
)
async def test_each_kind_of_server_is_asked_in_its_way(answer: Answer, tokens: int | None) -> None:
    async with server(answer) as found:
        assert isinstance(found.provider, Counts)
        with trio.fail_after(5):
            assert await found.provider.count(ASK) == tokens


async def test_a_server_that_does_not_count_never_sees_the_prompt_and_is_not_asked_again() -> None:
    async with server(deaf) as found:
        await found.provider.count(ASK)
        paths = [path for path, _ in found.asked]
        await found.provider.count(ASK)
    assert paths == ["/tokenize", "/apply-template", "/v1/messages/count_tokens"]
    assert len(found.asked) == 3
    assert not any("launch" in body for _, body in found.asked)


async def test_a_way_that_was_found_is_taken_at_once() -> None:
    async with server(vllm) as found:
        for _ in range(3):
            assert await found.provider.count(ASK) == 8
    assert len(found.asked) == 4, "one with a text of ours"


async def test_tools_are_counted_where_the_way_tells_them() -> None:
    tooled = msgspec.structs.replace(ASK, tools=(TOOL,))
    async with server(anthropic) as found:
        assert await found.provider.count(tooled) == 116
    async with server(llama_cpp) as found:
        assert await found.provider.count(tooled) is None


async def test_what_no_way_tells_is_not_asked() -> None:
    async with server(vllm) as found:
        assert await found.provider.count(msgspec.structs.replace(ASK, completion=Completion("x"))) is None
    assert found.asked == []


async def test_a_server_that_is_gone_counts_nothing() -> None:
    settings = msgspec.convert({"base_url": "http://127.0.0.1:9/v1", "models": ["m"]}, openai_compat.Settings)
    provider = openai_compat.build("desk", settings, BuildContext(Path("unused"), {}))
    async with provider.running():
        with trio.fail_after(10):
            assert await provider.count(ASK) is None
