"""Anthropic's messages on the wire: the whole JSON, the events of a stream, and errors.

Format: https://docs.anthropic.com/en/api/messages and .../messages-streaming. The `shoal` object stands in the whole
answer and in `message_delta`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ...protocols.http.message import Header
from ...providers.base import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from ..routing.no_answer import NoAnswer
from .chat_answer import Whole, new_id, refusal_of
from .errors import face_of, render

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's names by status; others below 500 are `invalid_request_error`, above `api_error`."""

_encode = msgspec.json.Encoder().encode


def message_body(whole: Whole, model: str | None, shoal: dict[str, Any]) -> bytes:
    """The whole answer."""
    content: list[dict[str, Any]] = []
    if whole.reasoning:
        content.append({"type": "thinking", "thinking": whole.reasoning, "signature": ""})
    if text := whole.text or whole.beside.get("refusal"):
        content.append({"type": "text", "text": text})
    for call in whole.tool_calls:
        function = call["function"]
        about = {"id": call["id"] or new_id("toolu_"), "name": function["name"], "input": input_of(function)}
        content.append({"type": "tool_use", **about})
    return _encode(
        {
            **_message(model),
            "content": content,
            "stop_reason": "refusal" if "refusal" in whole.beside else STOPS.get(whole.reason, "end_turn"),
            "usage": usage_of(whole.usage),
            "shoal": shoal,
        }
    )


def _message(model: str | None) -> dict[str, Any]:
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model or "unknown",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_of(None),
    }


def input_of(function: dict[str, str]) -> dict[str, Any]:
    """A tool call's arguments as an object; what is not JSON is kept as text, since the caller may still read it."""
    text = function["arguments"]
    try:
        found = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    return found if isinstance(found, dict) else {"arguments": text}


def usage_of(usage: Usage | None) -> dict[str, Any]:
    """Anthropic counts what came out of a prompt cache apart from `input_tokens`."""
    prompt, cached = (usage.prompt_tokens, usage.cached_tokens) if usage is not None else (0, 0)
    return {
        "input_tokens": max(0, prompt - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens if usage is not None else 0,
    }


class MessageEvents:
    """Writes the stream (`relay.Writer`): one content block is open at a time."""

    keep_alive = PING

    def __init__(self, model: str | None) -> None:
        self._model = model
        self._begun = False
        self._blocks = 0
        self._open: str | int | None = None  # "text", "thinking", or the index of a tool's call
        self._tools: dict[int, int] = {}  # index of a call -> index of its block

    def write(self, index: int, events: Iterable[Event]) -> bytes:
        parts: list[bytes] = []
        if not self._begun:
            self._begun = True
            parts.append(_event("message_start", {"message": _message(self._model)}))
        for event in events:
            if type(event) is TextDelta:
                block = self._block("text", {"type": "text", "text": ""}, parts)
                parts.append(_delta(block, {"type": "text_delta", "text": event.text}))
            elif type(event) is ReasoningDelta:
                block = self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""}, parts)
                parts.append(_delta(block, {"type": "thinking_delta", "thinking": event.text}))
            elif type(event) is ToolCallDelta:
                block = self._tool(event, parts)
                if event.arguments:
                    parts.append(_delta(block, {"type": "input_json_delta", "partial_json": event.arguments}))
        return b"".join(parts)

    def finish(self, index: int, finish: Finish) -> bytes:
        return b""

    def end(self, index: int, finish: Finish, usage: Usage | None, shoal: dict[str, Any]) -> bytes:
        stop, refusal = STOPS.get(finish.reason, "end_turn"), refusal_of(finish)
        parts = [self.write(index, [TextDelta(refusal)] if refusal else [])]
        self._close(parts)
        delta = {"stop_reason": "refusal" if refusal else stop, "stop_sequence": None}
        parts.append(_event("message_delta", {"delta": delta, "usage": usage_of(usage), "shoal": shoal}))
        parts.append(_event("message_stop", {}))
        return b"".join(parts)

    def fail(self, error: NoAnswer) -> bytes:
        return b"event: error\ndata: " + _encode(error_object(face_of(error).status, error.message)) + b"\n\n"

    def _block(self, kind: str, begin: dict[str, Any], parts: list[bytes]) -> int:
        if self._open != kind:
            self._close(parts)
            self._start(kind, begin, parts)
        return self._blocks - 1

    def _tool(self, event: ToolCallDelta, parts: list[bytes]) -> int:
        block = self._tools.get(event.index)
        if block is None:
            self._close(parts)
            about = {"type": "tool_use", "id": event.id or new_id("toolu_"), "name": event.name, "input": {}}
            self._start(event.index, about, parts)
            block = self._tools[event.index] = self._blocks - 1
        return block

    def _start(self, kind: str | int, begin: dict[str, Any], parts: list[bytes]) -> None:
        parts.append(_event("content_block_start", {"index": self._blocks, "content_block": begin}))
        self._open = kind
        self._blocks += 1

    def _close(self, parts: list[bytes]) -> None:
        if self._open is not None:
            parts.append(_event("content_block_stop", {"index": self._blocks - 1}))
            self._open = None


def _event(kind: str, about: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **about}))


def _delta(block: int, delta: dict[str, Any]) -> bytes:
    return _event("content_block_delta", {"index": block, "delta": delta})


# -- errors ----------------------------------------------------------------------------------------------------


def error_object(status: int, message: str) -> dict[str, Any]:
    kind = TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def render_anthropic(error: Exception) -> tuple[int, list[Header], bytes]:
    """Any exception as Anthropic's clients know it; see errors.render."""
    status, headers, body = render(error)
    message = msgspec.json.decode(body)["error"]["message"]
    return status, headers, _encode(error_object(status, message))
