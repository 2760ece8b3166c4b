"""`POST /v1/chat/completions`: the way of a question through the RPC.

A hit in memory is answered without waiting for anything. Else the answer's first event is awaited before the head is
sent, so that a failure has its own status; a long silence is bridged by comments, and then an error is an event.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...protocols.http.exchange import Exchange
from ...providers.base import Event, Finish, Usage
from ..routing.answer import Answer
from ..routing.no_answer import NoAnswer
from ..routing.recording import request_text
from ..routing.router import Router
from .chat_answer import (
    AT_THE_END,
    KEEP_ALIVE,
    STREAM,
    Chunks,
    Whole,
    body_of_record,
    event_bytes,
    headers_of,
    headers_of_record,
    new_id,
    shoal_object,
)
from .chat_request import ChatCall, read_call
from .errors import JSON, stream_error

KEEP_ALIVE_S = 15.0
"""Seconds of silence after which a stream gets a comment, so that nobody between takes it for dead."""


class ChatCompletions:
    """The handler. keep_alive_s: seconds of silence between two comments in a stream."""

    def __init__(self, router: Router, *, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._router, self._keep_alive_s = router, keep_alive_s

    async def __call__(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        call = read_call(exchange.body, headers)
        ask = self._router.ask(
            call.request,
            timeout_s=call.timeout_s,
            cache_control=call.cache_control,
            allow_fallback=call.allow_fallback,
        )
        if not call.stream:
            found = self._router.peek(ask)
            if found is not None:
                body = body_of_record(new_id(), found, request_text(ask.key))
                await exchange.respond(200, body, headers_of_record(found))
                return
        async with self._router.answer(ask) as answer:
            if call.stream:
                await self._stream(exchange, call, answer)
            else:
                await self._whole(exchange, call, answer)

    async def _whole(self, exchange: Exchange, call: ChatCall, answer: Answer) -> None:
        whole = Whole()
        while events := await answer.more():
            whole.take(events)
        body = whole.body(new_id(), answer.model or call.request.model, shoal_object(answer))
        await exchange.respond(200, body, headers_of(answer, JSON))

    async def _stream(self, exchange: Exchange, call: ChatCall, answer: Answer) -> None:
        events = await self._next(answer)
        chunks = Chunks(new_id(), answer.model or call.request.model, include_usage=call.include_usage)
        async with exchange.stream(200, headers_of(answer, STREAM, AT_THE_END)) as send:
            usage: Usage | None = None
            try:
                while True:
                    if events is None:
                        await send(KEEP_ALIVE)
                    else:
                        usage, finish = _ending(events, usage)
                        data = chunks.write(events)
                        if finish is not None:
                            await send(data + chunks.end(finish, usage, shoal_object(answer)), last=True)
                            return
                        await send(data)
                    events = await self._next(answer)
            except NoAnswer as error:
                # The head is sent and perhaps text, too: the caller gets the reason, and no end mark.
                await send(event_bytes(stream_error(error)), last=True)

    async def _next(self, answer: Answer) -> list[Event] | None:
        """What is ready next; None when there was nothing for a while."""
        try:
            return await answer.more(within=self._keep_alive_s)
        except TimeoutError:
            return None


def _ending(events: list[Event], usage: Usage | None) -> tuple[Usage | None, Finish | None]:
    """The usage and the finish, which are the last events when they are there at all."""
    finish = None
    for event in events[-2:]:
        if type(event) is Finish:
            finish = event
        elif type(event) is Usage:
            usage = event
    return usage, finish
