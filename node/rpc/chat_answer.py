"""Chat completions on the wire: the whole JSON, and the chunks of a stream, written with as little work as can be.

A chunk differs from the next only in its delta; what is around it is encoded once for each stream.
The `shoal` object stands in the whole answer and in the last chunk of a stream, where the CID is known:
    {"provider", "model", "peer", "cache", "cid", "request", "route": [{provider, model, outcome, ms, ...}]}
"""

from __future__ import annotations

import functools
import itertools
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ...cache.record import Record
from ...protocols.http.message import Header, header_lines
from ...providers.base import Event, Finish, Logprobs, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from ..routing.answer import Answer
from ..routing.attempt import CACHES, Attempt, header_safe, route_header
from ..routing.no_answer import NoAnswer
from ..routing.recording import Found
from .errors import JSON, stream_error

STREAM: Header = ("content-type", "text/event-stream; charset=utf-8")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
AT_THE_END: Header = ("cache-control", "no-cache")

_encode = msgspec.json.Encoder().encode
_run = secrets.token_hex(8)
_ids = (f"{_run}{i:08x}" for i in itertools.count(1))


def new_id(prefix: str = "chatcmpl-") -> str:
    """An id unlike any other: a part that this run of the node has drawn, and a counted one."""
    return prefix + next(_ids)


# -- streams ---------------------------------------------------------------------------------------------------


class Chunks:
    """Writes the chunks of one stream (`relay.Writer`). Usage and the end go together into the last piece, by `end`."""

    keep_alive = KEEP_ALIVE

    def __init__(self, completion_id: str, model: str | None, *, include_usage: bool) -> None:
        shared = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model or "unknown",
        }
        self._object = _encode(shared)[:-1]
        self._usage_after = b',"usage":null' if include_usage else b""
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._usage_after + b"}\n\n"
        self._include_usage = include_usage
        self._before: dict[int, bytes] = {}

    def write(self, index: int, events: Iterable[Event]) -> bytes:
        """The deltas among `events`, a chunk each; before a choice's first one, the chunk that names the role."""
        after = self._after
        parts: list[bytes] = []
        before = self._before.get(index)
        if before is None:
            before = self._before[index] = self._object_of(index)
            parts += (b"data: ", before, b'{"role":"assistant","content":""}', after)
        for event in events:
            if type(event) is TextDelta:
                parts += (b"data: ", before, b'{"content":', _encode(event.text), b"}", after)
            elif type(event) is ReasoningDelta:
                parts += (b"data: ", before, b'{"reasoning_content":', _encode(event.text), b"}", after)
            elif type(event) is ToolCallDelta:
                parts += (b"data: ", before, b'{"tool_calls":[', _encode(_tool_delta(event)), b"]}", after)
            elif type(event) is Logprobs:
                counted = b'},"logprobs":' + _encode({"content": event.tokens, "refusal": None})
                if len(parts) > 1 and parts[-1] is after and parts[-4] == b'{"content":':
                    parts[-2:] = (counted, _NO_REASON, self._usage_after, b"}\n\n")  # they speak of this text
                else:
                    parts += (b"data: ", before, b'{"content":""', counted, _NO_REASON, self._usage_after, b"}\n\n")
        return b"".join(parts)

    def finish(self, index: int, finish: Finish) -> bytes:
        """The finish of a choice that is not the last one."""
        return self._finish(index, finish) + b"}\n\n"

    def end(self, index: int, finish: Finish, usage: Usage | None, shoal: dict[str, Any]) -> bytes:
        """The finish, the usage where it was asked for, and the mark after which nothing comes."""
        about = b',"shoal":' + _encode(shoal) + b"}\n\n"
        last = self._finish(index, finish)
        if not self._include_usage:
            return last + about + DONE
        counted = b',"usage":' + _encode(usage_object(usage, finish))
        return last + b"}\n\ndata: " + self._object + b',"choices":[]' + counted + about + DONE

    def fail(self, error: NoAnswer) -> bytes:
        """The reason, and no end mark."""
        return event_bytes(stream_error(error))

    def _finish(self, index: int, finish: Finish) -> bytes:
        if finish.beside is not None:
            return self._finish_with(index, finish, finish.beside)
        before = self._before.get(index) or self._object_of(index)
        reason = b'{},"logprobs":null,"finish_reason":' + _encode(finish.reason) + b"}]"
        return b"data: " + before + reason + self._usage_after

    def _finish_with(self, index: int, finish: Finish, beside: Mapping[str, Mapping[str, Any]]) -> bytes:
        """The same with what an upstream said beside the text; from now on chunks have its fields of the answer."""
        before = b""
        if message := beside.get("message"):
            delta = {name: value for name, value in message.items() if name != "tool_calls"}
            if calls := message.get("tool_calls"):
                delta["tool_calls"] = [{"index": int(at), **fields} for at, fields in calls.items()]
            before = b"data: " + (self._before.get(index) or self._object_of(index)) + _encode(delta) + self._after
        if answer := beside.get("answer"):
            self._object += b"," + _encode(answer)[1:-1]
        reason = b'{},"logprobs":null,"finish_reason":' + _encode(finish.reason)
        if choice := beside.get("choice"):
            reason += b"," + _encode(choice)[1:-1]
        return before + b"data: " + self._object_of(index) + reason + b"}]" + self._usage_after

    def _object_of(self, index: int) -> bytes:
        return self._object + b',"choices":[{"index":%d,"delta":' % index


