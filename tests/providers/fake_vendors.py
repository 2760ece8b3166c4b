"""A FAKE of three vendors' APIs on loopback, for the command-line tools: nothing here was said by a real model.

    async with FakeVendors() as vendors: ... vendors.base("s429ra") ...

It speaks OpenAI Responses (`POST .../responses`, for codex), Anthropic Messages (`POST .../messages`, for claude) and
Gemini (`POST .../v1beta/models/M:streamGenerateContent`, for gemini), well enough for the real tools, and OpenAI Chat
through fake_upstream.py (for copilot). The scenario stands in the path as it does there: http://127.0.0.1:PORT/s/cut/...
ok each slowN hold wordsN, sNNN and s429ra, hang drop stall cut reset errmid malformed empty length filter: as there.
  toolcall     the first answer asks for a shell command and for a file, both in `vendors.targets`; the next is text
  s404         what the vendor says of a model that it does not have
What each vendor sends was taken from its documentation and from what its tool accepts.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from shoal.providers.base import ErrorKind

from . import fake_upstream
from .fake_answers import FOREVER, End, Hold, Recorded, Step, Traits, encode

FAILURES: dict[str, ErrorKind] = {
    "s401": ErrorKind.AUTH,
    "s402": ErrorKind.QUOTA,
    "s403": ErrorKind.AUTH,
    "s404": ErrorKind.UNAVAILABLE,
    "s429": ErrorKind.RATE_LIMITED,
    "s429ra": ErrorKind.RATE_LIMITED,
    "s500": ErrorKind.UPSTREAM,
    "s503": ErrorKind.OVERLOADED,
    "s529": ErrorKind.OVERLOADED,
    "drop": ErrorKind.CONNECTION,
    "cut": ErrorKind.INTERRUPTED,
    "errmid": ErrorKind.INTERRUPTED,
    "malformed": ErrorKind.INTERRUPTED,
    "empty": ErrorKind.UPSTREAM,
}
"""What each scenario that fails is to the provider of a tool."""

TEXTS = {
    400: "Bad request: stub",
    401: "Invalid API key: stub",
    402: "Insufficient credits: stub",
    403: "Forbidden: stub",
    404: "The model `missing` does not exist: stub",
    429: "Rate limit exceeded: stub",
    500: "Internal server error: stub",
    503: "Service unavailable: stub",
    529: "Overloaded: stub",
}
_OPENAI = {
    401: "invalid_api_key",
    402: "insufficient_quota",
    404: "model_not_found",
    429: "rate_limit_exceeded",
    500: "server_error",
    503: "server_error",
}
_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}
_GOOGLE = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    529: "UNAVAILABLE",
}


class FakeVendors(fake_upstream.FakeUpstream):
    """See the module. targets: the folder that a `toolcall` wants the files `by-shell` and `by-tool` in."""

    def __init__(self, targets: Path = Path("/nonexistent")) -> None:
        super().__init__()
        self.targets = targets

    def base(self, scenario: str = "ok", path: str = "") -> str:
        """A scenario's base URL, without /v1 (claude, gemini) unless `path` says so (codex, copilot)."""
        return self.url(scenario, path)

    @property
    def asked(self) -> list[Recorded]:
        """The requests for an answer."""
        return [r for r in self.requests if r.method == "POST" and "count" not in r.path]

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            connection, _ = await listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            nursery.start_soon(_Connection(self, connection).run)


