"""`POST /v1/completions`: the older shape, in which a model goes on with bare text (completions_request.py reads it).

The text goes to the model as it stands where who answers can do that (routing/completing.py); to others as a user's
message. `echo` of a text is this file's; of token ids, and with log probabilities, it is the provider's, who alone
knows the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ...protocols.http.exchange import Exchange
from ...providers.base import Event, Finish, Logprobs, TextDelta, Usage
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
from .chat_request import ChatCall
from .completions_request import read_completions
from .errors import stream_error
from .openai_chat import asks_of
from .relay import Relay, spent


class Completions:
    """The handler."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        asked = read_completions(exchange.body, headers)
        call = asked.calls[0]
        asks = [ask for each in asked.calls for ask in asks_of(self._relay.router, each)]
        if call.stream:
            await self._relay.stream(exchange, asks, partial(_writer, call, asked.echo))
        else:
            await self._relay.whole(exchange, asks, partial(_render, call, asks, asked.echo))


def _writer(call: ChatCall, echo: list[str], answer: Answer) -> CompletionChunks:
    return CompletionChunks(answer.model or call.request.model, echo, include_usage=call.include_usage)


def _render(call: ChatCall, asks: list[Ask], echo: list[str], wholes: list[Whole], answer: Answer) -> bytes:
    choices = [
        {
            "text": echo[index] + (whole.text or whole.beside.get("refusal", "")),
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

    def __init__(self, model: str | None, echo: list[str], *, include_usage: bool) -> None:
        self._shared: dict[str, Any] = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model or "unknown",
        }
        self._include_usage = include_usage
        self._echo = dict(enumerate(echo))  # what is still to be sent before a choice's own text
        self._offsets: dict[int, int] = {}  # of each choice's text, where log probabilities tell them

    def write(self, index: int, events: Iterable[Event]) -> bytes:
        chunks = [self._chunk(index, text)] if (text := self._echo.pop(index, "")) else []
        for event in events:
            if type(event) is TextDelta:
                chunks.append(self._chunk(index, event.text))
            elif type(event) is Logprobs:
                counted = legacy_logprobs(event.tokens, self._offsets.get(index, 0))
                if counted["tokens"]:
                    self._offsets[index] = counted["text_offset"][-1] + len(counted["tokens"][-1])
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
    """Chat's list of tokens as the four parallel lists of text completions.

    offset: where their text begins, unless a token says itself where it stands. Nothing is known of the first token of
    a text: its logprob is None, and so are its alternatives.
    """
    tokens = list(tokens)
    offsets = []
    for token in tokens:
        offset = token.get("text_offset", offset)
        offsets.append(offset)
        offset += len(str(token.get("token", "")))
    return {
        "tokens": [token.get("token", "") for token in tokens],
        "token_logprobs": [token.get("logprob") for token in tokens],
        "top_logprobs": [_likeliest(token) for token in tokens],
        "text_offset": offsets,
    }


def _likeliest(token: dict[str, Any]) -> dict[str, float] | None:
    """The likeliest tokens at a token's place, and the token itself, which is always told of."""
    if token.get("logprob") is None:
        return None
    told = {top.get("token", ""): top.get("logprob") for top in token.get("top_logprobs") or ()}
    return {**told, token.get("token", ""): token["logprob"]}
