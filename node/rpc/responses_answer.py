"""OpenAI's responses on the wire: the whole JSON, and the events of a stream.

Format: https://platform.openai.com/docs/api-reference/responses-streaming. The `shoal` object stands in the response.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ...providers.base import Event, Finish, Logprobs, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from ..routing.no_answer import NoAnswer
from .chat_answer import KEEP_ALIVE, Whole, fields_of, new_id, refusal_of
from .errors import face_of
from .messages_answer import input_of
from .responses_request import ResponseCall

_encode = msgspec.json.Encoder().encode

_BARE: dict[str, Any] = {"parameters": None, "strict": None}
"""What a function has always got when it is told, though the caller may leave it out."""

_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}


def response_object(asked: ResponseCall, response_id: str, model: str | None) -> dict[str, Any]:
    """A response that has begun."""
    body, request = asked.body, asked.call.request
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model or "unknown",
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
        "store": False,
        "temperature": request.temperature,
        "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [_BARE | tool if tool["type"] == "function" else tool for tool in asked.tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def ended(
    response: dict[str, Any], reason: str, usage: Usage | None, shoal: dict[str, Any], finish: Finish | None
) -> dict[str, Any]:
    """The response with what is known at its end."""
    cut = _CUT.get(reason)
    answer = fields_of(finish)
    return {
        **response,
        **({"service_tier": answer["service_tier"]} if "service_tier" in answer else {}),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": cut} if cut else None,
        "usage": usage_of(usage),
        "shoal": shoal,
    }


def usage_of(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def response_body(asked: ResponseCall, whole: Whole, model: str | None, shoal: dict[str, Any]) -> bytes:
    """The whole answer."""
    output = []
    if whole.reasoning:
        output.append(_reasoning(new_id("rs_"), whole.reasoning))
    if whole.text:
        told = likely((whole.logprobs or {}).get("content", ()))
        output.append(_message(new_id("msg_"), whole.text, "completed", citations_of(whole.finish), told))
    elif refusal := whole.beside.get("refusal"):
        output.append(_refused(new_id("msg_"), refusal))
    for call in whole.tool_calls:
        function = call["function"]
        output.append(_call(asked, new_id("fc_"), call["id"], function["name"], function["arguments"], "completed"))
    response = {**response_object(asked, new_id("resp_"), model), "output": output}
    return _encode(ended(response, whole.reason, whole.usage, shoal, whole.finish))


def likely(tokens: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chat's list of tokens as an `output_text` has it: each with its bytes."""
    return [
        {**_token(token), "top_logprobs": [_token(top) for top in token.get("top_logprobs") or ()]} for token in tokens
    ]


def _token(told: dict[str, Any]) -> dict[str, Any]:
    token, of = str(told.get("token", "")), told.get("bytes")
    return {"token": token, "logprob": told.get("logprob"), "bytes": list(token.encode()) if of is None else of}


