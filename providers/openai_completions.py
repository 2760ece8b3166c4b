"""OpenAI's text completions, seen from the client: bare text to `/completions`, and its answer as events.

A server that has no such path, or whose model is none for it, says 404, 405 or 501. That is remembered for a while, and
the request goes there as a chat where it can; the answer then tells `Dropped(("completion",))`, so that nobody takes it
for the text's own continuation. Format: https://platform.openai.com/docs/api-reference/completions, and what vLLM,
llama.cpp and Ollama make of it (log probabilities in the shape of a chat's).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from msgspec import Struct

from ..protocols.http.client import ClientError, Response
from .base import Dropped, ErrorKind, Event, GenerateRequest, Logprobs, ProviderError, TextDelta
from .openai_errors import Failure, names_model, parse
from .openai_stream import Generating
from .openai_wire import ChatAnswer, _Choice, _Chunk, _Delta, _Logprobs, _Usage, continued

if TYPE_CHECKING:
    from .openai_compat import OpenAiCompat

LACKS = frozenset({404, 405, 501})
"""What a server says that has no such path."""
REMEMBERED_S = 600.0
"""Seconds for which a model of a server is asked for no more text completions after that."""
AS_CHAT = "completion"
"""What is told to be left out when a chat had to do."""
TOLD = 32
"""Tokens whose log probabilities are told by one event."""
_ERROR_BYTES = 256 * 1024

_encode = msgspec.json.Encoder().encode


class Lacking:
    """The models that a server completes no text by, as far as it was found out lately."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __contains__(self, model: str) -> bool:
        return trio.current_time() < self._until.get(model, float("-inf"))

    def add(self, model: str) -> None:
        self._until[model] = trio.current_time() + REMEMBERED_S


async def error_body(response: Response) -> bytes:
    """What a refusal says; nothing where it breaks off."""
    try:
        return await response.read(_ERROR_BYTES)
    except ClientError:
        return b""


