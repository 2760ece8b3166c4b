"""OpenAI's chat completions on the wire, seen from the client: a request as a body, an answer's bytes as events.

Pure: bytes in, events out, no I/O. What a failure means is openai_errors.py; who talks to whom is openai_compat.py.
Format: https://platform.openai.com/docs/api-reference/chat-streaming, and what vLLM, llama.cpp, Ollama and OpenRouter
make of it (nulls where fields are missing, `reasoning` beside `reasoning_content`, comments, a last chunk with usage
that repeats the finish reason, errors inside a 200).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ..protocols.http.sse import SseError, SseParser, plain
from .base import (
    ErrorKind,
    Event,
    Finish,
    FinishReason,
    GenerateRequest,
    Logprobs,
    Message,
    ProviderError,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from .openai_beside import Beside
from .openai_dialects import Mender
from .openai_errors import Failure, in_band

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]

# -- the request -----------------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode


def body_of(request: GenerateRequest, model: str, *, max_tokens_field: MaxTokensField = "max_tokens") -> bytes:
    """The body of a streaming POST /chat/completions. `extra` goes along as it is, but replaces no typed field."""
    body: dict[str, Any] = dict(request.extra)
    body["model"] = model
    body["messages"] = messages = request.messages
    for message in messages:
        if message.extra is not None:
            body["messages"] = [each.as_written() for each in messages]
            break
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    if request.max_tokens is not None:
        body[max_tokens_field] = request.max_tokens
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop"] = request.stop
    if request.seed is not None:
        body["seed"] = request.seed
    if request.tools:
        body["tools"] = request.tools
    if request.tool_choice is not None:
        body["tool_choice"] = request.tool_choice
    if request.response_format is not None:
        body["response_format"] = request.response_format
    return _encode(body)


_BYTES_A_TOKEN = 4
"""Bytes of text that make a token, roughly: what is taken off max_tokens for the part of an answer that exists."""


def continued(request: GenerateRequest, fields: Mapping[str, Any]) -> GenerateRequest:
    """The request as servers take it that go on writing a final assistant message: `prefix` is that message.

    What is left of max_tokens is an estimate, since the prefix was counted by another server.
    """
    left = None
    if request.max_tokens is not None:
        left = max(1, request.max_tokens - len(request.prefix.encode()) // _BYTES_A_TOKEN)
    return msgspec.structs.replace(
        request,
        messages=(*request.messages, Message("assistant", request.prefix)),
        max_tokens=left,
        extra={**request.extra, **fields},
    )


# -- the answer ------------------------------------------------------------------------------------------------


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    extra_content: Any = None  # Gemini's thought signatures, which it wants back


class _Delta(Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    annotations: Any = None
    audio: Any = None
    images: Any = None
    reasoning_details: Any = None
    extra_content: Any = None


class _Logprobs(Struct, gc=False):
    content: tuple[dict[str, Any], ...] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None  # where an upstream answers whole although it was asked to stream
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    native_finish_reason: Any = None
    stop_reason: Any = None


class _PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None
    audio_tokens: Any = None
    cache_write_tokens: Any = None
    video_tokens: Any = None


class _CompletionDetails(Struct, gc=False):
    reasoning_tokens: int | None = None
    audio_tokens: Any = None
    image_tokens: Any = None
    accepted_prediction_tokens: Any = None
    rejected_prediction_tokens: Any = None


class _Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cost: float | None = None
    cost_details: Any = None
    is_byok: Any = None
    server_tool_use: Any = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Failure | str | None = None
    system_fingerprint: Any = None
    service_tier: Any = None
    provider: Any = None  # OpenRouter: who served it
    citations: Any = None
    search_results: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_many = msgspec.json.Decoder(list[_Chunk]).decode
_DONE = b"[DONE]"

_FINISHES: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "max_tokens": "length",
}
"""Every other word (eos_token, stop_sequence, end_turn ...) is a stop."""


class ChatAnswer:
    """One answer, as its bytes come. When they end, `end()` says what remains: Usage and Finish, or why not.

    sent: something of the answer was given out, so that a failure from now on is an interruption.
    finished: the upstream said how the answer ends; only usage may still come. done: nothing more will come.
    failure: what went wrong; the events that the same `feed` gave come before it. key: what an error may not repeat.
    """

    def __init__(self, asked_for: GenerateRequest, *, key: str | None = None) -> None:
        self._key = key
        self._sse: SseParser | None = None  # made for the first packet that is odd
        self._request = asked_for
        self._text = self._tools = self._whole = False
        self._reason: str | None = None
        self._usage: _Usage | None = None
        self._model: str | None = None
        self._beside: Beside | None = None  # made when there is something for it
        self._mender: Mender | None = None  # made for the first chunk that is odd
        self.sent = False
        self.done = False
        self.failure: ProviderError | None = None

    @property
    def finished(self) -> bool:
        return self._reason is not None

    @property
    def ended_well(self) -> bool:
        """Whether the stream is at its end and `end` will not raise."""
        return self.done and self.failure is None and self._reason is not None and (self._text or self._tools)

    def feed(self, data: bytes) -> list[Event]:
        """The events in these bytes of an event stream."""
        out: list[Event] = []
        if self._mender is None and (self._sse is None or self._sse.between):
            found = plain(data)
            if found is not None and self._take_many(*found, out):
                return out
        self._sse = self._sse or SseParser(strict=True)
        try:
            payloads = [event.data.encode() for event in self._sse.feed(data)]
        except SseError as error:
            self._fail(ErrorKind.UPSTREAM, str(error))
            return out
        for payload in payloads:
            if not payload:
                continue
            if payload == _DONE:
                self.done = True
                break
            chunk = self._read(payload)
            if chunk is None:
                self._fail(ErrorKind.UPSTREAM, "the stream holds an event that is not a chat completion chunk")
                break
            self._take(chunk, out)
            if self.failure is not None:
                break
        return out

    def _take_many(self, joined: bytes, count: int, out: list[Event]) -> bool:
        """The chunks of a whole packet at once, which costs half; whether they were such that this could be done."""
        done = joined.endswith(_DONE)
        if done:
            joined, count = joined[: -len(_DONE) - 1], count - 1
        try:
            chunks = _decode_many(b"[%b]" % joined)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        if len(chunks) != count:
            return False
        for chunk in chunks:
            # Text and nothing else, as most chunks are, is taken here: the general way costs as much as the decoding.
            choices = chunk.choices
            if choices and len(choices) == 1 and self._reason is None and chunk.usage is None and chunk.error is None:
                choice = choices[0]
                delta = choice.delta
                if delta is not None and (text := delta.content) and not (
                    choice.index or choice.finish_reason or choice.logprobs
                    or delta.tool_calls or delta.reasoning or delta.reasoning_content
                ):  # fmt: skip
                    self._text = self.sent = True
                    self._model = chunk.model or self._model
                    out.append(TextDelta(text))
                    continue
            self._take(chunk, out)
            if self.failure is not None:
                return True
        self.done = done
        return True

    def whole(self, data: bytes) -> list[Event]:
        """The events of an answer that came in one piece, as application/json."""
        out: list[Event] = []
        chunk = self._read(data)
        if chunk is None:
            self._fail(ErrorKind.UPSTREAM, "the answer is neither an event stream nor a chat completion")
            return out
        if not chunk.choices and chunk.error is None:
            self._fail(ErrorKind.UPSTREAM, "the answer is JSON, but not a chat completion; does base_url end in /v1?")
            return out
        self._whole = True
        self._take(chunk, out)
        self.done = True
        return out

    def end(self) -> list[Event]:
        """Usage and Finish, after the last byte. Raises ProviderError where the answer is not whole."""
        if self.failure is not None:
            raise self.failure
        if self._reason is None:
            raise self.interrupted("the stream ended before the answer was finished")
        usage = self._usage
        if usage is not None and (usage.completion_tokens_details is not None or usage.cost_details is not None):
            self._noted().take_usage(usage)
        beside = self._beside.told() if self._beside is not None else None
        if not (self._text or self._tools or self._request.prefix or (beside and "message" in beside)):
            self._refuse_emptiness()
        tail: list[Event] = []
        if self._usage is not None:
            tail.append(_usage(self._usage))
        tail.append(Finish(self._finish_reason(), self._model, beside))
        return tail

    def interrupted(self, message: str, kind: ErrorKind = ErrorKind.UPSTREAM) -> ProviderError:
        """The failure of a stream that broke: INTERRUPTED once something was sent, else `kind`."""
        return ProviderError(ErrorKind.INTERRUPTED if self.sent else kind, message)

    def _read(self, payload: bytes) -> _Chunk | None:
        """The chunk in an event, in OpenAI's shape or in a dialect of it; None when it is none."""
        if self._mender is None or not self._mender.waits:
            try:
                return _decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass  # no contextlib.suppress: it costs as much as the decoding
        self._mender = self._mender or Mender()
        try:
            return msgspec.convert(self._mender.mend(payload), _Chunk)
        except msgspec.ValidationError:
            return None

    def _take(self, chunk: _Chunk, out: list[Event]) -> None:
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.model:
            self._model = chunk.model
        if chunk.error is not None:
            self.failure = in_band(chunk.error, self._request, sent=self.sent or bool(out), key=self._key)
            return
        for choice in chunk.choices or ():
            if choice.index:
                continue
            delta = choice.delta or choice.message
            if delta is not None and self._reason is None:  # what follows the end is no part of the answer
                self._take_delta(delta, out)
            if choice.logprobs is not None and choice.logprobs.content:
                out.append(Logprobs(choice.logprobs.content))
            if choice.finish_reason:  # some send "" with every chunk
                if choice.finish_reason == "error":
                    self._fail(ErrorKind.UPSTREAM, "the upstream says that its model failed")
                    return
                self._reason = choice.finish_reason
                if chunk.system_fingerprint is not None or chunk.service_tier is not None or _tells_more(chunk, choice):
                    self._noted().take_end(chunk, choice)

    def _take_delta(self, delta: _Delta, out: list[Event]) -> None:
        if thought := delta.reasoning_content or delta.reasoning:
            self.sent = True
            out.append(ReasoningDelta(thought))
        if text := delta.content:
            self._text = self.sent = True
            out.append(TextDelta(text))
        if not text or self._whole:  # a stream's delta brings either text or something else
            self._take_beside(delta)
        for position, call in enumerate(delta.tool_calls or ()):
            self._tools = self.sent = True
            function = call.function or _Function()
            index = call.index if call.index is not None else position
            out.append(ToolCallDelta(index, call.id or "", function.name or "", function.arguments or ""))
            if call.extra_content is not None:
                self._noted().take_call(index, call.extra_content)

    def _take_beside(self, delta: _Delta) -> None:
        """What a delta without text may bring."""
        if delta.refusal:
            self._noted().refuse(delta.refusal)
        if delta.annotations or delta.audio or delta.images or delta.reasoning_details or delta.extra_content:
            self._noted().take_delta(delta)

    def _noted(self) -> Beside:
        if self._beside is None:
            self._beside = Beside()
        return self._beside

    def _finish_reason(self) -> FinishReason:
        reason = _FINISHES.get(self._reason or "", "stop")
        # Some servers say "stop" after tool calls; callers act on the reason.
        return "tool_calls" if reason == "stop" and self._tools else reason

    def _refuse_emptiness(self) -> None:
        reason = self._finish_reason()
        if reason == "content_filter":
            raise ProviderError(ErrorKind.CONTENT_FILTER, "the upstream's content filter held the answer back")
        if reason == "length" and self.sent:
            return  # all of max_tokens went into reasoning: the provider said so, and the caller set the limit
        raise self.interrupted("the upstream finished with no text")

    def _fail(self, kind: ErrorKind, message: str) -> None:
        self.failure = self.interrupted(message, kind)


