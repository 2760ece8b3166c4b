"""Answers that outlive the line they are told on: a relay dies or has carried enough, and the answer goes on.

An asker whose session runs through a relay gives its call a ticket. This node then makes the answer in a task of its
own, and keeps its events. When the session is lost, the task goes on for a while; the asker connects again, by another
relay perhaps, and calls "resume" with the ticket and the number of events that it has. It gets the rest of the very
same answer. Without a ticket nothing is kept, and a session's end is the call's end.

What belongs here: the serving side. The asking side is peer_provider.py's.
"""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import msgspec
import trio
from msgspec import Meta, Struct

from ...protocols.peer_id import PeerId
from ...protocols.session import CallError, IncomingCall
from ...providers.base import ErrorKind
from .serving import PeersAnswer, relay

RESUME = "resume"
GONE = "gone"  # the code of the error for a ticket that is not known (any more)
GRACE_S = 10.0  # that an answer is kept, or made, while nobody listens
AHEAD = 256  # events that are made beyond what the listener has taken
AHEAD_BYTES = 1024 * 1024  # the same in bytes
MAX_KEPT = 256  # answers
MAX_KEPT_EVENTS = 65_536  # of one answer; beyond them nobody who has lost his place finds it again
MAX_KEPT_BYTES = 64 * 1024 * 1024  # of all answers; beyond them what has been told is let go, and nothing new is kept
EVENT_BYTES = 128  # what an event takes besides its words

_encode = msgspec.msgpack.Encoder().encode

Ticket = Annotated[str, Meta(min_length=16, max_length=64)]


class ResumeParams(Struct, frozen=True, kw_only=True):
    """ticket: that of the "generate" call. got: the events that came of it."""

    ticket: Ticket
    got: Annotated[int, Meta(ge=0, le=MAX_KEPT_EVENTS)]


class _Room:
    """The bytes that all kept answers take together."""

    def __init__(self) -> None:
        self.used = 0

    @property
    def full(self) -> bool:
        return self.used > MAX_KEPT_BYTES


class _Kept:
    """One answer. It stands in for the call while the answer is made.

    first: the number of the first event that is still kept. taken: how many events the listener has.
    """

    def __init__(self, room: _Room) -> None:
        self.scope = trio.CancelScope()
        self.accepted: Any = None
        self.first = 0
        self._events: list[Any] = []
        self._sizes: list[int] = []
        self._room = room
        self._ahead = 0  # bytes that the listener has not taken
        self.result: Any = None
        self.error: Exception | None = None
        self.over = False
        self.listener: object | None = None
        self.taken = 0
        self._changed = trio.Event()
        self._moved = trio.Event()

    async def accept(self, body: Any = None) -> None:
        self.accepted = body

    @property
    def made(self) -> int:
        """How many events there have been."""
        return self.first + len(self._events)

    async def send(self, event: Any) -> None:
        size = EVENT_BYTES + len(_encode(event))
        self._events.append(event)
        self._sizes.append(size)
        self._ahead += size
        self._room.used += size
        if self._room.full or len(self._events) > MAX_KEPT_EVENTS:
            self._let_go(self.taken)
        self.stir()
        while self._is_far_ahead():
            await self._moved.wait()

    def _is_far_ahead(self) -> bool:
        if self.listener is None:
            return self.made - self.taken > MAX_KEPT_EVENTS or self._room.full
        return self.made - self.taken > AHEAD or self._ahead > (0 if self._room.full else AHEAD_BYTES)

    def _let_go(self, until: int) -> None:
        """Forget the events before this one: who comes back for them finds nothing."""
        count = until - self.first
        if count > 0:
            self._room.used -= sum(self._sizes[:count])
            del self._events[:count], self._sizes[:count]
            self.first = until

    def leave_room(self) -> None:
        """Nobody can come back for it any more; who still listens hears it to its end."""
        self._room.used -= sum(self._sizes)
        self._room = _Room()

    def stir(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def follow(self, call: IncomingCall, got: int) -> Any:
        """Tell a call what comes after the first `got` events; the result is the body of its end frame."""
        self.listener = me = object()
        self.scope.deadline = math.inf
        self._take(got)
        accepted = False
        try:
            while True:
                while got < self.made and self.listener is me:
                    if not accepted:
                        accepted = True
                        await call.accept(self.accepted)
                    await call.send(self._events[got - self.first])
                    got += 1
                    self._take(got)
                if self.listener is not me:
                    raise CallError(GONE, "the answer is told on another line now")
                if self.over:
                    break
                await self._changed.wait()
        except BaseException:
            if self.listener is me:
                self.listener = None
                self._take(got)
                if call.cancelled_by_peer:
                    self.scope.cancel()
                else:
                    self.scope.deadline = trio.current_time() + GRACE_S
            raise
        if self.error is not None:
            raise self.error
        return self.result

    def _take(self, got: int) -> None:
        low, high = sorted((self.taken - self.first, got - self.first))
        self._ahead += sum(self._sizes[low:high]) * (1 if got < self.taken else -1)
        self.taken = got
        moved, self._moved = self._moved, trio.Event()
        moved.set()


class Resumption:
    """The answers that are kept."""

    def __init__(self) -> None:
        self._kept: dict[tuple[PeerId, str], _Kept] = {}
        self._room = _Room()
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled: the task in which kept answers are made."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def serve(
        self,
        call: IncomingCall,
        ticket: str | None,
        peer: PeerId,
        answering: AbstractAsyncContextManager[PeersAnswer],
        deadline_s: float,
    ) -> Any:
        """Tell a call the events of an answer, so that it can be resumed when there is a ticket."""
        key = (peer, ticket or "")
        no_room = len(self._kept) >= MAX_KEPT or self._room.full
        if ticket is None or self._nursery is None or no_room or key in self._kept:
            return await relay(call, answering, deadline_s)
        kept = self._kept[key] = _Kept(self._room)
        self._nursery.start_soon(self._make, key, kept, answering, deadline_s)
        return await kept.follow(call, 0)

    async def _make(
        self,
        key: tuple[PeerId, str],
        kept: _Kept,
        answering: AbstractAsyncContextManager[PeersAnswer],
        deadline_s: float,
    ) -> None:
        try:
            with kept.scope:
                kept.result = await relay(kept, answering, deadline_s)
            if kept.scope.cancelled_caught:
                kept.error = CallError(ErrorKind.CANCELLED, "nobody listens any more")
        except Exception as error:
            kept.error = error
        finally:
            kept.over = True
            kept.stir()
        if not kept.scope.cancelled_caught:
            await trio.sleep(GRACE_S)  # its end may have been lost on the way
        del self._kept[key]
        kept.leave_room()

    async def resume(self, call: IncomingCall, params: Any, peer: PeerId) -> Any:
        try:
            asked = msgspec.convert(params, ResumeParams)
        except msgspec.ValidationError:
            raise CallError(ErrorKind.BAD_REQUEST, "the params of resume are ill-typed") from None
        kept = self._kept.get((peer, asked.ticket))
        if kept is None or not kept.first <= asked.got <= kept.made:
            raise CallError(GONE, "nothing is kept under that ticket")
        return await kept.follow(call, asked.got)
