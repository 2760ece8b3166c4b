"""From asks to an HTTP answer, whatever its shape: whole or streamed, one choice or several at once.

A shape (chat completions, messages, ...) brings a `Writer` for streams and a renderer for whole answers. An answer's
first event is awaited before the head is sent, so that a failure has its own status; a long silence is bridged by
keep-alives, and from then on an error is an event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import trio

from ...protocols.http.exchange import Exchange
from ...providers.base import Completion, ErrorKind, Event, Finish, Message, Usage
from ...providers.trace import TRACE
from ..routing.answer import Answer
from ..routing.ask import Ask
from ..routing.no_answer import NoAnswer
from ..routing.router import Router
from .chat_answer import AT_THE_END, STREAM, Whole, headers_of, shoal_object
from .errors import JSON
from .grant import Grant, grant_of

KEEP_ALIVE_S = 15.0
"""Seconds of silence after which a stream gets a keep-alive, so that nobody between takes it for dead."""


class Writer(Protocol):
    """Writes one stream. `index` counts the choices from 0."""

    keep_alive: bytes

    def write(self, index: int, events: Iterable[Event]) -> bytes:
        """What `events` say, without their Usage and Finish."""
        ...

    def finish(self, index: int, finish: Finish) -> bytes:
        """A choice has ended that is not the last one to end."""
        ...

    def end(self, index: int, finish: Finish, usage: Usage | None, shoal: dict[str, Any]) -> bytes:
        """The last choice has ended, and with it the stream."""
        ...

    def fail(self, error: NoAnswer) -> bytes:
        """The stream ends without an answer; what is sent here replaces its end."""
        ...


MakeWriter = Callable[[Answer], Writer]
Render = Callable[[list[Whole], Answer], bytes]


class Relay:
    """keep_alive_s: seconds of silence between two keep-alives in a stream."""

    def __init__(self, router: Router, *, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self.router, self._keep_alive_s = router, keep_alive_s

    async def whole(self, exchange: Exchange, asks: Sequence[Ask], render: Render) -> None:
        """Answer with one body, in the order of the asks. Raises NoAnswer when one of them has no answer.

        Here and in `stream`, asks of the same request stand together: their prompt is counted once.
        """
        grant = self._admitted(exchange, asks)
        for ask in asks:
            ask.whole = True
        if len(asks) == 1:
            whole = Whole()
            async with self.router.answer(asks[0]) as answer:
                while whole.finish is None and (events := await answer.more()):
                    whole.take(events)
                body, (headers, lines) = render([whole], answer), headers_of(answer, JSON)
            wholes = [whole]
        else:
            wholes, answer = await self._gather(asks)
            body, (headers, lines) = render(wholes, answer), headers_of(answer, JSON)
        if grant is not None:
            grant.used(spent({index: whole.usage for index, whole in enumerate(wholes)}, asks))
        await exchange.respond(200, body, headers, lines)

    async def stream(self, exchange: Exchange, asks: Sequence[Ask], make_writer: MakeWriter) -> None:
        """Answer with server-sent events. Raises NoAnswer as long as nothing was sent."""
        grant = self._admitted(exchange, asks)
        if len(asks) > 1:
            usage = await self._stream_many(exchange, asks, make_writer)
        else:
            async with self.router.answer(asks[0]) as answer:
                usage = await self._stream_one(exchange, answer, make_writer)
        if grant is not None:
            grant.used(usage)

    def _admitted(self, exchange: Exchange, asks: Sequence[Ask]) -> Grant | None:
        if (trace := TRACE.get()) is not None:
            for ask in asks:
                ask.trace = trace.through(recorded=self.router.traced)
        return grant_of(exchange, asks)

    # -- one choice --------------------------------------------------------------------------------------------

    async def _stream_one(self, exchange: Exchange, answer: Answer, make_writer: MakeWriter) -> Usage | None:
        events = await self._next(answer)
        writer = make_writer(answer)
        async with exchange.stream(200, *headers_of(answer, STREAM, AT_THE_END)) as send:
            usage: Usage | None = None
            try:
                while True:
                    if events is None:
                        await send(writer.keep_alive)
                    else:
                        usage, finish = ending(events, usage)
                        data = writer.write(0, events)
                        if finish is not None:
                            await send(data + writer.end(0, finish, usage, shoal_object(answer)), last=True)
                            break
                        if data:
                            await send(data)
                    events = await self._next(answer)
            except NoAnswer as error:
                # The head is sent and perhaps text, too: the caller gets the reason, and no end mark.
                await send(writer.fail(error), last=True)
        return usage

    async def _next(self, answer: Answer) -> list[Event] | None:
        """What is ready next; None when there was nothing for a while."""
        try:
            return await answer.more(within=self._keep_alive_s)
        except TimeoutError:
            return None

    # -- several -----------------------------------------------------------------------------------------------

    async def _gather(self, asks: Sequence[Ask]) -> tuple[list[Whole], Answer]:
        """All the answers, and the first of them to say where they came from; the first failure ends the others."""
        wholes = [Whole() for _ in asks]
        answers: list[Answer] = []
        failures: list[NoAnswer] = []

        async def collect(whole: Whole, ask: Ask, scope: trio.CancelScope) -> None:
            try:
                async with self.router.answer(ask) as answer:
                    while events := await answer.more():
                        whole.take(events)
                    answers.append(answer)
            except NoAnswer as error:
                failures.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for whole, ask in zip(wholes, asks, strict=True):
                nursery.start_soon(collect, whole, ask, nursery.cancel_scope)
        if failures:
            raise failures[0]
        return wholes, answers[0]

    async def _stream_many(self, exchange: Exchange, asks: Sequence[Ask], make_writer: MakeWriter) -> Usage | None:
        failure: NoAnswer | None = None
        usage: Usage | None = None
        async with trio.open_nursery() as nursery:
            give, take = trio.open_memory_channel[_Piece](0)
            for index, ask in enumerate(asks):
                nursery.start_soon(self._pull, index, ask, give.clone())
            give.close()
            try:
                usage = await self._merge(exchange, take, make_writer, asks)
            except NoAnswer as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return usage

    async def _pull(self, index: int, ask: Ask, give: trio.MemorySendChannel[_Piece]) -> None:
        """One choice's events into the channel; the answer stays open until the reader has no more use for it."""
        with give:
            try:
                async with self.router.answer(ask) as answer:
                    while events := await answer.more():
                        await give.send((index, answer, events, None))
            except NoAnswer as error:
                await give.send((index, None, [], error))

    async def _merge(
        self, exchange: Exchange, take: trio.MemoryReceiveChannel[_Piece], make_writer: MakeWriter, asks: Sequence[Ask]
    ) -> Usage | None:
        open_choices = len(asks)
        index, answer, events, error = await take.receive()
        if error is not None or answer is None:
            raise error or NoAnswer(ErrorKind.CANCELLED, "The generation was cancelled before it ended.")
        writer = make_writer(answer)
        usages: dict[int, Usage | None] = {}
        async with exchange.stream(200, *headers_of(answer, STREAM, AT_THE_END)) as send:
            while True:
                if error is not None:
                    await send(writer.fail(error), last=True)
                    break
                if events:
                    usages[index], finish = ending(events, usages.get(index))
                    data = writer.write(index, events)
                    if finish is not None:
                        open_choices -= 1
                        if not open_choices:
                            end = writer.end(index, finish, spent(usages, asks), shoal_object(answer))
                            await send(data + end, last=True)
                            break
                        data += writer.finish(index, finish)
                else:
                    data = writer.keep_alive
                if data:
                    await send(data)
                events = []
                with trio.move_on_after(self._keep_alive_s):
                    index, _, events, error = await take.receive()
        return spent(usages, asks)