def body_of(request: GenerateRequest, model: str) -> bytes:
    """The body of a POST /completions. `extra` goes along as it is, but replaces no typed field.

    The answer is asked for whole where the likeliest of several is wanted, and where the prompt is to be told, too: not
    every server streams that.
    """
    completion = request.completion
    assert completion is not None
    body: dict[str, Any] = {k: v for k, v in request.extra.items() if k not in ("logprobs", "top_logprobs")}
    body["model"] = model
    body["prompt"] = completion.prompt
    if isinstance(completion.prompt, str) and request.prefix:
        body["prompt"] = completion.prompt + request.prefix
    whole = completion.echo or completion.best_of is not None
    body["stream"] = not whole
    if not whole:
        body["stream_options"] = {"include_usage": True}
    if request.max_tokens is not None:
        body["max_tokens"] = continued(request, {}).max_tokens if request.prefix else request.max_tokens
    if request.extra.get("logprobs"):
        body["logprobs"] = request.extra.get("top_logprobs") or 0
    if completion.echo:
        body["echo"] = True
    given = {
        "suffix": completion.suffix,
        "best_of": completion.best_of,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": request.stop or None,
        "seed": request.seed,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    return _encode(body)


# -- the answer ------------------------------------------------------------------------------------------------


class _TextLogprobs(Struct):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None
    content: tuple[dict[str, Any], ...] | None = None  # llama.cpp: as in a chat


class _TextChoice(Struct):
    index: int = 0
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _TextLogprobs | None = None
    stop_reason: Any = None


class _TextChunk(Struct):
    choices: list[_TextChoice] | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Failure | str | None = None
    system_fingerprint: Any = None
    service_tier: Any = None
    provider: Any = None


_decode = msgspec.json.Decoder(_TextChunk).decode


class TextAnswer(ChatAnswer):
    """One answer, as its bytes come. To say nothing at all is an answer here: a text may be at its end."""

    def whole(self, data: bytes) -> list[Event]:
        """The events; many log probabilities as several, each of which fits into a frame to a peer."""
        events = super().whole(data)
        if self.failure is None and not _echoes(self._request, events):
            self.failure = ProviderError(
                ErrorKind.UNSUPPORTED, "the upstream does not say the prompt, as echo wants it"
            )
            return []
        found: list[Event] = []
        for event in events:
            if isinstance(event, Logprobs):
                found += [Logprobs(event.tokens[at : at + TOLD]) for at in range(0, len(event.tokens), TOLD)]
            else:
                found.append(event)
        return found

    def _take_many(self, joined: bytes, count: int, out: list[Event]) -> bool:
        return False

    def _read(self, payload: bytes) -> _Chunk | None:
        try:
            said = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        choices = [
            _Choice(
                index=choice.index,
                delta=_Delta(content=choice.text),
                finish_reason=choice.finish_reason,
                logprobs=_Logprobs(tokens_of(choice.logprobs)) if choice.logprobs is not None else None,
                stop_reason=choice.stop_reason,
            )
            for choice in said.choices or ()
        ]
        return _Chunk(
            choices=choices or None,
            model=said.model,
            usage=said.usage,
            error=said.error,
            system_fingerprint=said.system_fingerprint,
            service_tier=said.service_tier,
            provider=said.provider,
        )

    def _refuse_emptiness(self) -> None:
        pass


def _echoes(request: GenerateRequest, events: list[Event]) -> bool:
    """Whether the answer begins with the prompt, where that was asked for: llama.cpp's server passes over `echo`."""
    completion = request.completion
    if completion is None or not completion.echo:
        return True
    if isinstance(completion.prompt, str):
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        return text.startswith(completion.prompt)
    told = sum(len(event.tokens) for event in events if isinstance(event, Logprobs))
    return told >= len(completion.prompt) or not request.extra.get("logprobs")


def tokens_of(told: _TextLogprobs) -> tuple[dict[str, Any], ...]:
    """The four parallel lists as a chat's list of tokens; `text_offset` where the server says it."""
    if told.content is not None:
        return told.content
    tokens = told.tokens or []
    logprobs = _even(told.token_logprobs, len(tokens))
    tops, offsets = _even(told.top_logprobs, len(tokens)), _even(told.text_offset, len(tokens))
    return tuple(
        {
            "token": token,
            "logprob": logprob,
            "bytes": None,
            "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in (top or {}).items()],
            **({} if offset is None else {"text_offset": offset}),
        }
        for token, logprob, top, offset in zip(tokens, logprobs, tops, offsets, strict=True)
    )


def _even(values: list[Any] | None, count: int) -> list[Any]:
    return [*(values or ()), *([None] * count)][:count]


# -- the call --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def completing(provider: OpenAiCompat, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
    """The context of one answer, by the server's text completions or, where it has none, by a chat."""
    provider.refuse_what_it_cannot(msgspec.structs.replace(request, prefix=""))
    completion = request.completion
    assert completion is not None
    if request.prefix and (not isinstance(completion.prompt, str) or completion.echo):
        raise ProviderError(ErrorKind.UNAVAILABLE, f"{provider.name} does not continue an answer like this one")
    model = request.model or await provider.default_model()
    if model not in provider.completes_not:
        settled, dropped = provider.settled(msgspec.structs.replace(request, prefix=""))
        body = body_of(msgspec.structs.replace(settled, prefix=request.prefix), model)
        async with provider.gate:
            call = provider.post("/completions", body)
            try:
                response = await provider.entered(call)
                if response.status == 200:
                    yield provider.text_events(response, request, dropped)
                    return
                said = await error_body(response)
                if response.status not in LACKS or names_model(parse(said)):
                    raise await provider.refusal(response, request, said)
            finally:
                await call.__aexit__(None, None, None)
        provider.completes_no_text_by(model)
    chat = msgspec.structs.replace(request, completion=None)
    if not chat.messages:
        what = "has no text completions by this model, and a chat cannot do this"
        raise ProviderError(ErrorKind.UNSUPPORTED, f"{provider.name} {what}; send a prompt of text alone")
    async with Generating(provider, chat) as events:
        yield _noted(events)


async def _noted(events: AsyncIterator[Event]) -> AsyncGenerator[Event]:
    """The events, with what a chat leaves out told first."""
    first: Event | None = await anext(events, None)
    also = first.options if isinstance(first, Dropped) else ()
    yield Dropped(tuple(sorted({*also, AS_CHAT})))
    if first is not None and not isinstance(first, Dropped):
        yield first
    async for event in events:
        yield event
