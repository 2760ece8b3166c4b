"""`POST /v1/chat/completions`: the way of a question through the RPC.

A hit in memory is answered without waiting for anything. Several choices are several generations at once, each with a
seed of its own where a seed was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import msgspec

from ...cache.key import Key
from ...protocols.http.exchange import Exchange
from ...providers.base import GenerateRequest
from ..routing.answer import Answer
from ..routing.ask import Ask
from ..routing.recording import request_text
from ..routing.router import Router
from .chat_answer import Chunks, Whole, completion, new_id, plain_completion, shoal_object
from .chat_request import ChatCall, read_call
from .grant import grant_of
from .relay import Relay, spent
from .repeats import Question, Repeat, Repeats

_SEEDS = 2**63


class ChatCompletions:
    """The handler."""

    def __init__(self, relay: Relay) -> None:
        self._relay, self._repeats = relay, Repeats()

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        question, repeat = self._repeats.find(exchange.body, headers)
        call = read_call(exchange.body, headers) if repeat is None else repeat.call
        relay = self._relay
        asks = asks_of(relay.router, call)
        if call.stream:
            await relay.stream(exchange, asks, partial(self._writer, call))
        elif len(asks) > 1 or not await self._from_memory(exchange, call, asks[0], question, repeat):
            await relay.whole(exchange, asks, partial(self._render, call, asks))

    async def _from_memory(
        self, exchange: Exchange, call: ChatCall, ask: Ask, question: Question, repeat: Repeat | None
    ) -> bool:
        """Answer with what is in memory; False when there is nothing."""
        if repeat is not None:
            ask.known = repeat.key
        grant = grant_of(exchange, [ask])
        found = self._relay.router.peek(ask)
        if found is None:
            return False
        if repeat is None or repeat.cid != found.cid:
            if not isinstance(ask.key, Key):
                return False
            repeat = self._repeats.keep(question, call, ask.key, found, request_text(ask.key))
        if grant is not None:
            grant.used(None)
        await exchange.respond(200, repeat.body, repeat.headers)
        return True

    @staticmethod
    def _writer(call: ChatCall, answer: Answer) -> Chunks:
        return Chunks(new_id(), answer.model or call.request.model, include_usage=call.include_usage)

    @staticmethod
    def _render(call: ChatCall, asks: list[Ask], wholes: list[Whole], answer: Answer) -> bytes:
        if len(wholes) == 1 and (only := wholes[0]).plain and only.usage is not None:
            return plain_completion(
                new_id(), answer.model or call.request.model, only, only.usage, shoal_object(answer)
            )
        choices = [whole.choice(index) for index, whole in enumerate(wholes)]
        usage = spent({index: whole.usage for index, whole in enumerate(wholes)}, asks)
        model, last = answer.model or call.request.model, wholes[0].finish
        return completion(new_id(), model, choices, usage, shoal_object(answer), finish=last)


def asks_of(router: Router, call: ChatCall) -> list[Ask]:
    """An ask for each choice of a call. Several choices are made now: out of a cache they would all be the same."""
    control = call.cache_control
    if call.request.n > 1:
        control = msgspec.structs.replace(control, no_store=True)
    return [
        router.ask(request, timeout_s=call.timeout_s, cache_control=control, allow_fallback=call.allow_fallback)
        for request in apart(call.request)
    ]


def apart(request: GenerateRequest) -> list[GenerateRequest]:
    """A request for n choices as n requests for one; with one seed they would be one text n times."""
    if request.n == 1:
        return [request]
    seed = request.seed
    return [
        msgspec.structs.replace(
            request, n=1, seed=None if seed is None else (seed + i + _SEEDS) % (2 * _SEEDS) - _SEEDS
        )
        for i in range(request.n)
    ]
