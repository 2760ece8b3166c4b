"""How many requests a provider works on at once, and how many may wait for their turn.

    gate = Gate("openrouter", running=8, waiting=64)
    async with gate:
        ...

Fair between parties: each has a queue of its own, and the queues take turns, so that one who asks for a hundred answers
does not keep another waiting for one. One more than may wait is refused at once, because a queue that only grows
answers nobody, and so is who has waited for too long; where a party fills the queue, its latest makes room for another
party's first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import trio

from .base import ErrorKind, ProviderError

PARTY: ContextVar[str] = ContextVar("party", default="")
"""For whom the current task works; the router sets it. What a provider starts for a request inherits it."""


class _Visitor:
    """Who waits. outcome: None as long as nothing is decided, True when it is let in, False when it is turned away."""

    __slots__ = ("outcome", "task")

    def __init__(self) -> None:
        self.task = trio.lowlevel.current_task()
        self.outcome: bool | None = None

    def decide(self, outcome: bool) -> None:
        self.outcome = outcome
        trio.lowlevel.reschedule(self.task)


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
        self._queues: OrderedDict[str, deque[_Visitor]] = OrderedDict()  # the next party to be served comes first
        self._waiting = 0

    @property
    def in_flight(self) -> int:
        """Requests inside."""
        return self._running - self._free

    @property
    def waiting(self) -> int:
        """Requests that queue."""
        return self._waiting

    @property
    def full(self) -> bool:
        """Whether the next one would be refused, or would displace another."""
        return not self._free and self._waiting >= self._room

    def facts(self) -> dict[str, Any]:
        """For `Provider.facts`."""
        return {
            "running": self.in_flight,
            "waiting": self.waiting,
            "max_concurrent": self._running,
            "max_queue": self._room,
        }

    def enter_now(self) -> bool:
        """Enter if there is room; whether it was so. What `leave` is the other half of."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def __aenter__(self) -> None:
        if self.enter_now():
            return
        party = PARTY.get()
        if self._waiting >= self._room and not self._makes_room(party):
            raise self._refusal()
        visitor = _Visitor()
        self._queues.setdefault(party, deque()).append(visitor)
        self._waiting += 1
        with trio.move_on_after(self._patience_s) as patience:
            await trio.lowlevel.wait_task_rescheduled(lambda _: self._gave_up(party, visitor))
        if patience.cancelled_caught:
            raise ProviderError(
                ErrorKind.OVERLOADED,
                f"{self._name} had no room for this request within {self._patience_s:g} s; try again later, or raise "
                f"max_concurrent or queue_s in [providers.{self._name}]",
            )
        if not visitor.outcome:
            raise self._refusal()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        # Whoever leaves hands its place over to the one it lets in, so nobody who comes in between can take it.
        if self._queues:
            party, queue = next(iter(self._queues.items()))
            visitor = queue.popleft()
            self._queues.move_to_end(party)
            self._dequeued(party)
            visitor.decide(True)
        else:
            self._free += 1

    def _makes_room(self, party: str) -> bool:
        """The queue is full: whether the latest of the longest queue was turned away for one of `party`."""
        mine = len(self._queues.get(party, ()))
        longest = max(self._queues, key=lambda name: len(self._queues[name]), default=party)
        if len(self._queues.get(longest, ())) <= mine + 1:
            return False
        visitor = self._queues[longest].pop()
        self._dequeued(longest)
        visitor.decide(False)
        return True

    def _gave_up(self, party: str, visitor: _Visitor) -> trio.lowlevel.Abort:
        self._queues[party].remove(visitor)
        self._dequeued(party)
        return trio.lowlevel.Abort.SUCCEEDED

    def _dequeued(self, party: str) -> None:
        self._waiting -= 1
        if not self._queues[party]:
            del self._queues[party]

    def _refusal(self) -> ProviderError:
        return ProviderError(
            ErrorKind.OVERLOADED,
            f"{self._name} works on {self._running} requests and {self._waiting} more wait; "
            f"try again later, or raise max_concurrent or max_queue in [providers.{self._name}]",
        )
