"""What the fake upstream says: scenarios as bodies and as scripts of a stream. Pure; the server is fake_upstream.py."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

MODELS = ("stub", "stub-2", "echo")
_MESSAGES = {
    400: "Bad request: stub",
    401: "Incorrect API key provided: sk-wrong",
    402: "Insufficient credits: stub",
    403: "Forbidden: stub",
    404: "The model `missing` does not exist: stub",
    429: "Rate limit exceeded: stub",
    500: "Internal server error: stub",
    502: "Bad gateway: stub",
    503: "Service unavailable: stub",
    529: "Overloaded: stub",
}
_TYPES = {
    401: "invalid_api_key",
    404: "model_not_found",
    429: "rate_limit_exceeded",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    529: "overloaded_error",
}
_ROUTER_TYPES = {
    401: "authentication",
    402: "payment_required",
    403: "permission_denied",
    404: "not_found",
    429: "rate_limit_exceeded",
    500: "server",
    502: "provider_unavailable",
    503: "provider_overloaded",
}
encode = msgspec.json.Encoder().encode
FOREVER = 3600.0


class Recorded(NamedTuple):
    """One request as it came."""

    scenario: str
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class End(NamedTuple):
    """The connection ends here: with a FIN, or with a RST."""

    reset: bool


class Hold(NamedTuple):
    """Go on after `release()`."""


Step = bytes | float | End | Hold
"""An event's bytes, a pause in seconds, or what else happens in a stream."""


class Traits:
    """A scenario's parts: names, and the number behind a name ("slow5")."""

    def __init__(self, scenario: str) -> None:
        self.text = scenario
        self._parts: dict[str, int | None] = {}
        for part in scenario.split("+"):
            match = re.fullmatch(r"(slow|words|busy)(\d+)", part)
            self._parts[match[1] if match else part] = int(match[2]) if match else None

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def number(self, name: str, otherwise: int) -> int:
        value = self._parts.get(name)
        return otherwise if value is None else value

    @property
    def status(self) -> int | None:
        match = re.match(r"s([45]\d\d)", self.text)
        return int(match[1]) if match else None


def _words(body: dict[str, Any], traits: Traits) -> list[str]:
    words = _all_words(body, traits)
    messages = body.get("messages") or [{}]
    if messages[-1].get("role") != "assistant" or "restarts" in traits:
        return words
    said = str(messages[-1].get("content"))  # a final assistant message is gone on with
    while words and said.startswith(words[0]):
        said = said.removeprefix(words.pop(0))
    if words:
        words[0] = words[0].removeprefix(said)
    return words


SHELLS = {"Bash": "command", "shell_command": "command", "exec_command": "cmd", "shell": "command"}
"""How coding tools call the tool that runs a command, and its argument."""


def shell_call(body: dict[str, Any]) -> dict[str, Any] | None:
    """A call of the shell that the request offers; None when a tool has answered already."""
    messages = body.get("messages") or [{}]
    offered = [tool.get("function", {}).get("name") for tool in body.get("tools") or ()]
    name = next((name for name in SHELLS if name in offered), None)
    if messages[-1].get("role") == "tool" or name is None:
        return None
    command: Any = "echo shoal-$((40 + 2))"
    if name == "shell":
        command = ["bash", "-lc", command]
    function = {"name": name, "arguments": encode({SHELLS[name]: command}).decode()}
    return {"index": 0, "id": "call_1", "type": "function", "function": function}


def _all_words(body: dict[str, Any], traits: Traits) -> list[str]:
    if "empty" in traits:
        return []
    if "shell" in traits and (messages := body.get("messages")) and messages[-1].get("role") == "tool":
        return ["TOLD<", str(messages[-1].get("content")), ">"]
    if "words" in traits:
        return [f"word{i} " for i in range(traits.number("words", 50))]
    prompt = ""
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            content = message.get("content")
            prompt = content if isinstance(content, str) else "".join(p.get("text", "") for p in content or [])
            break
    said = prompt if "repeats" in traits else f"ECHO<{prompt.strip()[:4000]}>"
    words = re.findall(r"\S+\s*|\s+", said)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return words[:limit] if limit and "length" in traits else words


def _usage(body: dict[str, Any], words: list[str], traits: Traits) -> dict[str, Any]:
    prompt = sum(max(1, len(str(m.get("content")).split())) for m in body.get("messages") or [])
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": len(words),
        "total_tokens": prompt + len(words),
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    if "or" in traits:
        usage |= {"cost": 0.00014, "is_byok": False, "completion_tokens_details": {"reasoning_tokens": 3}}
    return usage


def _finish(traits: Traits) -> str:
    if "toolcall" in traits and "notools" not in traits:
        return "tool_calls"
    return "length" if "length" in traits else "content_filter" if "filter" in traits else "stop"


