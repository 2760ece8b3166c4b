"""Deadlines that move with every event: setting one again costs an assignment.

A cancel scope costs 10 to 20 us to enter and 5 us to move, which is too much for each event of each stream. Here one
task sleeps until the earliest time that anything asked for; a deadline that has moved on by then is put back.

    watch = alarms.watch(trio.current_time() + 30, scope.cancel)
    watch.set(trio.current_time() + 30)  # again and again
    watch.stop()
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio


def _nothing() -> None:
    pass


class Watch:
    """One deadline (trio time). Its callback is called once, at or after it, unless it is set again or stopped."""

    __slots__ = ("_alarms", "due", "on_due", "queued")

    def __init__(self, alarms: Alarms, due: float, on_due: Callable[[], object]) -> None:
        self._alarms, self.on_due = alarms, on_due
        self.queued = math.inf  # the time that the alarms have it down for
        self.due = math.inf
        self.set(due)

    def set(self, due: float) -> None:
        """The deadline is `due` from now on, also when it has passed before."""
        self.due = due
        if due < self.queued:
            self._alarms.queue(self)

    def stop(self) -> None:
        """Never call back. What the callback holds is let go, though an entry may stand in the heap for long."""
        self.due, self.on_due = math.inf, _nothing
        if self.queued != math.inf:
            self.queued = math.inf
            self._alarms.stopped()


class Alarms:
    """The watches of one router; `run` is their task."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Watch]] = []
        self._count = itertools.count()
        self._stale = 0
        self._sooner = trio.Event()
        self._sleeping_until = -math.inf

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, due: float, on_due: Callable[[], object]) -> Watch:
        return Watch(self, due, on_due)

    def queue(self, watch: Watch) -> None:
        if watch.queued != math.inf:
            self.stopped()  # its entry for a later time
        watch.queued = watch.due
        heapq.heappush(self._heap, (watch.due, next(self._count), watch))
        if watch.due < self._sleeping_until:
            self._sooner.set()

    def stopped(self) -> None:
        """An entry no longer counts. When most of them don't, they go."""
        self._stale += 1
        if self._stale > 64 and self._stale * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].queued == entry[0]]
            heapq.heapify(self._heap)
            self._stale = 0

    async def run(self) -> None:
        """Calls back what is due, until cancelled."""
        while True:
            self._call(trio.current_time())
            self._sooner = trio.Event()
            self._sleeping_until = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=self._sleeping_until):
                await self._sooner.wait()
            self._sleeping_until = -math.inf

    def _call(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            at, _, watch = heapq.heappop(self._heap)
            if watch.queued != at:
                self._stale = max(0, self._stale - 1)
                continue
            watch.queued = math.inf
            if watch.due <= now:
                watch.due = math.inf
                watch.on_due()
            elif watch.due < math.inf:
                self.queue(watch)


class Limit:
    """A deadline's effect. end: what ends the work that is late; passed: whether it is late."""

    __slots__ = ("end", "passed")

    def __init__(self) -> None:
        self.end: Callable[[], None] | None = None
        self.passed = False

    def pass_(self) -> None:
        self.passed = True
        if self.end is not None:
            self.end()