class _Connection(fake_upstream._Connection):
    async def _answer(self, request: Recorded) -> bool:
        traits, path = Traits(request.scenario), request.path.partition("?")[0].rstrip("/")
        if request.method == "HEAD":
            await self._send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return True
        vendor: type[_Vendor]
        if path.endswith("/chat/completions"):
            vendor = _Chat
        elif path.endswith("/responses"):
            vendor = _Responses
        elif path.endswith("/messages"):
            vendor = _Messages
        elif re.search(r"/models/[^/]+:(stream)?[gG]enerateContent$", path):
            vendor = _Gemini
        elif path.endswith(("/messages/count_tokens", ":countTokens")):
            return await self._json(200, {"input_tokens": 7, "totalTokens": 7})
        else:
            return await super()._answer(request)
        if "hang" in traits:
            await self._pause(FOREVER)
        if "drop" in traits:
            return False
        if "garbage" in traits:
            await self._send(b"220 mail.example ESMTP ready\r\n")
            return False
        upstream = self._upstream
        assert isinstance(upstream, FakeVendors)
        said = vendor(request, traits, upstream.targets)
        if (status := traits.status) is not None:
            headers = "Retry-After: 7\r\n" if "s429ra" in traits else ""
            return await self._json(status, said.error(status), headers)
        if vendor is _Chat and not said.wants_tools:
            return await super()._answer(request)
        return await self._stream(traits, said.steps())


class _Vendor:
    """One request to one vendor."""

    def __init__(self, request: Recorded, traits: Traits, targets: Path) -> None:
        self.body: dict[str, Any] = request.body if isinstance(request.body, dict) else {}
        self.model = str(self.body.get("model", "stub"))
        self.traits = traits
        self.shell, self.file = f"touch {targets}/by-shell", f"{targets}/by-tool"
        self.wants_tools = "toolcall" in traits and not self.has_tool_results()
        self.words = [] if "empty" in traits else self._words()

    def _words(self) -> list[str]:
        if "words" in self.traits:
            return [f"word{i} " for i in range(self.traits.number("words", 50))]
        return re.findall(r"\S+\s*|\s+", f"ECHO<{self.prompt().strip()[:4000]}>")

    def steps(self) -> Iterator[Step]:
        yield from self.call() if self.wants_tools else self.text()

    def pieces(self) -> Iterator[Step | str | None]:
        """The words with what befalls the stream between them; None ends it (an error event was sent)."""
        pause = self.traits.number("slow", 80) / 1000
        for i, word in enumerate(self.words):
            if "slow" in self.traits:
                yield pause
            if i == 2:
                if "stall" in self.traits:
                    yield FOREVER
                if "hold" in self.traits:
                    yield Hold()
                if "cut" in self.traits or "reset" in self.traits:
                    yield 0.05
                    yield End(reset="reset" in self.traits)
                if "errmid" in self.traits:
                    yield self.failed()
                    yield None
                if "malformed" in self.traits:
                    yield b'data: {"type": "br\n\n'
                    yield None
            yield word

    # What a vendor has of its own.
    def prompt(self) -> str:
        raise NotImplementedError

    def has_tool_results(self) -> bool:
        raise NotImplementedError

    def text(self) -> Iterator[Step]:
        raise NotImplementedError

    def call(self) -> Iterator[Step]:
        raise NotImplementedError

    def failed(self) -> bytes:
        raise NotImplementedError

    def error(self, status: int) -> object:
        raise NotImplementedError


