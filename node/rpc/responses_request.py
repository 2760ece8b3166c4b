"""The body of OpenAI's `POST /v1/responses` as a `GenerateRequest`, or a 400 that names the field.

Format: https://platform.openai.com/docs/api-reference/responses/create. Nothing is stored, so a conversation comes
whole in `input`. Hosted tools (web search, file search ...) do not exist here: they are left out of the list, unless
the request insists on one. A `custom` tool, whose input is free text, becomes a function with one text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ...providers.base import ContentPart, FunctionCall, ImagePart, ImageUrl, Message, TextPart, ToolCall
from .chat_request import MAX_TIMEOUT_S, MIN_TIMEOUT_S, ChatCall, Options, call_of, decode_object, others, typed_as
from .errors import ApiError, bad_request
from .messages_request import Part, content_of

_ROLES = ("user", "assistant", "system", "developer")
_LEFT_OUT = frozenset({"reasoning", "web_search_call", "file_search_call", "item_reference", "compaction"})


class ResponseBody(Struct, kw_only=True):
    """The typed part of the body."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    reasoning: dict[str, Any] | None = None
    stream: bool | None = None
    background: bool | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    provider: str | None = None
    fallback: bool | None = None
    timeout: Annotated[float, Meta(ge=MIN_TIMEOUT_S, le=MAX_TIMEOUT_S)] | None = None


KNOWN = frozenset(ResponseBody.__struct_fields__)
_OF_RESPONSES = frozenset(
    {
        "context_management",
        "max_tool_calls",
        "prompt",
        "store",
        "stream_options",
        "truncation",
    }
)
"""Fields about a stored or hosted conversation, which say nothing to a chat completion. Others go along."""


LOGPROBS = "message.output_text.logprobs"
"""What `include` names when log probabilities are wanted."""


class ResponseCall(Struct, frozen=True):
    """A call, what the answer repeats of it, and which of its tools take free text."""

    call: ChatCall
    body: ResponseBody
    tools: tuple[dict[str, Any], ...]
    customs: frozenset[str]


def read_response(body: bytes, headers: Mapping[str, str]) -> ResponseCall:
    """The call in a body and its headers (lower-case names). Raises ApiError."""
    raw = decode_object(body)
    typed = typed_as(raw, ResponseBody)
    if typed.previous_response_id or typed.conversation:
        where = "previous_response_id" if typed.previous_response_id else "conversation"
        message = "This node stores no responses; send the whole conversation in input."
        raise ApiError(400, message, param=where, code="previous_response_not_found")
    if typed.background:
        raise bad_request("This node does not work in the background; leave it out or stream.", "background")
    messages = [Message("system", typed.instructions)] if typed.instructions else []
    messages += [Message("user", typed.input)] if isinstance(typed.input, str) else conversation_of(typed.input)
    if not typed.input:
        raise bad_request("Missing required parameter: 'input'.", "input")
    tools = tuple(tool for tool in flat(typed.tools or []) if tool.get("type") in ("function", "custom"))
    functions = tuple(_function(tool, index) for index, tool in enumerate(tools))
    extra = {name: value for name, value in others(raw, KNOWN).items() if name not in _OF_RESPONSES}
    if (verbosity := (typed.text or {}).get("verbosity")) is not None:
        extra["verbosity"] = verbosity
    if tools and typed.parallel_tool_calls is not None:
        extra["parallel_tool_calls"] = typed.parallel_tool_calls
    if LOGPROBS in (typed.include or ()) or typed.top_logprobs:
        extra |= {"logprobs": True, "top_logprobs": typed.top_logprobs or 0}
    if effort := (typed.reasoning or {}).get("effort"):
        extra["reasoning_effort"] = effort
    options = Options(
        model=typed.model,
        temperature=typed.temperature,
        top_p=typed.top_p,
        stream=typed.stream,
        provider=typed.provider,
        fallback=typed.fallback,
        timeout=typed.timeout,
    )
    call = call_of(
        options,
        headers,
        extra,
        messages=tuple(messages),
        max_tokens=typed.max_output_tokens,
        tools=functions,
        tool_choice=_choice(typed.tool_choice, functions),
        response_format=_format(typed.text),
    )
    customs = frozenset(str(tool.get("name")) for tool in tools if tool["type"] == "custom")
    return ResponseCall(call, typed, tools, customs)


