"""How long a prompt is, asked of a server that can tell: vLLM, SGLang, llama.cpp, another Shoal, Anthropic's own API.

What a server can is found out without a word of the caller's: each way is first tried with a text of ours. The way, or
that there is none, is remembered for a while. Formats: vLLM, /tokenize with messages
(https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html); llama.cpp, /apply-template and /tokenize
(tools/server/README.md); https://docs.anthropic.com/en/api/messages-count-tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
import trio

from ..protocols.http.client import ClientError
from .base import GenerateRequest, Message, ProviderError

if TYPE_CHECKING:
    from .openai_compat import OpenAiCompat

REMEMBERED_S = 600.0
"""Seconds for which the way of a server is believed."""
_ANSWER_BYTES = 16 * 1024 * 1024

Way = Literal["vllm", "llama_cpp", "messages"]
_TRIAL = GenerateRequest(messages=(Message("user", "Hello"),))
_encode = msgspec.json.Encoder().encode


class Counting:
    """Asks one server. Fails as if it could not count: an estimate is always at hand."""

    def __init__(self, provider: OpenAiCompat, base: str) -> None:
        self._provider, self._base = provider, base
        self._ways: tuple[Way, ...] | None = None
        self._until = float("-inf")

    async def count(self, request: GenerateRequest) -> int | None:
        """Tokens of the prompt; None where the server does not tell."""
        if request.completion is not None or any(m.shows or m.tool_calls or m.role == "tool" for m in request.messages):
            return None  # what these become in a prompt, not every way tells
        try:
            model = request.model or await self._provider.default_model()
            if self._ways is None or trio.current_time() >= self._until:
                self._ways = await self._found(model)
                self._until = trio.current_time() + REMEMBERED_S
            for way in self._ways:
                if (tokens := await self._by(way, request, model)) is not None:
                    return tokens
        except (ProviderError, ClientError):
            pass
        return None

    async def _found(self, model: str) -> tuple[Way, ...]:
        """The ways in which it counts a text of ours, the first of which is the one to use."""
        ways: tuple[Way, ...] = ("vllm", "llama_cpp", "messages")
        for way in ways:
            if await self._by(way, _TRIAL, model) is not None:
                return (way,)
        return ()

    async def _by(self, way: Way, request: GenerateRequest, model: str) -> int | None:
        if way == "vllm":
            said = await self._ask(self._root + "/tokenize", _vllm(request, model))
            return _whole(said.get("count"))
        if way == "llama_cpp":
            if request.tools:
                return None
            messages = [message.as_written() for message in request.messages]
            prompt = (await self._ask(self._root + "/apply-template", {"messages": messages})).get("prompt")
            if not isinstance(prompt, str):
                return None
            asked = {"content": prompt, "add_special": True, "parse_special": True}
            tokens = (await self._ask(self._root + "/tokenize", asked)).get("tokens")
            return len(tokens) if isinstance(tokens, list) else None
        said = await self._ask(self._base + "/messages/count_tokens", _anthropic(request, model))
        shoal = said.get("shoal")
        if isinstance(shoal, dict) and shoal.get("estimated"):
            return None
        return _whole(said.get("input_tokens"))

    @property
    def _root(self) -> str:
        return self._base.removesuffix("/v1")

    async def _ask(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """The object that a server answers; an empty one for any other answer."""
        call = self._provider.post_to(url, _encode(body))
        try:
            response = await self._provider.entered(call)
            said = await response.read(_ANSWER_BYTES)
            found = msgspec.json.decode(said) if response.status == 200 else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            found = None
        finally:
            await call.__aexit__(None, None, None)
        return found if isinstance(found, dict) else {}


def _vllm(request: GenerateRequest, model: str) -> dict[str, Any]:
    messages = [message.as_written() for message in request.messages]
    body: dict[str, Any] = {"model": model, "messages": messages, "add_generation_prompt": True}
    return {**body, "tools": request.tools} if request.tools else body


def _anthropic(request: GenerateRequest, model: str) -> dict[str, Any]:
    systems = [message.text for message in request.messages if message.role in ("system", "developer")]
    turns = [message for message in request.messages if message.role in ("user", "assistant")]
    body: dict[str, Any] = {"model": model, "messages": [{"role": m.role, "content": m.text} for m in turns]}
    if systems:
        body["system"] = "\n\n".join(systems)
    functions = (tool.get("function", {}) for tool in request.tools)
    if request.tools:
        body["tools"] = [
            {
                "name": function.get("name"),
                "description": function.get("description", ""),
                "input_schema": function.get("parameters") or {"type": "object"},
            }
            for function in functions
        ]
    return body


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
