"""`POST /v1/completions`: the older shape, in which a prompt is bare text. Each prompt becomes a user's message.

A prompt in tokens is refused: a node does not know the tokenizer of whoever will answer. So is what only a server that
continues bare text could give: text before a suffix, the best of several, log probabilities of the prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, Any

from msgspec import Meta

from ...protocols.http.exchange import Exchange
from ...providers.base import Event, Finish, Logprobs, Message, TextDelta, Usage
from ..routing.answer import Answer
from ..routing.ask import Ask
from ..routing.no_answer import NoAnswer
from .chat_answer import (
    DONE,
    KEEP_ALIVE,
    Whole,
    completion,
    event_bytes,
    fields_of,
    new_id,
    refusal_of,
    shoal_object,
    usage_object,
)
from .chat_request import ChatCall, Options, call_of, decode_object, others, typed_as
from .errors import bad_request, stream_error
from .openai_chat import asks_of
from .relay import Relay, spent

MAX_PROMPTS = 128
MAX_CHOICES = 128
"""Of a request in all: each is a generation."""


class CompletionBody(Options, kw_only=True):
    """The typed part of the body."""

    prompt: str | list[Any]
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


KNOWN = frozenset(CompletionBody.__struct_fields__)


class Completions:
    """The handler."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        raw = decode_object(exchange.body)
        typed = typed_as(raw, CompletionBody)
        prompts = prompts_of(typed)
        if typed.suffix:
            raise bad_request("Text cannot be inserted before a suffix here; leave it out.", "suffix")
        if typed.best_of is not None and typed.best_of > (typed.n or 1):
            raise bad_request("best_of larger than n is not supported here; ask for n choices.", "best_of")
        if len(prompts) * (typed.n or 1) > MAX_CHOICES:
            raise bad_request(f"{len(prompts)} prompts with n choices each are more than {MAX_CHOICES} in all.", "n")
        if typed.echo and typed.logprobs is not None:
            message = "The log probabilities of the prompt are not known here; leave out echo or logprobs."
            raise bad_request(message, "logprobs")
        extra = others(raw, KNOWN)
        if typed.logprobs is not None:
            extra |= {"logprobs": True, "top_logprobs": typed.logprobs}
        calls = [
            call_of(typed, headers, dict(extra), messages=(Message("user", prompt),), max_tokens=typed.max_tokens)
            for prompt in prompts
        ]
        asks = [ask for call in calls for ask in asks_of(self._relay.router, call)]
        echo = [prompt for prompt in prompts for _ in range(typed.n or 1)] if typed.echo else None
        if calls[0].stream:
            await self._relay.stream(exchange, asks, partial(_writer, calls[0], echo))
        else:
            await self._relay.whole(exchange, asks, partial(_render, calls[0], asks, echo))


def prompts_of(body: CompletionBody) -> list[str]:
    """The prompts as text. Raises ApiError 400."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts or len(prompts) > MAX_PROMPTS:
        raise bad_request(f"prompt wants a text or an array of 1 to {MAX_PROMPTS} texts.", "prompt")
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise bad_request("A prompt in tokens is not supported here; send text.", "prompt")
    return prompts


def _writer(call: ChatCall, echo: list[str] | None, answer: Answer) -> CompletionChunks:
    return CompletionChunks(answer.model or call.request.model, echo, include_usage=call.include_usage)


def _render(call: ChatCall, asks: list[Ask], echo: list[str] | None, wholes: list[Whole], answer: Answer) -> bytes:
    choices = [
        {
            "text": (echo[index] if echo else "") + (whole.text or whole.beside.get("refusal", "")),
            "index": index,
            "logprobs": legacy_logprobs(whole.logprobs["content"]) if whole.logprobs else None,
            "finish_reason": reason_of(whole.reason),
        }
        for index, whole in enumerate(wholes)
    ]
    usage = spent({index: whole.usage for index, whole in enumerate(wholes)}, asks)
    model = answer.model or call.request.model
    return completion(new_id("cmpl-"), model, choices, usage, shoal_object(answer), "text_completion", wholes[0].finish)


class CompletionChunks:
    """Writes the stream (`relay.Writer`)."""

    keep_alive = KEEP_ALIVE

    def __init__(self, model: str | None, echo: list[str] | None, *, include_usage: bool) -> None:
        self._shared: dict[str, Any] = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model or "unknown",
        }
        self._include_usage = include_usage
        self._echo = dict(enumerate(echo or ()))  # what is still to be sent before a choice's own text
        self._offsets: dict[int, int] = {}  # of each choice's text, where log probabilities tell them

    def write(self, index: int, events: Iterable[Event]) -> bytes:
        chunks = [self._chunk(index, text)] if (text := self._echo.pop(index, "")) else []
        for event in events:
            if type(event) is TextDelta:
                chunks.append(self._chunk(index, event.text))
            elif type(event) is Logprobs:
                counted = legacy_logprobs(event.tokens, self._offsets.get(index, 0))
                self._offsets[index] = self._offsets.get(index, 0) + sum(len(token) for token in counted["tokens"])
                if chunks and chunks[-1]["choices"][0]["logprobs"] is None:
                    chunks[-1]["choices"][0]["logprobs"] = counted  # they speak of this text
                else:
                    chunks.append(self._chunk(index, "", logprobs=counted))
        return b"".join(event_bytes(chunk) for chunk in chunks)

    def finish(self, index: int, finish: Finish) -> bytes:
        self._shared |= fields_of(finish)
        return event_bytes(self._chunk(index, refusal_of(finish), reason_of(finish.reason)))

    def end(self, index: int, finish: Finish, usage: Usage | None, shoal: dict[str, Any]) -> bytes:
        self._shared |= fields_of(finish)
        last = self._chunk(index, refusal_of(finish), reason_of(finish.reason))
        if not self._include_usage:
            return event_bytes({**last, "shoal": shoal}) + DONE
        counted = {**self._shared, "choices": [], "usage": usage_object(usage, finish), "shoal": shoal}
        return event_bytes(last) + event_bytes(counted) + DONE

    def fail(self, error: NoAnswer) -> bytes:
        return event_bytes(stream_error(error))

    def _chunk(self, index: int, text: str, reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
        return {**self._shared, "choices": [choice], **({"usage": None} if self._include_usage else {})}


def reason_of(reason: str) -> str:
    """Text completions know no tools; a model that calls one unasked has stopped."""
    return "stop" if reason == "tool_calls" else reason


def legacy_logprobs(tokens: Iterable[dict[str, Any]], offset: int = 0) -> dict[str, Any]:
    """Chat's list of tokens as the four parallel lists of text completions. offset: where their text begins."""
    tokens = list(tokens)
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(str(token.get("token", "")))
    return {
        "tokens": [token.get("token", "") for token in tokens],
        "token_logprobs": [token.get("logprob") for token in tokens],
        "top_logprobs": [
            {top.get("token", ""): top.get("logprob") for top in token.get("top_logprobs") or ()} for token in tokens
        ],
        "text_offset": offsets,
    }