def in_event(told: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as the events of a stream have it: without the bytes."""
    return [{**_bare(token), "top_logprobs": [_bare(top) for top in token["top_logprobs"]]} for token in told]


def _bare(token: dict[str, Any]) -> dict[str, Any]:
    return {"token": token["token"], "logprob": token["logprob"]}


def _message(
    item_id: str, text: str, status: str, citations: Sequence[Any] = (), told: Sequence[Any] = ()
) -> dict[str, Any]:
    content = [_part(text, citations, told)] if status == "completed" else []
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _refused(item_id: str, refusal: str) -> dict[str, Any]:
    part = {"type": "refusal", "refusal": refusal}
    return {"id": item_id, "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def _part(text: str, citations: Sequence[Any] = (), told: Sequence[Any] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": citations, "logprobs": told}


def citations_of(finish: Finish | None) -> list[Any]:
    """The annotations of a chat completion in this API's form: what is in an object of its kind's name stands flat."""
    beside = finish.beside if finish is not None else None
    found = beside.get("message", {}).get("annotations", ()) if beside is not None else ()
    return [{"type": a.get("type"), **a.get(a.get("type"), {})} for a in found if isinstance(a, dict)]


def _reasoning(item_id: str, text: str) -> dict[str, Any]:
    return {"id": item_id, "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def _call(asked: ResponseCall, item_id: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    about = {"id": item_id, "status": status, "call_id": call_id or item_id.replace("fc_", "call_"), "name": name}
    if name in asked.customs:
        text = input_of({"arguments": arguments})
        said = text.get("input", arguments)
        return {**about, "type": "custom_tool_call", "input": said if isinstance(said, str) else arguments}
    return {**about, "type": "function_call", "arguments": arguments}


class _Item:
    """An item of the output while it is written."""

    def __init__(self, kind: str, item_id: str, index: int, call: ToolCallDelta | None = None) -> None:
        self.kind, self.id, self.index = kind, item_id, index
        self.call_id, self.name = (call.id, call.name) if call is not None else ("", "")
        self._said: list[str] = []
        self.told: list[dict[str, Any]] = []  # log probabilities of its tokens

    def add(self, text: str) -> None:
        self._said.append(text)

    @property
    def said(self) -> str:
        return "".join(self._said)


class ResponseEvents:
    """Writes the stream (`relay.Writer`). Calls of tools stay open to the end, as their pieces may be mixed."""

    keep_alive = KEEP_ALIVE

    def __init__(self, asked: ResponseCall, model: str | None) -> None:
        self._asked = asked
        self._response = response_object(asked, new_id("resp_"), model)
        self._sequence = -1
        self._items: list[_Item] = []
        self._open: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._output: dict[int, dict[str, Any]] = {}
        self._citations: list[Any] = []

    def write(self, index: int, events: Iterable[Event]) -> bytes:
        parts: list[bytes] = []
        self._begin(parts)
        text = ""  # of a delta that may still get its log probabilities
        for event in events:
            if text and type(event) is not Logprobs:
                text = self._say(text, (), parts)
            if type(event) is TextDelta:
                text = event.text
            elif type(event) is Logprobs:
                text = self._say(text, likely(event.tokens), parts)
            elif type(event) is ReasoningDelta:
                item = self._item("reasoning", "rs_", parts)
                item.add(event.text)
                about = {"item_id": item.id, "output_index": item.index, "content_index": 0}
                parts.append(self._event("response.reasoning_text.delta", {**about, "delta": event.text}))
            elif type(event) is ToolCallDelta:
                item = self._tool(event, parts)
                item.add(event.arguments)
                if event.arguments and item.name not in self._asked.customs:
                    about = {"item_id": item.id, "output_index": item.index, "delta": event.arguments}
                    parts.append(self._event("response.function_call_arguments.delta", about))
        if text:
            self._say(text, (), parts)
        return b"".join(parts)

    def _say(self, text: str, told: Sequence[dict[str, Any]], parts: list[bytes]) -> str:
        """A piece of the text, which may be empty where only its log probabilities are new; what is left of it."""
        item = self._item("message", "msg_", parts)
        item.add(text)
        item.told += told
        about = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        logprobs = in_event(told)
        parts.append(self._event("response.output_text.delta", {**about, "delta": text, "logprobs": logprobs}))
        return ""

    def finish(self, index: int, finish: Finish) -> bytes:
        return b""

    def end(self, index: int, finish: Finish, usage: Usage | None, shoal: dict[str, Any]) -> bytes:
        parts: list[bytes] = []
        self._begin(parts)
        self._citations = citations_of(finish)
        self._close(parts)
        for item in self._calls.values():
            self._done(item, parts)
        if refusal := refusal_of(finish):
            self._refuse(refusal, parts)
        output = [self._output[index] for index in sorted(self._output)]
        response = ended({**self._response, "output": output}, finish.reason, usage, shoal, finish)
        parts.append(self._event(f"response.{response['status']}", {"response": response}))
        return b"".join(parts)

    def fail(self, error: NoAnswer) -> bytes:
        face = face_of(error)
        about = {"code": face.code or face.type, "message": error.message}
        return self._event("response.failed", {"response": {**self._response, "status": "failed", "error": about}})

    def _begin(self, parts: list[bytes]) -> None:
        if self._sequence < 0:
            parts.append(self._event("response.created", {"response": self._response}))
            parts.append(self._event("response.in_progress", {"response": self._response}))

    def _event(self, kind: str, about: dict[str, Any]) -> bytes:
        self._sequence += 1
        data = _encode({"type": kind, "sequence_number": self._sequence, **about})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def _item(self, kind: str, prefix: str, parts: list[bytes]) -> _Item:
        if self._open is not None and self._open.kind == kind:
            return self._open
        self._close(parts)
        item = self._open = self._added(_Item(kind, new_id(prefix), len(self._items)), parts)
        if kind == "message":
            about = {"item_id": item.id, "output_index": item.index, "content_index": 0, "part": _part("")}
            parts.append(self._event("response.content_part.added", about))
        return item

    def _tool(self, event: ToolCallDelta, parts: list[bytes]) -> _Item:
        item = self._calls.get(event.index)
        if item is None:
            self._close(parts)
            item = self._calls[event.index] = _Item("call", new_id("fc_"), len(self._items), event)
            self._added(item, parts)
        return item

    def _added(self, item: _Item, parts: list[bytes]) -> _Item:
        self._items.append(item)
        about = {"output_index": item.index, "item": self._shown(item, "in_progress")}
        parts.append(self._event("response.output_item.added", about))
        return item

    def _refuse(self, refusal: str, parts: list[bytes]) -> None:
        """The whole of a refusal at once: a message with a part of its own kind."""
        item = self._added(_Item("message", new_id("msg_"), len(self._items)), parts)
        about = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        whole = {"type": "refusal", "refusal": refusal}
        parts.append(self._event("response.content_part.added", {**about, "part": {**whole, "refusal": ""}}))
        parts.append(self._event("response.refusal.delta", {**about, "delta": refusal}))
        parts.append(self._event("response.refusal.done", {**about, "refusal": refusal}))
        parts.append(self._event("response.content_part.done", {**about, "part": whole}))
        shown = self._output[item.index] = _refused(item.id, refusal)
        parts.append(self._event("response.output_item.done", {"output_index": item.index, "item": shown}))

    def _close(self, parts: list[bytes]) -> None:
        if self._open is not None:
            self._done(self._open, parts)
            self._open = None

    def _done(self, item: _Item, parts: list[bytes]) -> None:
        said = item.said
        about = {"item_id": item.id, "output_index": item.index}
        if item.kind == "message":
            text = {**about, "content_index": 0}
            logprobs = in_event(item.told)
            parts.append(self._event("response.output_text.done", {**text, "text": said, "logprobs": logprobs}))
            part = _part(said, self._citations, item.told)
            parts.append(self._event("response.content_part.done", {**text, "part": part}))
        elif item.kind == "reasoning":
            parts.append(self._event("response.reasoning_text.done", {**about, "content_index": 0, "text": said}))
        elif item.name not in self._asked.customs:
            done = {**about, "name": item.name, "arguments": said}
            parts.append(self._event("response.function_call_arguments.done", done))
        shown = self._output[item.index] = self._shown(item, "completed")
        if shown["type"] == "custom_tool_call":
            parts.append(self._event("response.custom_tool_call_input.done", {**about, "input": shown["input"]}))
        parts.append(self._event("response.output_item.done", {"output_index": item.index, "item": shown}))

    def _shown(self, item: _Item, status: str) -> dict[str, Any]:
        if item.kind == "message":
            return _message(item.id, item.said, status, self._citations, item.told)
        if item.kind == "reasoning":
            found = _reasoning(item.id, item.said)
            return found if status == "completed" else {**found, "content": []}
        return _call(self._asked, item.id, item.call_id, item.name, item.said, status)
