"""One generation and everyone who reads it: single flight, and the buffer between a provider and slow callers.

The writer is a task of the router (`generation.py`); readers come and go. Each reads from the first event on, so that
who joins late gets the text so far and then the live stream. When the last one leaves, the generation is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence

import trio

from ...cache.record import Record
from ...providers.base import ErrorKind, Event, Usage
from .attempt import Attempt
from .no_answer import NoAnswer
from .recording import Found

Reader = Hashable
"""Whoever reads; only its identity counts."""


class Flight:
    """What is known of an answer while it is made: its events, who writes it, and how it ended.

    deadline: the latest of its readers' deadlines. party: for whom it takes up room. end: what ends its writer's
    work, while there is something to end (`stop`).
    """

    def __init__(self, deadline: float, *, read_ahead: int = 4096, party: str = "") -> None:
        self.deadline, self.party = deadline, party
        self.end: Callable[[], None] | None = None
        self.stopped = False  # nobody wants it any more
        self.events: list[Event] = []
        self.ended = False
        self.public = False  # whether its answer may be given to other nodes
        self.astray = False  # whether it has turned to another model than its key names
        self.failure: NoAnswer | None = None
        self.readers = 0
        self.landed = False  # the writer has gone
        self.alone = False  # its only reader, who waits for the end, is its writer
        self.pilot: Callable[[], Awaitable[None]] | None = None  # writes it, when that reader asks it to

        self.provider: str | None = None
        self.model: str | None = None
        self.peer: str | None = None
        self.cache = "miss"
        self.route: list[Attempt] = []
        self.response_cid: str | None = None
        self.record: Record | None = None
        self.usage: Usage | None = None

        self._waiting: dict[Reader, trio.lowlevel.Task] = {}
        self._at_end: dict[Reader, trio.lowlevel.Task] = {}
        self._room: trio.lowlevel.ParkingLot | None = None
        self._landing: trio.Event | None = None
        self._front = 0
        self._read_ahead = read_ahead
        self._on_later_deadline: Callable[[float], None] | None = None

    # -- the writer's side

    def put(self, event: Event) -> None:
        self.events.append(event)
        if self._waiting:
            self._wake_all()

    @property
    def full(self) -> bool:
        """Whether the writer should wait in `room` before it takes more from its provider.

        Never while somebody waits for the end: the whole answer is gathered for him, and its size has a limit.
        """
        return len(self.events) - self._front >= self._read_ahead and not self._at_end and not self.alone

    async def room(self) -> None:
        """Returns when the fastest reader has caught up enough."""
        while self.full:
            if self._room is None:
                self._room = trio.lowlevel.ParkingLot()
            await self._room.park()

    def take_back(self) -> bool:
        """Forgets what was written, when every reader waits for the end and nobody has read a word; whether so."""
        read_along = len(self._at_end) < self.readers and not self.alone
        if self._front or read_along or not self.events or self.ended:
            return False
        self.events.clear()
        return True

    def finish(self, events: Sequence[Event]) -> None:
        """The last events; the answer is whole."""
        self.events.extend(events)
        for event in events[-2:]:  # the count of tokens stands before the Finish
            if type(event) is Usage:
                self.usage = event
        self.ended = True
        if self._waiting:
            self._wake_all()
        if self._at_end:
            self._wake_at_end()

    def take(self, found: Found) -> None:
        """An answer from a cache becomes the whole of it."""
        self.provider, self.model, self.response_cid = found.provider, found.model, found.cid
        self.peer, self.record = found.peer, found.record
        self.finish(found.events)

    def fail(self, failure: NoAnswer) -> None:
        """The answer ends here. Without effect when it has ended already."""
        if not self.ended:
            self.failure, self.ended = failure, True
            self._wake_all()
            self._wake_at_end()

    def land(self) -> None:
        """The writer has gone."""
        self.landed = True
        if self._landing is not None:
            self._landing.set()

    async def landing(self) -> None:
        """Returns when the writer has gone."""
        if not self.landed:
            self._landing = self._landing or trio.Event()
            await self._landing.wait()

    def stop(self) -> None:
        """Ends the generation, wherever it waits."""
        self.stopped = True
        if self.end is not None:
            self.end()

    def when_deadline_moves(self, callback: Callable[[float], None] | None) -> None:
        """`callback(deadline)` is called when a reader with a later deadline joins."""
        self._on_later_deadline = callback

    # -- the readers' side

    def join(self, deadline: float) -> None:
        self.readers += 1
        if deadline > self.deadline:
            self.deadline = deadline
            if self._on_later_deadline is not None:
                self._on_later_deadline(deadline)

    def leave(self) -> None:
        self.readers -= 1
        if self.readers == 0 and not self.landed:
            self.stop()

    async def news(self, reader: Reader, *, at_end: bool = False) -> None:
        """Returns when there is an event more, or the end, or when `wake` was called for this reader.

        at_end: for a reader that takes nothing before the end: events do not wake it.
        """
        waiting = self._at_end if at_end else self._waiting
        waiting[reader] = trio.lowlevel.current_task()
        if at_end and self._room is not None:
            self._room.unpark_all()

        def leave(_: object) -> trio.lowlevel.Abort:
            del waiting[reader]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    def wake(self, reader: Reader) -> None:
        """Let one reader look at the time."""
        task = self._waiting.pop(reader, None) or self._at_end.pop(reader, None)
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _wake_all(self) -> None:
        for task in self._waiting.values():
            trio.lowlevel.reschedule(task)
        self._waiting.clear()

    def _wake_at_end(self) -> None:
        for task in self._at_end.values():
            trio.lowlevel.reschedule(task)
        self._at_end.clear()

    def passed(self, index: int) -> None:
        """A reader has taken the events before `index`."""
        if index > self._front:
            self._front = index
            if self._room is not None:
                self._room.unpark_all()


class Flights:
    """The generations under way that others may join, by what they answer."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Flight] = {}
        self.joined = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: Hashable) -> Flight | None:
        """The flight to join. One that failed or whose last reader has just left is no longer one."""
        flight = self._by_key.get(key)
        if flight is None or flight.failure is not None or flight.readers == 0:
            return None
        self.joined += 1
        return flight

    def add(self, key: Hashable, flight: Flight) -> None:
        self._by_key[key] = flight

    def remove(self, key: Hashable, flight: Flight) -> None:
        if self._by_key.get(key) is flight:
            del self._by_key[key]


def stopped() -> NoAnswer:
    return NoAnswer(ErrorKind.CANCELLED, "The generation was cancelled before it ended.")


def node_stops(kind: ErrorKind = ErrorKind.CANCELLED) -> NoAnswer:
    return NoAnswer(kind, "The node is stopping; ask again when it runs.", code="stopping", retry_after=1.0)
