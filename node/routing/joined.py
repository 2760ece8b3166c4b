"""A generation that somebody else has begun, from the inside: as a provider for this node, and as an answer for a peer.

Both read from the first event on, leave when they are cancelled, and end where the generation turns to another model
than the key names (a route's second target).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from ...providers.base import ErrorKind, Event, GenerateRequest, Provider, ProviderError, Status
from .answer import Answer
from .flight import Flight
from .no_answer import NoAnswer

IN_A_ROW = 64
"""Events that are read before others get their turn."""
ASTRAY = "the generation that was joined goes on with another model"


class JoinedHere(Provider):
    """Another generation of this node. deadline: trio time until which it is wanted."""

    def __init__(self, flight: Flight, deadline: float) -> None:
        self.name = flight.provider or "shared"
        self._flight, self._deadline = flight, deadline

    async def probe(self) -> Status:
        return Status(ready=True)

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        return self._generate()

    @asynccontextmanager
    async def _generate(self) -> AsyncGenerator[AsyncIterator[Event]]:
        flight = self._flight
        flight.join(self._deadline)
        try:
            yield _Reading(flight)
        finally:
            flight.leave()


class _Reading:
    """flight: for whoever reads it to the end: what it left behind is the reader's, too."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self._next = 0

    def __aiter__(self) -> _Reading:
        return self

    async def __anext__(self) -> Event:
        flight = self.flight
        while self._next >= len(flight.events) and not flight.ended:
            await flight.news(self)
        if flight.astray:
            raise ProviderError(ErrorKind.UNAVAILABLE, ASTRAY)
        if self._next < len(flight.events):
            self._next += 1
            if self._next % IN_A_ROW == 0:
                await trio.lowlevel.checkpoint()  # there may be thousands at hand
            flight.passed(self._next)
            return flight.events[self._next - 1]
        if flight.failure is not None:
            raise ProviderError(flight.failure.kind, flight.failure.message, retry_after=flight.failure.retry_after)
        await trio.lowlevel.checkpoint()
        raise StopAsyncIteration


class JoinedAnswer(Answer):
    """A peer's view of a generation that it has joined by its key."""

    async def more(self, within: float | None = None) -> list[Event]:
        events = await super().more(within)
        if self.flight.astray:
            raise NoAnswer(ErrorKind.UNAVAILABLE, ASTRAY)
        return events