def _tells_more(chunk: _Chunk, choice: _Choice) -> bool:
    of_answer = chunk.provider is not None or chunk.citations is not None or chunk.search_results is not None
    return of_answer or choice.native_finish_reason is not None or choice.stop_reason is not None


def _usage(usage: _Usage) -> Usage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        (prompt.cached_tokens or 0) if prompt else 0,
        (completion.reasoning_tokens or 0) if completion else 0,
        usage.cost,
    )


# -- the list of models ----------------------------------------------------------------------------------------


class _Meta(Struct):
    n_ctx_train: int | None = None


class _Model(Struct):
    id: str
    context_length: int | None = None  # OpenRouter
    max_model_len: int | None = None  # vLLM
    meta: _Meta | None = None  # llama.cpp


class _ModelList(Struct):
    data: list[_Model] | None = None


_decode_models = msgspec.json.Decoder(_ModelList).decode


def models_of(data: bytes) -> list[tuple[str, int | None]]:
    """(name, context length in tokens where it is told) of each model in a GET /models. Raises ValueError."""
    try:
        listed = _decode_models(data).data or []
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("the list of models is not in OpenAI's shape") from None
    return [(m.id, m.context_length or m.max_model_len or (m.meta.n_ctx_train if m.meta else None)) for m in listed]
