"""How many requests a provider works on at once, and how many may wait for their turn.

    gate = Gate("openrouter", running=8, waiting=64)
    async with gate:
        ...

First come, first served. One more than may wait is refused at once, because a queue that only grows answers nobody.
"""

from __future__ import annotations

from types import TracebackType

import trio

from .base import ErrorKind, ProviderError


class Gate:
    """An async context manager: inside it, a request is one of at most `running`.

    running: requests at once, at least 1. waiting: requests that may queue, 0 or more.
    Entering raises ProviderError(OVERLOADED) when the queue is full.
    """

    def __init__(self, name: str, *, running: int, waiting: int) -> None:
        if running < 1 or waiting < 0:
            raise ValueError(f"a gate needs room for at least one request, got running={running}, waiting={waiting}")
        self._name = name
        self._free = running
        self._running = running
        self._room = waiting
        self._queue = trio.lowlevel.ParkingLot()

    @property
    def in_flight(self) -> int:
        """Requests inside."""
        return self._running - self._free

    @property
    def waiting(self) -> int:
        """Requests that queue."""
        return len(self._queue)

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._queue) >= self._room:
            raise ProviderError(
                ErrorKind.OVERLOADED,
                f"{self._name} works on {self._running} requests and {len(self._queue)} more wait; "
                f"try again later, or raise max_concurrent or max_queue in [providers.{self._name}]",
            )
        # Whoever leaves hands its place over to the one it wakes, so nobody who comes in between can take it.
        await self._queue.park()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._queue:
            self._queue.unpark()
        else:
            self._free += 1