_NO_REASON = b',"finish_reason":null}]'


def _tool_delta(event: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, str] = {"arguments": event.arguments}
    delta: dict[str, Any] = {"index": event.index, "function": function}
    if event.name:
        function["name"] = event.name
    if event.id:
        delta["id"] = event.id
        delta["type"] = "function"
    return delta


def event_bytes(value: Any) -> bytes:
    """One server-sent event with JSON in it."""
    return b"data: " + _encode(value) + b"\n\n"


# -- whole answers ---------------------------------------------------------------------------------------------


class Whole:
    """Collects events into the body of one answer."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._logprobs: list[Any] = []
        self._reasoning: list[str] = []
        self._tools: dict[int, dict[str, Any]] = {}
        self.usage: Usage | None = None
        self.finish: Finish | None = None

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            if type(event) is TextDelta:
                self._text.append(event.text)
            elif type(event) is Usage:
                self.usage = event
            elif type(event) is Finish:
                self.finish = event
            elif type(event) is ReasoningDelta:
                self._reasoning.append(event.text)
            elif type(event) is ToolCallDelta:
                self._take_tool(event)
            elif type(event) is Logprobs:
                self._logprobs.extend(event.tokens)

    def _take_tool(self, event: ToolCallDelta) -> None:
        call = self._tools.setdefault(
            event.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = event.id or call["id"]
        call["function"]["name"] = event.name or call["function"]["name"]
        call["function"]["arguments"] += event.arguments

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """In OpenAI's shape, in the order of their indices."""
        return [self._tools[i] for i in sorted(self._tools)]

    @property
    def reason(self) -> str:
        return self.finish.reason if self.finish else "stop"

    @property
    def logprobs(self) -> dict[str, Any] | None:
        return {"content": self._logprobs, "refusal": None} if self._logprobs else None

    @property
    def plain(self) -> bool:
        """Whether it is a text and nothing else."""
        finish, usage = self.finish, self.usage
        if finish is None or finish.beside is not None or usage is None or usage.cost is not None:
            return False
        return not (self._tools or self._reasoning or self._logprobs)

    def choice(self, index: int) -> dict[str, Any]:
        """This answer as one choice of a chat completion."""
        text, beside = self.text, self.beside
        content = text if text or not (self._tools or beside) else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = self.reasoning
        if self._tools:
            message["tool_calls"] = self.tool_calls
        choice = {"index": index, "message": message, "logprobs": self.logprobs, "finish_reason": self.reason}
        if self.finish is not None and self.finish.beside is not None:
            message |= {name: value for name, value in beside.items() if name != "tool_calls"}
            for at, fields in beside.get("tool_calls", {}).items():
                self._tools.get(int(at), {}).update(fields)
            choice |= self.finish.beside.get("choice", {})
        return choice

    @property
    def beside(self) -> Mapping[str, Any]:
        """What an upstream's message had beside text, thoughts and calls: `refusal`, `annotations` ..."""
        finish = self.finish
        return {} if finish is None or finish.beside is None else finish.beside.get("message", {})


def fields_of(finish: Finish | None) -> Mapping[str, Any]:
    """What an upstream said of the whole answer: `system_fingerprint`, `service_tier` ..."""
    return {} if finish is None or finish.beside is None else finish.beside.get("answer", {})


def refusal_of(finish: Finish) -> str:
    """What an upstream's model said in place of an answer; empty when it answered."""
    said = finish.beside.get("message", {}).get("refusal") if finish.beside is not None else None
    return said if isinstance(said, str) else ""


def tail_of_record(found: Found, request: str | None) -> bytes:
    """A whole answer out of a record, behind its id and time: the short way of a cache hit."""
    record = found.record
    message = {"role": "assistant", "content": record.content, "refusal": None}
    return _encode(
        {
            "model": record.model or "unknown",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": record.finish}],
            "usage": usage_object(_cached_usage(record)),
            "shoal": shoal_of(found, request),
        }
    )[1:]


