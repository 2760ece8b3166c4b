"""Chunks of a chat completion that are not quite OpenAI's, put into its shape.

The reader of `openai_wire.py` decodes into typed structs and is strict. What it refuses comes here, once, before the
answer is given up:

- half a character: some servers cut text by UTF-16 units, so that one chunk ends with the escape of a high surrogate
  and the next begins with the low one (RFC 8259, section 8.2). The halves are put together; one that has
  text after it instead becomes U+FFFD.
- text in parts: `content` as a list of {"type": "text", "text": ...}, with thoughts as parts of the type "thinking".
- arguments of a tool call as an object, where they should be its text.
- numbers, names and reasons of another type than the one that they should have: passed over.
"""

from __future__ import annotations

import json
from typing import Any

_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")


class Mender:
    """Puts the odd chunks of one answer right. Keeps half a character until the other half comes."""

    def __init__(self) -> None:
        self._half = ""

    @property
    def waits(self) -> bool:
        """Whether half a character is kept, so that the next chunk must come here, too."""
        return bool(self._half)

    def mend(self, payload: str | bytes) -> dict[str, Any] | None:
        """The chunk in OpenAI's shape; None when it is no chunk at all."""
        try:
            said = json.loads(payload)
        except (ValueError, RecursionError):
            return None
        if not isinstance(said, dict) or not (isinstance(said.get("choices"), list) or said.get("error")):
            return None
        chunk: dict[str, Any] = {"choices": [self._choice(c) for c in said.get("choices") or () if isinstance(c, dict)]}
        if isinstance(model := said.get("model"), str):
            chunk["model"] = _whole(model)
        if isinstance(usage := said.get("usage"), dict):
            chunk["usage"] = _counts(usage)
        if error := said.get("error"):
            chunk["error"] = error if isinstance(error, dict) else str(error)
        return chunk

    def _choice(self, said: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {}
        if type(index := said.get("index")) is int:
            choice["index"] = index
        for name in ("delta", "message"):
            if isinstance(delta := said.get(name), dict):
                choice[name] = self._delta(delta) if not choice.get("index") else {}
        if isinstance(reason := said.get("finish_reason"), str):
            choice["finish_reason"] = _whole(reason)
        return choice

    def _delta(self, said: dict[str, Any]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        for name in _TEXTS:
            value = said.get(name)
            if isinstance(value, list):
                thought, value = _parts(value)
                if thought:
                    delta["reasoning_content"] = _whole(thought)
            if isinstance(value, str) and value:
                delta[name] = self._joined(value)
        if isinstance(calls := said.get("tool_calls"), list):
            delta["tool_calls"] = [_call(call) for call in calls if isinstance(call, dict)]
        return delta

    def _joined(self, text: str) -> str:
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _whole(text)


def _whole(text: str) -> str:
    """The text with each pair of surrogates as the character that it is, and a lone one as U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parts(parts: list[Any]) -> tuple[str, str]:
    """(thoughts, text) of a content in parts."""
    thoughts, texts = [], []
    for part in parts:
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(inner := part.get("thinking"), list):
            thoughts.append(_parts(inner)[1])
        elif isinstance(inner, str):
            thoughts.append(inner)
    return "".join(thoughts), "".join(texts)


def _call(said: dict[str, Any]) -> dict[str, Any]:
    call: dict[str, Any] = {}
    if type(index := said.get("index")) is int:
        call["index"] = index
    if isinstance(name := said.get("id"), str):
        call["id"] = _whole(name)
    if isinstance(function := said.get("function"), dict):
        call["function"] = {}
        if isinstance(name := function.get("name"), str):
            call["function"]["name"] = _whole(name)
        arguments = function.get("arguments")
        if arguments is not None:
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            call["function"]["arguments"] = _whole(text)
    return call


def _counts(said: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a usage, however deep; whatever is no number is left out."""
    counts: dict[str, Any] = {}
    for name, value in said.items():
        if isinstance(value, dict):
            counts[name] = _counts(value)
        elif type(value) is int and value >= 0:
            counts[name] = value
        elif type(value) is float and 0 <= value < 2**53:
            counts[name] = value if name == "cost" else int(value)
    return counts
