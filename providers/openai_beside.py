"""What an OpenAI-compatible upstream says beside text, thoughts, calls and counts: kept until the end of the answer.

`system_fingerprint` and `service_tier` of the answer, `annotations`, `refusal`, `audio`, `images`, `reasoning_details`
and `extra_content` of the message, the vendor's own reason, the finer counts of tokens. Pieces of a stream are put
together; `told()` is what `Finish.beside` holds. Format: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

_ANSWER = ("system_fingerprint", "service_tier", "provider", "citations", "search_results")
_CHOICE = ("native_finish_reason", "stop_reason")
_LISTS = ("annotations", "images", "reasoning_details")
_USAGE = ("cost_details", "is_byok", "server_tool_use")
_PROMPT = ("audio_tokens", "cache_write_tokens", "video_tokens")
_COMPLETION = ("audio_tokens", "image_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens")


class Beside:
    """Collects for one answer. What it is given are the structs of openai_wire.py."""

    def __init__(self) -> None:
        self._places: dict[str, dict[str, Any]] = {"answer": {}, "choice": {}, "message": {}, "usage": {}}
        self._refusal: list[str] = []
        self._sound: list[str] = []
        self._spoken: list[str] = []

    def take_end(self, chunk: Any, choice: Any) -> None:
        """The chunk in which the choice ends: every chunk repeats what is of the answer."""
        self._places["answer"] |= _set(chunk, _ANSWER)
        self._places["choice"] |= _set(choice, _CHOICE)

    def take_delta(self, delta: Any) -> None:
        message = self._places["message"]
        for name in _LISTS:
            found = getattr(delta, name)
            if isinstance(found, list) and found:
                message[name] = [*message.get(name, ()), *found]
        if delta.extra_content is not None:
            message["extra_content"] = delta.extra_content
        if isinstance(delta.audio, dict):
            self._take_audio(delta.audio, message)

    def take_call(self, index: int, extra_content: Any) -> None:
        """What belongs to a call of a tool, by the call's index."""
        self._places["message"].setdefault("tool_calls", {})[str(index)] = {"extra_content": extra_content}

    def refuse(self, text: str) -> None:
        self._refusal.append(text)

    def take_usage(self, usage: Any) -> None:
        counts = self._places["usage"]
        counts |= _set(usage, _USAGE)
        if prompt := _set(usage.prompt_tokens_details, _PROMPT):
            counts["prompt_tokens_details"] = prompt
        if completion := _set(usage.completion_tokens_details, _COMPLETION):
            counts["completion_tokens_details"] = completion

    def told(self) -> dict[str, dict[str, Any]] | None:
        """What there is, by place; None when there is nothing."""
        message = self._places["message"]
        if self._refusal:
            message["refusal"] = "".join(self._refusal)
        if self._spoken:
            message["audio"]["transcript"] = "".join(self._spoken)
        if self._sound:
            message["audio"]["data"] = _joined(self._sound)
        return {place: found for place, found in self._places.items() if found} or None

    def _take_audio(self, audio: dict[str, Any], message: dict[str, Any]) -> None:
        """A stream brings sound in pieces: each is base64 by itself."""
        rest = dict(audio)
        if isinstance(data := rest.pop("data", None), str):
            self._sound.append(data)
        if isinstance(spoken := rest.pop("transcript", None), str):
            self._spoken.append(spoken)
        message["audio"] = {**message.get("audio", {}), **rest}


def _set(struct: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the fields that were sent."""
    return {name: value for name in names if (value := getattr(struct, name, None)) is not None}


def _joined(pieces: list[str]) -> str:
    if len(pieces) == 1:
        return pieces[0]
    try:
        return base64.b64encode(b"".join(base64.b64decode(piece, validate=True) for piece in pieces)).decode()
    except (ValueError, binascii.Error):
        return "".join(pieces)