def _flat(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return str(content.get("text") or "") or _flat(content.get("parts") or content.get("content") or "")
    return "\n".join(text for part in content if (text := _flat(part))) if isinstance(content, list) else ""


def _last(messages: object, role: str = "user") -> str:
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == role:
            content = message.get("content", message.get("parts"))
            if isinstance(content, list):
                texts = [_flat(part) for part in content if _flat(part)]
                return texts[-1] if texts else ""
            return _flat(content)
    return ""


def _event(data: dict[str, Any], named: bool = True) -> bytes:
    head = f"event: {data['type']}\n".encode() if named else b""
    return head + b"data: " + encode(data) + b"\n\n"


class _Chat(_Vendor):
    """Only errors and tool calls: the text is fake_upstream.py's."""

    def prompt(self) -> str:
        return ""

    def has_tool_results(self) -> bool:
        return any(m.get("role") == "tool" for m in self.body.get("messages") or [])

    def error(self, status: int) -> object:
        kind = _OPENAI.get(status, "invalid_request_error")
        return {"error": {"message": TEXTS.get(status, "stub"), "type": kind, "param": None, "code": kind}}

    def call(self) -> Iterator[Step]:
        base = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": self.model}
        calls = [
            _function(0, "bash", {"command": self.shell, "description": "x"}),
            _function(1, "create", {"path": self.file, "file_text": "x"}),
        ]
        for delta, finish in (({"role": "assistant", "content": None, "tool_calls": calls}, None), ({}, "tool_calls")):
            yield _event({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}, named=False)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        yield _event({**base, "choices": [], "usage": usage}, named=False)
        yield b"data: [DONE]\n\n"


def _function(index: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": encode(arguments).decode()}
    return {"index": index, "id": f"call_{index}", "type": "function", "function": function}


class _Responses(_Vendor):
    """OpenAI Responses, streamed."""

    def prompt(self) -> str:
        said = self.body.get("input")
        return said if isinstance(said, str) else _last(said)

    def has_tool_results(self) -> bool:
        said = self.body.get("input")
        return isinstance(said, list) and any(str(i.get("type")).endswith("call_output") for i in said)

    def error(self, status: int) -> object:
        return _Chat.error(self, status)  # type: ignore[arg-type]

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        about = {"id": "resp_stub", "object": "response", "created_at": 0, "model": self.model, "status": status}
        return {**about, "output": [], "usage": None, "error": None, "incomplete_details": None, **more}

    def failed(self) -> bytes:
        error = {"code": "server_error", "message": "Provider disconnected: stub"}
        return _event({"type": "response.failed", "response": self._response("failed", error=error)})

    def text(self) -> Iterator[Step]:
        item = {"id": "msg_stub", "type": "message", "role": "assistant", "status": "completed"}
        yield _event({"type": "response.created", "response": self._response("in_progress")})
        started = {**item, "status": "in_progress", "content": []}
        yield _event({"type": "response.output_item.added", "output_index": 0, "item": started})
        at = {"item_id": "msg_stub", "output_index": 0, "content_index": 0}
        for piece in self.pieces():
            if piece is None:
                return
            if isinstance(piece, str):
                piece = _event({"type": "response.output_text.delta", **at, "delta": piece})
            yield piece
        part = {"type": "output_text", "text": "".join(self.words), "annotations": []}
        done = {**item, "content": [part]}
        yield _event({"type": "response.output_item.done", "output_index": 0, "item": done})
        count = len(self.words)
        usage = {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 3},
            "output_tokens": count,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 11 + count,
        }
        if "length" in self.traits or "filter" in self.traits:
            why = {"reason": "max_output_tokens" if "length" in self.traits else "content_filter"}
            response = self._response("incomplete", output=[done], usage=usage, incomplete_details=why)
            yield _event({"type": "response.incomplete", "response": response})
        else:
            yield _event(
                {"type": "response.completed", "response": self._response("completed", output=[done], usage=usage)}
            )

    def call(self) -> Iterator[Step]:
        calls = [
            ("shell", {"command": ["bash", "-c", self.shell]}),
            ("exec_command", {"cmd": self.shell}),
            ("shell_command", {"command": self.shell}),
            ("apply_patch", {"input": f"*** Begin Patch\n*** Add File: {self.file}\n+x\n*** End Patch\n"}),
        ]
        yield _event({"type": "response.created", "response": self._response("in_progress")})
        items: list[dict[str, Any]] = []
        for i, (name, arguments) in enumerate(calls):
            item: dict[str, Any] = {"id": f"fc_{i}", "call_id": f"call_{i}", "name": name, "status": "completed"}
            if name == "apply_patch":
                item |= {"type": "custom_tool_call", "input": arguments["input"]}
            else:
                item |= {"type": "function_call", "arguments": encode(arguments).decode()}
            items.append(item)
            yield _event({"type": "response.output_item.added", "output_index": i, "item": item})
            yield _event({"type": "response.output_item.done", "output_index": i, "item": item})
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        response = self._response("completed", output=items, usage=usage)
        yield _event({"type": "response.completed", "response": response})


class _Messages(_Vendor):
    """Anthropic Messages, streamed."""

    def prompt(self) -> str:
        return _last(self.body.get("messages"))

    def has_tool_results(self) -> bool:
        return any(
            isinstance(part, dict) and part.get("type") == "tool_result"
            for message in self.body.get("messages") or []
            if isinstance(message.get("content"), list)
            for part in message["content"]
        )

    def error(self, status: int) -> object:
        error = {"type": _ANTHROPIC.get(status, "api_error"), "message": TEXTS.get(status, "stub")}
        return {"type": "error", "error": error, "request_id": "req_stub"}

    def failed(self) -> bytes:
        return _event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded: stub"}})

    def _start(self) -> bytes:
        usage = {
            "input_tokens": 11,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 1,
        }
        message = {"id": "msg_stub", "type": "message", "role": "assistant", "model": self.model, "content": []}
        return _event(
            {
                "type": "message_start",
                "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage},
            }
        )

    def _end(self, reason: str, tokens: int) -> Iterator[bytes]:
        delta = {"stop_reason": reason, "stop_sequence": None}
        yield _event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": tokens}})
        yield _event({"type": "message_stop"})

    def text(self) -> Iterator[Step]:
        yield self._start()
        if self.words:
            yield _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
            yield _event({"type": "ping"})
            for piece in self.pieces():
                if piece is None:
                    return
                if isinstance(piece, str):
                    delta = {"type": "text_delta", "text": piece}
                    piece = _event({"type": "content_block_delta", "index": 0, "delta": delta})
                yield piece
            yield _event({"type": "content_block_stop", "index": 0})
        reason = "max_tokens" if "length" in self.traits else "refusal" if "filter" in self.traits else "end_turn"
        yield from self._end(reason, len(self.words))

    def call(self) -> Iterator[Step]:
        yield self._start()
        calls = [
            ("Bash", {"command": self.shell, "description": "x"}),
            ("Write", {"file_path": self.file, "content": "x"}),
        ]
        for i, (name, arguments) in enumerate(calls):
            block = {"type": "tool_use", "id": f"toolu_{i}", "name": name, "input": {}}
            yield _event({"type": "content_block_start", "index": i, "content_block": block})
            delta = {"type": "input_json_delta", "partial_json": encode(arguments).decode()}
            yield _event({"type": "content_block_delta", "index": i, "delta": delta})
            yield _event({"type": "content_block_stop", "index": i})
        yield from self._end("tool_use", 1)


class _Gemini(_Vendor):
    """Gemini's streamGenerateContent."""

    def prompt(self) -> str:
        return _last(self.body.get("contents"))

    def has_tool_results(self) -> bool:
        contents = self.body.get("contents") or []
        return any("functionResponse" in part for content in contents for part in content.get("parts") or [])

    def error(self, status: int) -> object:
        return {
            "error": {"code": status, "message": TEXTS.get(status, "stub"), "status": _GOOGLE.get(status, "UNKNOWN")}
        }

    def failed(self) -> bytes:
        return b"data: " + encode(self.error(503)) + b"\n\n"

    def _candidate(self, parts: list[dict[str, Any]], finish: str | None, tokens: int) -> bytes:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        usage = {"promptTokenCount": 11, "totalTokenCount": 11 + tokens}
        if finish is not None:
            candidate["finishReason"] = finish
            usage["candidatesTokenCount"] = tokens
        return (
            b"data: "
            + encode({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "stub", "responseId": "stub"})
            + b"\n\n"
        )

    def text(self) -> Iterator[Step]:
        finish = "MAX_TOKENS" if "length" in self.traits else "SAFETY" if "filter" in self.traits else "STOP"
        for piece in self.pieces():
            if piece is None:
                return
            yield self._candidate([{"text": piece}], None, 0) if isinstance(piece, str) else piece
        yield self._candidate([{"text": ""}], finish, len(self.words))

    def call(self) -> Iterator[Step]:
        calls = [
            ("run_shell_command", {"command": self.shell}),
            ("write_file", {"file_path": self.file, "content": "x"}),
        ]
        parts = [{"functionCall": {"name": name, "args": arguments}} for name, arguments in calls]
        yield self._candidate(parts, "STOP", 1)
