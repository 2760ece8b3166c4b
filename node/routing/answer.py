"""One caller's view of an answer: who gives it, its events as they come, and how it ended.

async with router.answer(ask) as answer:
    async for event in answer:
        ...
print(answer.provider, answer.cache, answer.response_cid)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import trio

from ...providers.base import ErrorKind, Event
from .alarm import Watch
from .ask import Ask
from .attempt import Attempt
from .flight import Flight
from .no_answer import NoAnswer
from .recording import request_text

if TYPE_CHECKING:
    from .router import Router

CLEANUP_S = 2.0
"""Seconds that the last reader waits for the provider's work to be gone."""


class Answer:
    """An async context manager and iterator. Entering it looks into the cache and starts or joins the generation.

    flight: the one to read, where that is settled already.

    provider, model, peer, cache and route are settled with the first event (`await answer.more()` or the iterator);
    response_cid with the end. Both ways to read raise NoAnswer, and give nothing twice.
    """

    def __init__(self, router: Router, ask: Ask, flight: Flight | None = None) -> None:
        self._router, self._ask = router, ask
        self._flight = flight
        self._next = 0
        self._pending: list[Event] = []
        self._watch: Watch | None = None

    async def __aenter__(self) -> Answer:
        self._ask.began = self._ask.began or self._router.now()
        if self._flight is not None:
            self._router._board(self._flight, self._ask)
            return self
        try:
            self._flight = await self._router._join(self._ask)
        except NoAnswer as error:
            for watcher in self._router.watchers:
                watcher.refused(self._ask, error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        flight = self.flight
        if flight.pilot is not None:
            self._router._ground(flight)
        if self._watch is not None:
            self._watch.stop()
        flight.leave()
        self._router._left(self._ask, flight, round((self._router.now() - self._ask.began) * 1000, 3))
        if not flight.landed and flight.readers == 0 and not isinstance(error, NoAnswer):
            with trio.CancelScope(shield=True), trio.move_on_after(CLEANUP_S):
                await flight.landing()

    @property
    def flight(self) -> Flight:
        if self._flight is None:
            raise RuntimeError("enter the answer first: async with router.answer(ask) as answer")
        return self._flight

    @property
    def provider(self) -> str | None:
        """Who answers, by the name that routes show."""
        return self.flight.provider

    @property
    def model(self) -> str | None:
        """The model that wrote it, as far as is known."""
        return self.flight.model

    @property
    def peer(self) -> str | None:
        """The peer id of the node that answers, or that signed the record; None when it is this one."""
        return self.flight.peer

    @property
    def cache(self) -> str:
        """ "miss", "memory", "disk", "swarm", "dht", or "bypass" when the request is not one for the cache."""
        return self.flight.cache

    @property
    def route(self) -> list[Attempt]:
        return self.flight.route

    @property
    def request_key(self) -> str | None:
        """The request's name in the cache, as text."""
        return request_text(self._ask.key)

    @property
    def response_cid(self) -> str | None:
        """The record's CID as text, once the answer has ended and is stored."""
        return self.flight.response_cid

    async def more(self, within: float | None = None) -> list[Event]:
        """The events that are ready now, at least one; empty at the end. Raises NoAnswer. All at once, and none of an
        answer that fails, for an ask of the whole.

        within: seconds after which TimeoutError is raised when there is none; nothing is lost, call it again.
        """
        if self._pending:
            pending, self._pending = self._pending[::-1], []
            return pending
        flight, start = self._flight or self.flight, self._next
        whole = self._ask.whole
        if flight.pilot is not None:
            await self._fly(flight, flight.pilot)
        elif not flight.ended and (whole or len(flight.events) <= start):
            await self._wait(flight, start, within, whole)
        if whole and flight.failure is not None:
            raise flight.failure.again()
        events = flight.events[start:]
        if events:
            self._next = start + len(events)
            flight.passed(self._next)
        elif flight.failure is not None:
            raise flight.failure.again()
        return events

    async def _fly(self, flight: Flight, pilot: Callable[[], Awaitable[None]]) -> None:
        """Make the answer here; returns at its end."""
        flight.pilot = None
        await pilot()
        if flight.failure is not None and trio.current_time() >= self._ask.deadline:
            raise self._late(flight)

    @staticmethod
    def _late(flight: Flight) -> NoAnswer:
        message = "The request's time is spent; give it more or ask for less text."
        return NoAnswer(ErrorKind.DEADLINE, message, flight.route)

    async def _wait(self, flight: Flight, index: int, within: float | None, whole: bool) -> None:
        """Returns when there is an event at `index`, or the end; `whole`: at the end."""
        due = self._ask.deadline
        if within is not None:
            due = min(due, trio.current_time() + within)
        if self._watch is None:
            self._watch = self._router.alarms.watch(due, lambda: flight.wake(self))
        else:
            self._watch.set(due)
        while True:
            await flight.news(self, at_end=whole)
            if flight.ended or (not whole and len(flight.events) > index):
                return
            if trio.current_time() >= due:
                if due < self._ask.deadline:
                    raise TimeoutError
                raise self._late(flight)

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Event:
        if not self._pending:
            events = await self.more()
            if not events:
                raise StopAsyncIteration
            if len(events) == 1:
                return events[0]
            self._pending = events[::-1]
        return self._pending.pop()

    def result(self) -> dict[str, Any]:
        """What a peer is told at the end, in msgpack's types: {provider, model, cache, peer, record, dropped}.

        record: the signed record without its content, from which the peer rebuilds and verifies it, or None.
        """
        flight = self.flight
        record = flight.record
        return {
            "provider": flight.provider,
            "model": flight.model,
            "cache": flight.cache,
            "peer": flight.peer,
            "record": record.without_content() if record is not None else None,
            "dropped": list(flight.route[-1].dropped) if flight.route else [],
        }
