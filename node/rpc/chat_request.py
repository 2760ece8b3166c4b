"""The body of a chat completion request: from bytes to a checked `GenerateRequest`, or a 400 that names the field.

What OpenAI's schema has and can change the answer is typed; other top-level fields go to `extra` and on to upstreams
that may know them. Fields of ours: `provider` (a pin; an object is OpenRouter's and goes to `extra`), `fallback`
(false: only the first candidate), `timeout` (seconds).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from ...providers.base import GenerateRequest, Message
from ..routing.ask import CacheControl, Publish
from .chat_messages import StrictMessage, joined, parted
from .errors import ApiError, bad_request

ANY_MODEL = frozenset({"", "auto"})
"""Model names that leave the choice to the router: OpenAI's clients must send one."""

MAX_TIMEOUT_S = 24 * 3600.0
MIN_TIMEOUT_S = 0.025
"""Less is no time for an answer, and a mistake of units."""

_INT64 = Meta(ge=-(2**63), le=2**63 - 1)


class StreamOptions(Struct):
    include_usage: bool | None = None


class Options(Struct, kw_only=True):
    """What chat and text completions share. Types and bounds are OpenAI's; None is the same as absent."""

    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: str | tuple[str, ...] | None = None
    seed: Annotated[int, _INT64] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    provider: str | dict[str, Any] | None = None
    fallback: bool | None = None
    timeout: Annotated[float, Meta(ge=MIN_TIMEOUT_S, le=MAX_TIMEOUT_S)] | None = None


