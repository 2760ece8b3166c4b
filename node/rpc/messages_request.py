"""The body of Anthropic's `POST /v1/messages` as a `GenerateRequest`, or a 400 that names the field.

Format: https://docs.anthropic.com/en/api/messages. A tool's result becomes a message of its own, thoughts of earlier
turns are left out (they are signed for another model), and hosted tools (web search and the like) do not exist here:
they are left out of the list, unless the request insists on one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ...providers.base import ContentPart, FunctionCall, ImagePart, ImageUrl, Message, OtherPart, TextPart, ToolCall
from .chat_request import ChatCall, Options, call_of, decode_object, typed_as
from .errors import ApiError, bad_request

Part = ContentPart | dict[str, Any]
"""A part of a message; one that Shoal does not type is a map as chat completions have it."""


class Source(Struct):
    """Where an image is: its bytes in base64, or an address."""

    type: Literal["base64", "url"]
    media_type: str = "image/png"
    data: str = ""
    url: str = ""

    @property
    def address(self) -> str:
        return self.url if self.type == "url" else f"data:{self.media_type};base64,{self.data}"


class Text(Struct, tag="text"):
    text: str


class Image(Struct, tag="image"):
    source: Source


class Paper(Struct):
    """Where a document is: its bytes in base64, or its text."""

    type: Literal["base64", "text"]
    media_type: str = "application/pdf"
    data: str = ""


class Document(Struct, tag="document"):
    source: Paper
    title: str | None = None

    @property
    def part(self) -> Part:
        """Its text; or the file, for providers that read files."""
        if self.source.type == "text":
            return TextPart(self.source.data)
        data = f"data:{self.source.media_type};base64,{self.source.data}"
        return {"type": "file", "file": {"filename": self.title or "document.pdf", "file_data": data}}


class ToolUse(Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any] = {}


class ToolResult(Struct, tag="tool_result"):
    tool_use_id: str
    content: str | tuple[Text | Image | Document, ...] = ""
    is_error: bool | None = None


class Thinking(Struct, tag="thinking"):
    pass


class RedactedThinking(Struct, tag="redacted_thinking"):
    pass


Block = Text | Image | Document | ToolUse | ToolResult | Thinking | RedactedThinking


class Turn(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | tuple[Block, ...]


class Tool(Struct):
    """A tool of the caller's; one with a `type` other than custom is hosted by Anthropic and not here."""

    name: str = ""
    description: str = ""
    input_schema: dict[str, Any] = {}
    type: str | None = None


class ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class MessagesBody(Struct, kw_only=True):
    """The typed part of the body; what else may be in it (metadata, thinking, betas) has no meaning here."""

    model: str
    messages: Annotated[tuple[Turn, ...], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    system: str | tuple[Text, ...] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: tuple[str, ...] | None = None
    stream: bool | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    output_config: dict[str, Any] | None = None


class CountBody(MessagesBody, kw_only=True):
    """The same where nothing is to be written, only counted."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None  # type: ignore[assignment]


def read_messages(body: bytes, headers: Mapping[str, str], kind: type[MessagesBody] = MessagesBody) -> ChatCall:
    """The call in a body and its headers (lower-case names). Raises ApiError."""
    typed = typed_as(decode_object(body), kind)
    system = typed.system if isinstance(typed.system, str) else "\n\n".join(t.text for t in typed.system or ())
    messages = [Message("system", system)] if system else []
    for index, turn in enumerate(typed.messages):
        messages += messages_of(turn, index)
    tools = tuple(function_of(tool) for tool in typed.tools or () if tool.type in (None, "custom"))
    for index, tool in enumerate(typed.tools or ()):
        if not tool.name and tool.type in (None, "custom"):
            raise bad_request(f"tools.{index}.name: Field required", f"tools[{index}].name")
    extra: dict[str, Any] = {} if typed.top_k is None else {"top_k": typed.top_k}
    choice = typed.tool_choice
    if choice is not None and choice.disable_parallel_tool_use and tools:
        extra["parallel_tool_calls"] = False
    options = Options(
        model=typed.model,
        temperature=typed.temperature,
        top_p=typed.top_p,
        stop=typed.stop_sequences,
        stream=typed.stream,
    )
    return call_of(
        options,
        headers,
        extra,
        messages=tuple(messages),
        max_tokens=typed.max_tokens,
        tools=tools,
        tool_choice=choice_of(choice, tools),
        response_format=_format_of(typed.output_config),
    )


def messages_of(turn: Turn, index: int) -> list[Message]:
    """One turn as OpenAI's messages: results of tools first, as the calls they answer come right before."""
    if isinstance(turn.content, str):
        return [Message(turn.role, turn.content)]
    results: list[Message] = []
    parts: list[Part] = []
    calls: list[ToolCall] = []
    for position, block in enumerate(turn.content):
        match block:
            case Text():
                parts.append(TextPart(block.text))
            case Image():
                parts.append(ImagePart(ImageUrl(block.source.address)))
            case Document():
                parts.append(block.part)
            case ToolUse():
                if turn.role != "assistant":
                    where = f"messages[{index}].content[{position}]"
                    raise bad_request("tool_use blocks can only be in an assistant's message.", where)
                arguments = msgspec.json.encode(block.input).decode()
                calls.append(ToolCall(block.id, FunctionCall(block.name, arguments)))
            case ToolResult():
                said = [Text(block.content)] if isinstance(block.content, str) else block.content
                text = "\n".join(piece.text for piece in said if isinstance(piece, Text))
                text = f"Error: {text}" if block.is_error else text
                results.append(Message("tool", text, tool_call_id=block.tool_use_id))
                parts += [ImagePart(ImageUrl(piece.source.address)) for piece in said if isinstance(piece, Image)]
                parts += [piece.part for piece in said if isinstance(piece, Document)]
            case _:
                pass
    if parts or calls or not results:
        content, extra = content_of(parts) if parts or not calls else (None, None)
        results.append(Message(turn.role, content, tool_calls=tuple(calls), extra=extra))
    return results


def content_of(parts: list[Part]) -> tuple[str | tuple[ContentPart, ...], dict[str, Any] | None]:
    """A message's `content`, and its `extra` where there are parts that are not typed.

    Text alone is one text: many servers take nothing else.
    """
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if len(texts) == len(parts):
        return "\n".join(texts), None
    typed = tuple(OtherPart(part["type"]) if isinstance(part, dict) else part for part in parts)
    if not any(isinstance(part, dict) for part in parts):
        return typed, None
    return typed, {"content": [msgspec.to_builtins(part) for part in parts]}


def function_of(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema or {"type": "object"}}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def choice_of(choice: ToolChoice | None, tools: tuple[dict[str, Any], ...]) -> str | dict[str, Any] | None:
    """OpenAI's tool_choice. Raises ApiError when a tool is demanded that is not there."""
    if choice is None or not (tools or choice.type in ("any", "tool")):
        return None
    if choice.type == "tool":
        if not any(tool["function"]["name"] == choice.name for tool in tools):
            raise bad_request("This tool is not among the tools that can be used here.", "tool_choice.name")
        return {"type": "function", "function": {"name": choice.name}}
    if choice.type == "any" and not tools:
        raise bad_request("None of the tools can be used here.", "tool_choice")
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _format_of(config: dict[str, Any] | None) -> dict[str, Any] | None:
    form = (config or {}).get("format")
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise ApiError(400, "The only output format is a json_schema with a schema.", param="output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"], "strict": True}}