_Piece = tuple[int, Answer | None, list[Event], NoAnswer | None]


def ending(events: list[Event], usage: Usage | None) -> tuple[Usage | None, Finish | None]:
    """The usage and the finish, which are the last events when they are there at all."""
    finish = None
    for event in events[-2:]:
        if type(event) is Finish:
            finish = event
        elif type(event) is Usage:
            usage = event
    return usage, finish


def spent(usages: Mapping[int, Usage | None], asks: Sequence[Ask]) -> Usage | None:
    """What several choices cost. Choices of one prompt count it once, as OpenAI does; None when nobody counted."""
    told = ((asks[index].request, usage) for index, usage in usages.items() if usage is not None)
    counted = [((request.messages, request.completion), usage) for request, usage in told]
    if len(counted) <= 1:
        return counted[0][1] if counted else None
    prompts: list[tuple[tuple[Message, ...], Completion | None]] = []
    prompt_tokens = cached = 0
    for prompt, usage in counted:
        if prompt not in prompts:
            prompts.append(prompt)
            prompt_tokens += usage.prompt_tokens
            cached += usage.cached_tokens
    costs = [usage.cost for _, usage in counted if usage.cost is not None]
    return Usage(
        prompt_tokens,
        sum(usage.completion_tokens for _, usage in counted),
        cached,
        sum(usage.reasoning_tokens for _, usage in counted),
        sum(costs) if costs else None,
    )