class ChatBody(Options, kw_only=True):
    """The typed part of a chat completion's body."""

    messages: Annotated[tuple[StrictMessage, ...], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class _Plain(ChatBody, kw_only=True, forbid_unknown_fields=True):
    """A body in which everything is typed, as nearly all are: it is decoded in one step."""


_decode_plain = msgspec.json.Decoder(_Plain).decode

KNOWN = frozenset(ChatBody.__struct_fields__)


class ChatCall(Struct, frozen=True):
    """A request, and how it is to be answered. timeout_s: None is the node's own deadline."""

    request: GenerateRequest
    stream: bool
    include_usage: bool
    timeout_s: float | None
    allow_fallback: bool
    cache_control: CacheControl


def read_call(body: bytes, headers: Mapping[str, str]) -> ChatCall:
    """The call in a body and its headers (lower-case names). Raises ApiError."""
    typed: ChatBody
    try:
        typed = _decode_plain(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raw = decode_object(body)
        typed, messages = _typed(raw)
        extra = others(raw, KNOWN)
    else:
        messages, extra = typed.messages, {}
    _check_messages(messages)
    if typed.tools:
        _check_tools(typed.tools)
    if (form := typed.response_format) is not None and not isinstance(form.get("type"), str):
        raise bad_request("Missing required parameter: 'response_format.type'.", "response_format.type")
    return call_of(
        typed,
        headers,
        extra,
        messages=messages,
        max_tokens=typed.max_completion_tokens or typed.max_tokens,
        tools=typed.tools or (),
        tool_choice=typed.tool_choice,
        response_format=form,
    )


def _typed(raw: dict[str, Any]) -> tuple[ChatBody, tuple[Message, ...]]:
    try:
        typed = msgspec.convert(raw, ChatBody)
    except msgspec.ValidationError:
        pass
    else:
        return typed, typed.messages
    messages, rests = parted(raw.get("messages"))
    typed = typed_as({**raw, "messages": messages} if "messages" in raw else raw, ChatBody)
    return typed, joined(typed.messages, rests)


def others(raw: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The fields that are not typed here, for upstreams that may know them."""
    return {k: v for k, v in raw.items() if k not in known and v is not None} if not raw.keys() <= known else {}


def call_of(
    typed: Options,
    headers: Mapping[str, str],
    extra: dict[str, Any],
    *,
    messages: tuple[Message, ...],
    max_tokens: int | None,
    tools: tuple[dict[str, Any], ...] = (),
    tool_choice: str | dict[str, Any] | None = None,
    response_format: dict[str, Any] | None = None,
) -> ChatCall:
    """The call that the shared options, the headers and the rest of the request make. Raises ApiError."""
    provider = typed.provider
    if isinstance(provider, dict):
        extra["provider"] = provider
        provider = None
    stop = typed.stop or ()
    if stop and "" in (stop := (stop,) if isinstance(stop, str) else stop):
        raise bad_request("A stop text must not be empty.", "stop")
    options = typed.stream_options
    return ChatCall(
        GenerateRequest(
            model=None if typed.model in ANY_MODEL else typed.model,
            provider=provider or headers.get("x-shoal-provider") or None,
            temperature=typed.temperature,
            top_p=typed.top_p,
            stop=stop,
            seed=typed.seed,
            n=typed.n or 1,
            extra=extra,
            messages=messages,
            max_tokens=max_tokens,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
        ),
        stream=bool(typed.stream),
        include_usage=options is not None and bool(options.include_usage),
        timeout_s=typed.timeout or timeout_header(headers),
        allow_fallback=typed.fallback is not False,
        cache_control=_cache_control(headers.get("cache-control"), headers.get("x-shoal-publish")),
    )


@functools.lru_cache(maxsize=256)
def _cache_control(header: str | None, publish: str | None) -> CacheControl:
    return CacheControl.parse(header, publish_header(publish))


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; ApiError 400 otherwise."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise bad_request("The body is not valid JSON. Send an object in UTF-8.") from None
    except RecursionError:
        raise bad_request("The body's JSON is nested too deeply.") from None
    if not isinstance(raw, dict):
        raise bad_request("The body must be a JSON object.")
    return raw


Body = TypeVar("Body", bound=Struct)


def typed_as(raw: dict[str, Any], kind: type[Body]) -> Body:
    """The typed part of a body. Raises ApiError 400 that names the field."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError:
        pass
    try:
        # Clients send back what they got, with null for each field that does not apply.
        return msgspec.convert(_without_nulls(raw), kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise field_error(error) from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
_VALUE = re.compile(r"Invalid (enum )?value .*", re.DOTALL)


def field_error(error: Exception) -> ApiError:
    """msgspec's complaint as OpenAI would word it: the field in `param`, and no value, which may be a prompt."""
    match = _PLACE.match(str(error))
    what, where = (match["what"], match["where"] or "") if match else ("Invalid input", "")
    if missing := _MISSING.search(what):
        where = f"{where}.{missing[1]}" if where else missing[1]
        return bad_request(f"Missing required parameter: '{where}'.", where)
    what = _VALUE.sub("Not one of the supported values", what).replace("`", "")
    return bad_request(f"Invalid value for '{where}': {what}.", where or None)


def _check_messages(messages: tuple[Message, ...]) -> None:
    for i, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            raise bad_request(f"Missing required parameter: 'messages[{i}].content'.", f"messages[{i}].content")
        if message.role == "tool" and not message.tool_call_id:
            where = f"messages[{i}].tool_call_id"
            raise bad_request(f"Missing required parameter: '{where}'.", where)


def _check_tools(tools: tuple[dict[str, Any], ...]) -> None:
    for i, tool in enumerate(tools):
        if not isinstance(tool.get("type"), str):
            raise bad_request(f"Missing required parameter: 'tools[{i}].type'.", f"tools[{i}].type")
        if tool["type"] == "function":
            function = tool.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                where = f"tools[{i}].function.name"
                raise bad_request(f"Missing required parameter: '{where}'.", where)


def publish_header(text: str | None) -> Publish | None:
    if text is None:
        return None
    known: tuple[Publish, ...] = get_args(Publish)
    for place in known:
        if text == place:
            return place
    raise bad_request("The header x-shoal-publish wants none, swarm or ipfs.", "x-shoal-publish")


def timeout_header(headers: Mapping[str, str]) -> float | None:
    """The header x-shoal-timeout-ms in seconds. Raises ApiError."""
    text = headers.get("x-shoal-timeout-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) <= MAX_TIMEOUT_S * 1000):
        raise bad_request(
            "The header x-shoal-timeout-ms must be a whole number of milliseconds, at most one day.",
            "x-shoal-timeout-ms",
        )
    return int(text) / 1000
