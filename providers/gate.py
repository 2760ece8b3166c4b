"""How many requests a provider works on at once, and how many may wait for their turn.

    gate = Gate("openrouter", running=8, waiting=64)
    async with gate:
        ...

First come, first served: who leaves hands its place to the one that has waited longest. One more than may wait is
refused at once, because a queue that only grows answers nobody, and so is who has waited for too long.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import trio

from .base import ErrorKind, ProviderError


class Gate:
    """An async context manager: inside it, a request is one of at most `running`.

    running: requests at once, at least 1. waiting: requests that may queue, 0 or more. patience_s: seconds that one may
    wait. Entering raises ProviderError(OVERLOADED) when the queue is full, or the wait too long.
    """

    def __init__(self, name: str, *, running: int, waiting: int, patience_s: float = float("inf")) -> None:
        if running < 1 or waiting < 0:
            raise ValueError(f"a gate needs room for at least one request, got running={running}, waiting={waiting}")
        self._name = name
        self._free = running
        self._running = running
        self._room = waiting
        self._patience_s = patience_s
        self._queue = trio.lowlevel.ParkingLot()

    @property
    def in_flight(self) -> int:
        """Requests inside."""
        return self._running - self._free

    @property
    def waiting(self) -> int:
        """Requests that queue."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether the next one would be refused."""
        return not self._free and len(self._queue) >= self._room

    def facts(self) -> dict[str, Any]:
        """For `Provider.facts`."""
        return {
            "running": self.in_flight,
            "waiting": self.waiting,
            "max_concurrent": self._running,
            "max_queue": self._room,
        }

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
        with trio.move_on_after(self._patience_s) as patience:
            await self._queue.park()
        if patience.cancelled_caught:
            raise ProviderError(
                ErrorKind.OVERLOADED,
                f"{self._name} had no room for this request within {self._patience_s:g} s; try again later, or raise "
                f"max_concurrent or queue_s in [providers.{self._name}]",
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._queue:
            self._queue.unpark()
        else:
            self._free += 1
