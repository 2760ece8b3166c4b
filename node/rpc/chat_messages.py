"""The messages of a chat completion: typed where Shoal knows them, and kept whole where the caller wrote more.

What nearly all callers send is decoded straight into the strict structs, at no cost. A message with a field, a kind of
part or a kind of tool call that they do not have comes here: what is known is typed, the rest goes along as
`Message.extra`, so that an OpenAI-compatible upstream gets the message as it was written.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from ...providers.base import FunctionCall, ImagePart, ImageUrl, Message, OtherPart, TextPart, ToolCall


class StrictText(TextPart, frozen=True, tag="text", forbid_unknown_fields=True):
    pass


class StrictUrl(ImageUrl, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class StrictImage(ImagePart, frozen=True, tag="image_url", forbid_unknown_fields=True):
    image_url: StrictUrl


class StrictFunction(FunctionCall, frozen=True, forbid_unknown_fields=True):
    pass


class StrictCall(ToolCall, frozen=True, forbid_unknown_fields=True):
    function: StrictFunction
    type: Literal["function"] = "function"


class StrictMessage(Message, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A message of which the typed fields hold everything. A caller's `extra` is a field like any unknown one."""

    content: str | tuple[StrictText | StrictImage | OtherPart, ...] | None = None
    tool_calls: tuple[StrictCall, ...] = ()
    extra: None = None  # set by `joined` only


_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_PARTS = {"text": frozenset({"type", "text"}), "image_url": frozenset({"type", "image_url"})}
_URL = frozenset({"url", "detail"})
_CALL, _FUNCTION = frozenset({"type", "id", "function"}), frozenset({"name", "arguments"})


class Rest(Struct):
    """What the typed form of a message does not hold."""

    fields: dict[str, Any]


def parted(messages: Any) -> tuple[Any, dict[int, Rest]]:
    """The messages with only what is typed, and by their index what else there was. What is no message stays as it is:
    the structs refuse it by name."""
    rests: dict[int, Rest] = {}
    if not isinstance(messages, list):
        return messages, rests
    typed: list[Any] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            typed.append(message)
            continue
        known, rest = _message(message)
        typed.append(known)
        if rest:
            rests[index] = Rest(rest)
    return typed, rests


def joined(messages: tuple[Message, ...], rests: dict[int, Rest]) -> tuple[Message, ...]:
    """The typed messages, each with its rest."""
    return tuple(
        msgspec.structs.replace(message, extra=rests[index].fields) if index in rests else message
        for index, message in enumerate(messages)
    )


def _message(message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    known = {name: value for name, value in message.items() if name in _FIELDS and value is not None}
    rest = {name: value for name, value in message.items() if name not in _FIELDS and value is not None}
    if isinstance(content := known.get("content"), list):
        parts = [_part(part) for part in content]
        if any(part is not written for part, written in zip(parts, content, strict=True)):
            known["content"], rest["content"] = parts, content
    if isinstance(calls := known.get("tool_calls"), list):
        plain = [_call(call) for call in calls]
        if any(call is not written for call, written in zip(plain, calls, strict=True)):
            known["tool_calls"], rest["tool_calls"] = plain, calls
    return known, rest


def _part(part: Any) -> Any:
    """The part itself where it is typed whole; else what is typed of it."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        return part
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    known = _PARTS.get(kind)
    if known is None:
        return {"type": "other", "kind": kind}
    url = part.get("image_url")
    if isinstance(url, dict) and not url.keys() <= _URL:
        return {"type": kind, "image_url": {name: url[name] for name in _URL if name in url}}
    if part.keys() <= known:
        return part
    return {name: part[name] for name in known if name in part}


def _call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    function, custom = call.get("function"), call.get("custom")
    if call.get("type") == "custom" and isinstance(custom, dict):
        arguments = msgspec.json.encode({"input": custom.get("input", "")}).decode()
        return {"id": call.get("id"), "function": {"name": custom.get("name"), "arguments": arguments}}
    whole = call.keys() <= _CALL
    if not isinstance(function, dict) or (whole and function.keys() <= _FUNCTION):
        return call if whole else {name: call[name] for name in _CALL if name in call}
    plain = {name: function[name] for name in _FUNCTION if name in function}
    return {**{name: call[name] for name in _CALL if name in call}, "function": plain}