def whole(body: dict[str, Any], traits: Traits) -> dict[str, Any]:
    words = _words(body, traits)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(words), "refusal": None}
    if "toolcall" in traits:
        message |= {"content": None, "tool_calls": _TOOL_CALLS}
    choice = {"index": 0, "message": message, "finish_reason": _finish(traits), "logprobs": None}
    return {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.get("model", "stub"),
        "choices": [choice],
        "usage": _usage(body, words, traits),
    }


_TOOL_CALLS = [
    {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "bash", "arguments": '{"command": "touch X"}'},
    },
    {"index": 1, "id": "call_2", "type": "function", "function": {"name": "create", "arguments": '{"path": "Y"}'}},
]


def script(body: dict[str, Any], traits: Traits) -> Iterator[Step]:
    """A stream's events, and what happens between them."""
    words, router = _words(body, traits), "or" in traits
    model, created = encode(body.get("model", "stub")), int(time.time())
    provider = b',"provider":"Stub"' if router else b""
    base = b'{"id":"chatcmpl-stub","object":"chat.completion.chunk","created":%d,"model":%b%b' % (
        created,
        model,
        provider,
    )
    head = b'data: %b,"choices":[{"index":0,"delta":' % base
    tail = b',"finish_reason":null,"logprobs":null}]}\n\n'
    content, content_tail = head + b'{"content":', b"}" + tail
    if "errsse" in traits:
        yield b"data: %b\n\n" % encode({"error": provider_error()})
        return
    if router:
        yield b": OPENROUTER PROCESSING\n\n"
        yield b": OPENROUTER PROCESSING\n\n"
    yield head + b'{"role":"assistant","content":""}' + tail
    if "reasoning" in traits:
        yield head + b'{"reasoning_content":"First I think. "}' + tail
        yield head + b'{"reasoning":"Then I think again."}' + tail
    if "toolcall" in traits:
        for call in _TOOL_CALLS:
            arguments = call["function"]["arguments"]  # type: ignore[index]
            opened = call | {"function": {"name": call["function"]["name"], "arguments": ""}}  # type: ignore[index]
            yield head + encode({"tool_calls": [opened]}) + tail
            for piece in (arguments[:5], arguments[5:]):
                yield (
                    head + encode({"tool_calls": [{"index": call["index"], "function": {"arguments": piece}}]}) + tail
                )
        words = []
    if "shell" in traits and (call := shell_call(body)) is not None:
        yield head + encode({"tool_calls": [call]}) + tail
        words = []
    pause = traits.number("slow", 80) / 1000
    slow = "slow" in traits
    dies_at = zlib.crc32(encode(body)) % (len(words) + 1)
    for i, word in enumerate(words):
        if slow:
            yield pause
        if "dies" in traits and i == dies_at:
            yield End(reset=bool(dies_at % 2))
            return
        if i == 2 and (end := _middle(traits, base)) is not None:
            yield from end
            if "hold" not in traits:
                return
        if router and i % 3 == 1:
            yield b": OPENROUTER PROCESSING\n\n"
        yield b"%b%b%b" % (content, encode(word), content_tail)
    if "nofinish" in traits:
        yield b"data: [DONE]\n\n"
        return
    finish = encode(_finish(traits))
    yield b'%b{},"finish_reason":%b}]}\n\n' % (head, finish)
    if router or (body.get("stream_options") or {}).get("include_usage"):
        # OpenRouter repeats the finish reason in one choice without content; others send none.
        again = b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":%b}' % finish if router else b""
        yield b'data: %b,"choices":[%b],"usage":%b}\n\n' % (base, again, encode(_usage(body, words, traits)))
    if "nodone" not in traits:
        yield b"data: [DONE]\n\n"


def _middle(traits: Traits, base: bytes) -> list[Step] | None:
    """What befalls a stream after its second token."""
    if "stall" in traits:
        return [FOREVER]
    if "hold" in traits:
        return [Hold()]
    if "cut" in traits:
        return [End(reset=False)]
    if "reset" in traits:
        return [0.05, End(reset=True)]
    if "malformed" in traits:
        return [b'data: {"choices": [{"index": 0, "delta": {"content": "br\n\n', b"data: [DONE]\n\n"]
    if "errmid" in traits:
        choice = b'[{"index":0,"delta":{"content":""},"finish_reason":"error","native_finish_reason":"error"}]'
        return [b'data: %b,"error":%b,"choices":%b}\n\n' % (base, encode(provider_error()), choice)]
    return None


def refusal_with_key(request: Recorded) -> dict[str, Any]:
    """An error inside a 200 that says again what key it got, as careless gateways do."""
    return {"code": 400, "message": f"Bad request by {request.headers.get('authorization')}"}