def flat(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools that are grouped in a namespace, as tools."""
    found: list[dict[str, Any]] = []
    for tool in tools:
        inner = tool.get("tools")
        if tool.get("type") == "namespace" and isinstance(inner, list):
            found += [each for each in inner if isinstance(each, dict)]
        else:
            found.append(tool)
    return found


# -- the conversation ------------------------------------------------------------------------------------------


def conversation_of(items: list[dict[str, Any]]) -> list[Message]:
    """The items of `input` as messages; calls of tools that stand together become one message of the assistant."""
    messages: list[Message] = []
    for index, item in enumerate(items):
        where = f"input[{index}]"
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(_message(item, where))
        elif kind in ("function_call", "custom_tool_call"):
            call = _tool_call(item, where)
            last = messages[-1] if messages else None
            if last is not None and last.role == "assistant":
                messages[-1] = msgspec.structs.replace(last, tool_calls=(*last.tool_calls, call))
            else:
                messages.append(Message("assistant", None, tool_calls=(call,)))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            output = item.get("output")
            content, extra = _content(output, f"{where}.output")
            messages.append(Message("tool", content, tool_call_id=_text(item, "call_id", where), extra=extra))
        elif not isinstance(kind, str) or kind not in _LEFT_OUT:
            raise bad_request("This kind of item is not supported here.", f"{where}.type")
    return messages


def _message(item: dict[str, Any], where: str) -> Message:
    role = item.get("role")
    if role not in _ROLES:
        raise bad_request(f"Invalid value for '{where}.role': Not one of the supported values.", f"{where}.role")
    content, extra = _content(item.get("content"), f"{where}.content")
    return Message(role, content, extra=extra)


def _content(content: Any, where: str) -> tuple[str | tuple[ContentPart, ...], dict[str, Any] | None]:
    return (content, None) if isinstance(content, str) else content_of(_parts(content, where))


def _parts(content: Any, where: str) -> list[Part]:
    if not isinstance(content, list):
        raise bad_request(f"Missing required parameter: '{where}'.", where)
    parts: list[Part] = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            parts.append(TextPart(_text(part, "text", place)))
        elif kind == "refusal":
            parts.append(TextPart(_text(part, "refusal", place)))
        elif kind == "input_image":
            detail = part.get("detail")
            known = detail if detail in ("auto", "low", "high") else None
            parts.append(ImagePart(ImageUrl(_text(part, "image_url", place), known)))
        elif kind == "input_file" and isinstance(part.get("file_data"), str):
            named = {name: part[name] for name in ("filename", "file_data") if isinstance(part.get(name), str)}
            parts.append({"type": "file", "file": named})
        elif kind == "input_audio" and isinstance(part.get("input_audio"), dict):
            parts.append({"type": kind, kind: part[kind]})
        else:
            raise bad_request("This kind of content is not supported here.", f"{place}.type")
    return parts


def _tool_call(item: dict[str, Any], where: str) -> ToolCall:
    arguments = item.get("arguments")
    if item["type"] == "custom_tool_call":
        arguments = msgspec.json.encode({"input": item.get("input", "")}).decode()
    if not isinstance(arguments, str):
        raise bad_request(f"Missing required parameter: '{where}.arguments'.", f"{where}.arguments")
    return ToolCall(_text(item, "call_id", where), FunctionCall(_text(item, "name", where), arguments))


def _text(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise bad_request(f"Missing required parameter: '{where}.{name}'.", f"{where}.{name}")
    return value


# -- options ---------------------------------------------------------------------------------------------------


def _function(tool: dict[str, Any], index: int) -> dict[str, Any]:
    function: dict[str, Any] = {"name": _text(tool, "name", f"tools[{index}]")}
    description = tool.get("description")
    if tool["type"] == "custom":
        grammar = tool.get("format")
        if isinstance(grammar, dict) and isinstance(grammar.get("definition"), str):
            description = f"{description or ''}\n\nThe input must follow this grammar:\n{grammar['definition']}"
        function["parameters"] = {
            "type": "object",
            "properties": {"input": {"type": "string"}},
            "required": ["input"],
            "additionalProperties": False,
        }
    else:
        function["parameters"] = tool.get("parameters") or {"type": "object", "properties": {}}
        if isinstance(tool.get("strict"), bool):
            function["strict"] = tool["strict"]
    if isinstance(description, str) and description:
        function["description"] = description
    return {"type": "function", "function": function}


def _choice(choice: str | dict[str, Any] | None, functions: tuple[dict[str, Any], ...]) -> str | dict[str, Any] | None:
    if isinstance(choice, dict):
        name = choice.get("name")
        if choice.get("type") == "allowed_tools":
            mode = choice.get("mode")
            return mode if functions and mode in ("auto", "required") else None
        if not any(function["function"]["name"] == name for function in functions):
            raise bad_request("This tool is not among the tools that can be used here.", "tool_choice")
        return {"type": "function", "function": {"name": name}}
    if choice is not None and choice not in ("auto", "none", "required"):
        raise bad_request("Invalid value for 'tool_choice': Not one of the supported values.", "tool_choice")
    if choice == "required" and not functions:
        raise bad_request("None of the tools can be used here.", "tool_choice")
    return choice if functions else None


def _format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    form = (text or {}).get("format")
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind == "json_schema" and isinstance(form.get("schema"), dict):
        schema = {
            name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None
        }
        return {"type": "json_schema", "json_schema": {"name": "answer", **schema}}
    raise bad_request("Invalid value for 'text.format': Not one of the supported values.", "text.format")