def _cached_usage(record: Record) -> Usage | None:
    """As `events()` of the cache tells it: the prompt came out of a cache, and nothing was spent."""
    usage = record.usage
    if usage is None:
        return None
    cost = None if usage.cost is None else 0.0
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens, usage.reasoning_tokens, cost)


def completion(
    completion_id: str,
    model: str | None,
    choices: list[dict[str, Any]],
    usage: Usage | None,
    shoal: dict[str, Any],
    kind: str = "chat.completion",
    finish: Finish | None = None,
) -> bytes:
    """The body of a whole answer. finish: of the choice that speaks for all where an upstream said more."""
    body: dict[str, Any] = {
        "id": completion_id,
        "object": kind,
        "created": int(time.time()),
        "model": model or "unknown",
        "choices": choices,
        "usage": usage_object(usage, finish),
        "shoal": shoal,
    }
    body |= fields_of(finish)
    return _encode(body)


_PLAIN = (
    b'{"id":"%b","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,"message":'
    b'{"role":"assistant","content":%b,"refusal":null},"logprobs":null,"finish_reason":%b}],"usage":'
    b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d},'
    b'"completion_tokens_details":{"reasoning_tokens":%d}},"shoal":%b}'
)


def plain_completion(completion_id: str, model: str | None, whole: Whole, usage: Usage, shoal: dict[str, Any]) -> bytes:
    """The same body as `completion` gives for one `plain` choice, written with half the work."""
    counts = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.cached_tokens
    about = completion_id.encode(), int(time.time()), _encode(model or "unknown")
    return _PLAIN % (
        *about,
        _encode(whole.text),
        _encode(whole.reason),
        *counts,
        usage.reasoning_tokens,
        _encode(shoal),
    )


def usage_object(usage: Usage | None, finish: Finish | None = None) -> dict[str, Any] | None:
    """OpenAI's usage, with what a provider told about the price; None when nobody counted."""
    if usage is None:
        return None
    counted: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    if usage.cost is not None:
        counted["cost"] = usage.cost
    if finish is not None and finish.beside is not None:
        for name, value in finish.beside.get("usage", {}).items():
            counted[name] = counted[name] | value if name in counted else value
    return counted


# -- where it came from ----------------------------------------------------------------------------------------


_HITS = {tier: (Attempt(provider=f"cache:{tier}", outcome="hit"),) for tier in CACHES}


def hit_of(tier: str) -> tuple[Attempt, ...]:
    """The end of a route that led to a cache, as `route_header` writes it; empty for any other."""
    return _HITS.get(tier, ())


def shoal_object(answer: Answer) -> dict[str, Any]:
    flight = answer.flight
    return {
        "provider": flight.provider,
        "model": flight.model,
        "peer": flight.peer,
        "cache": flight.cache,
        "cid": flight.response_cid,
        "request": answer.request_key,
        "route": [*flight.route, *hit_of(flight.cache)],
    }


def shoal_of(found: Found, request: str | None) -> dict[str, Any]:
    return {
        "provider": found.provider,
        "model": found.model,
        "peer": found.peer,
        "cache": found.tier,
        "cid": found.cid,
        "request": request,
        "route": hit_of(found.tier),
    }


def headers_of(answer: Answer, *kind: Header) -> tuple[list[Header], str]:
    """The x-shoal-* headers, as far as things are known now, and as lines those that many answers share."""
    flight = answer.flight
    headers: list[Header] = []
    if flight.response_cid is not None:
        headers.append(("x-shoal-cid", flight.response_cid))
    if route := route_header(flight.route, flight.cache):
        headers.append(("x-shoal-route", route))
    return headers, _shared_lines(flight.provider, flight.peer, flight.cache, kind)


@functools.lru_cache(maxsize=1024)
def _shared_lines(provider: str | None, peer: str | None, cache: str, kind: tuple[Header, ...]) -> str:
    headers = list(kind)
    if provider is not None:
        headers += (("x-shoal-provider", header_safe(provider)), ("x-shoal-peer", peer or "local"))
    return header_lines(*headers, ("x-shoal-cache", cache))


def headers_of_record(found: Found) -> list[Header]:
    return [
        JSON,
        ("x-shoal-provider", header_safe(found.provider)),
        ("x-shoal-peer", found.peer or "local"),
        ("x-shoal-cache", found.tier),
        ("x-shoal-cid", found.cid),
        ("x-shoal-route", route_header((), found.tier)),
    ]