def provider_error() -> dict[str, Any]:
    metadata = {"error_type": "provider_unavailable", "provider_code": "stub"}
    return {"code": 502, "message": "Provider disconnected: stub", "metadata": metadata}


def error_body(status: int, traits: Traits, request: Recorded) -> object:
    message = _MESSAGES.get(status, "stub")
    if "sayskey" in traits:
        message = f"{message}: {request.headers.get('authorization')}"
    if "s400ctx" in traits:
        said = "This model's maximum context length is 8192 tokens; your messages resulted in 9000 tokens."
        return {"error": {"message": said, "type": "invalid_request_error", "code": "context_length_exceeded"}}
    if "s400prefill" in traits:
        return {"error": {"message": "The final message must be from the user.", "type": "invalid_request_error"}}
    if "s400filter" in traits:
        return {"error": {"message": "flagged", "type": "invalid_request_error", "code": "content_filter"}}
    if "s400model" in traits:
        return {"error": {"message": "nonesuch is not a valid model ID", "code": 400}}
    if "s400echo" in traits:  # as validation errors do: the whole input comes back
        return {"error": {"message": f"1 validation error: input {encode(request.body).decode()}", "code": 400}}
    if "/api/v1" in request.path:
        metadata: dict[str, Any] = {"error_type": _ROUTER_TYPES.get(status, "invalid_request")}
        if status == 402:
            busy = "s402busy" in traits
            metadata["limit_source"] = "openrouter_in_flight_budget" if busy else "openrouter_credits"
        return {"error": {"code": status, "message": message, "metadata": metadata}}
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


_METRICS = {
    "vllm": """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="stub"} 1.0
vllm:num_requests_waiting{engine="0",model_name="stub"} %d.0
vllm:time_to_first_token_seconds_bucket{le="0.001",model_name="stub"} 0.0
""",
    "llamacpp": """# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
llamacpp:requests_deferred %d
""",
}


def own_path(path: str, traits: Traits) -> tuple[int, object, str] | None:
    """What a vLLM, Ollama or llama.cpp answers on paths of its own: status, body, content type."""
    json = "application/json"
    server = next((name for name in ("vllm", "ollama", "llamacpp") if name in traits), None)
    if path.endswith("/metrics") and server in _METRICS:
        return 200, (_METRICS[server] % traits.number("busy", 0)).encode(), "text/plain; version=0.0.4"
    if path.endswith("/health") and server in _METRICS:
        if "loading" in traits:
            return 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, json
        return 200, b"" if server == "vllm" else {"status": "ok"}, json
    if path.endswith("/api/version"):
        return (200, {"version": "0.12.1"}, json) if server == "ollama" else (404, {"detail": "Not Found"}, json)
    if path.endswith("/api/tags"):
        tags = [{"name": "stub:latest", "model": "stub:latest", "size": 1}, {"name": "tiny:1b", "model": "tiny:1b"}]
        return (200, {"models": tags}, json) if server == "ollama" else (404, {"detail": "Not Found"}, json)
    if path.endswith("/version"):
        return (200, {"version": "0.99.0-stub"}, json) if server == "vllm" else (404, {"detail": "Not Found"}, json)
    if path.endswith("/models") and server is not None:
        if server == "ollama":
            return 404, b"404 page not found", "text/plain"
        owner = {"vllm": "vllm", "llamacpp": "llamacpp"}[server]
        model: dict[str, Any] = {"id": "stub", "object": "model", "created": 0, "owned_by": owner}
        model |= {"max_model_len": 4096} if server == "vllm" else {"meta": {"n_ctx_train": 2048}}
        return 200, {"object": "list", "data": [model]}, json
    return None


def looked_up(path: str, traits: Traits) -> object:
    if path.endswith("/models"):
        about = {"object": "model", "created": 0, "owned_by": "stub", "context_length": 8192, "max_model_len": 8192}
        return {"object": "list", "data": [{"id": name, **about} for name in MODELS]}
    if path.endswith("/key"):
        limits = {"limit": 10, "limit_remaining": 0 if "keyspent" in traits else 8.5}
        about = {"label": "sk-or-v1-stu...ub0", "usage": 1.5, "usage_daily": 0.25, "is_free_tier": False}
        return {"data": {**about, **limits}}
    return None


def embedded(body: object) -> object:
    """Three numbers for each input, made of its length; base64 only when asked for, as OpenAI does."""
    asked = body if isinstance(body, dict) else {}
    given = asked.get("input", "")
    inputs = [given] if isinstance(given, str) else given
    vectors = [[float(len(each)), 0.5, -1.25] for each in inputs]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
    return {"object": "list", "data": data, "model": asked.get("model", "stub"), "usage": usage}
