"""One call on a session, seen from either side: the caller's `OutgoingCall` and the handler's `IncomingCall`.

What belongs here: a call's own state (credit, items not yet read, its end). The session moves the frames.

Credit: a sender may have CALL_WINDOW bytes of frames (without their length prefix) that the receiver has not yet
consumed; it may overdraw by one frame. Accept, end, error and found frames that are whole cost nothing. Parts cost
credit, but the receiver gives it back as they come once it has set room aside for the whole body (Room): a body
larger than the window arrives, and what one peer can make this node hold stays bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from .call_errors import CallError
from .framing import (
    ACCEPT,
    CALL_WINDOW,
    DELTA,
    END,
    WHOLE_BODY_BYTES,
    Assembly,
    ProtocolError,
    encode_body,
    frame_of,
    head,
    part_of,
    parts,
)
from .outbox import Outbox

IN_A_ROW = 64
"""Items that a call gives its reader before others get their turn: a window may hold 20,000 of them."""


class Room:
    """Room for bodies that come in parts, shared by all calls of a session; first come, first served."""

    def __init__(self, size: int) -> None:
        self.free = size
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def try_take(self, size: int) -> bool:
        if self._waiting or size > self.free:
            return False
        self.free -= size
        return True

    def take(self, size: int, granted: Callable[[], None]) -> None:
        """`granted` is called when the room is there, at once if it is there now."""
        self._waiting.append((size, granted))
        self._serve()

    def forget(self, granted: Callable[[], None]) -> None:
        self._waiting = deque(entry for entry in self._waiting if entry[1] != granted)
        self._serve()

    def give_back(self, size: int) -> None:
        self.free += size
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            size, granted = self._waiting.popleft()
            self.free -= size
            granted()


class Call:
    """What both sides of a call share: its id, the credit to send, and how it ended."""

    def __init__(self, outbox: Outbox, call_id: int) -> None:
        self.id = call_id
        self.done = False
        self.error: Exception | None = None
        self._outbox = outbox
        self._credit = CALL_WINDOW
        self._lot = trio.lowlevel.ParkingLot()
        self._parts_going = False
        self._torn = False  # a body was left off in the middle of its parts

    def grant(self, size: int) -> None:
        """The peer gave credit."""
        self._credit += size
        self._lot.unpark_all()

    def finish(self, error: Exception | None = None) -> None:
        """No more frames of this call matter. The first end is the one that counts."""
        if not self.done:
            self.done, self.error = True, error
            self._lot.unpark_all()

    async def put(self, kind: int, payload: bytes, *, flush: bool) -> None:
        """Queue one body, encoded, in as many frames as it takes. Waits for credit only where credit is due."""
        if len(payload) <= WHOLE_BODY_BYTES:
            await self._turn(kind == DELTA, bulk=False)
            self._spend(frame_of(head(kind, self.id), payload), flush, kind == DELTA)
            return
        self._outbox.check_size(payload)
        await self._turn(True, bulk=True)
        self._parts_going = self._torn = True
        try:
            for frame in parts(kind, self.id, payload):
                while self._credit <= 0 and not self.done:
                    await self._lot.park()
                await self._outbox.room(bulk=True)
                self._stop_if_over()
                self._spend(frame, True, True)
            self._torn = False
        finally:
            self._parts_going = False
            self._lot.unpark_all()

    async def _turn(self, costs_credit: bool, *, bulk: bool) -> None:
        """Wait until a body may be queued."""
        self._stop_if_over()
        while (self._parts_going or (costs_credit and self._credit <= 0)) and not self.done:
            await self._lot.park()
        await self._outbox.room(bulk)
        self._stop_if_over()

    def _stop_if_over(self) -> None:
        if self.done:
            raise self.error or CallError("cancelled", "the call is over")
        if self._torn and not self._parts_going:
            raise CallError("internal", "an earlier body of this call was cancelled half way")

    def _spend(self, frame: bytes, flush: bool, costs_credit: bool) -> None:
        if costs_credit:
            self._credit -= len(frame) - 4
        self._outbox.queue(frame, flush)


class Opening:
    """A call or look-up of the peer whose params are still coming in parts; the room for them is set aside."""

    def __init__(self, outbox: Outbox, call_id: int, assembly: Assembly) -> None:
        self._outbox, self._id = outbox, call_id
        self.assembly = assembly
        self.since = trio.current_time()
        self._allowed, self._owed = CALL_WINDOW, 0

    def on_part(self, body: Any, size: int) -> bool:
        """True when the params are whole."""
        if self._allowed <= 0:
            raise ProtocolError(f"call {self._id}: more was sent than credit was given for")
        self._allowed -= size
        self._owed += size
        whole = self.assembly.add(body)
        if self._owed >= CALL_WINDOW // 2 and not whole:
            self._allowed += self._owed
            self._outbox.queue_credit(self._id, self._owed)
            self._owed = 0
        return whole


class IncomingCall(Call):
    """A call from the peer, as its handler sees it. The scope around the handler is cancelled when the peer cancels
    or the session ends."""

    def __init__(self, outbox: Outbox, call_id: int) -> None:
        super().__init__(outbox, call_id)
        self.scope = trio.CancelScope()
        self.cancelled_by_peer = False
        self._delta_head = head(DELTA, call_id)
        self._sent_any = False
        self._accepted = False

    async def accept(self, body: Any = None) -> None:
        """Say that the call is taken and work has begun, before the first item. At most once."""
        if self._accepted:
            raise ValueError("a call is accepted once")
        self._accepted = True
        await self.put(ACCEPT, encode_body(body), flush=True)

    async def send(self, item: Any, flush: bool = False) -> None:
        """Send one item. It leaves at once when it is the first, when `flush` is set or when the line was quiet;
        otherwise within the flush delay, with others. Waits when the caller or the line is behind."""
        payload = encode_body(item)
        first, self._sent_any = not self._sent_any, True
        if len(payload) > WHOLE_BODY_BYTES:
            await self.put(DELTA, payload, flush=True)
            return
        frame = frame_of(self._delta_head, payload)
        if self._credit <= 0 or self._parts_going or self._torn or self.done or self._outbox.backlog():
            await self._turn(True, bulk=False)
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        self._credit -= len(frame) - 4
        self._outbox.queue(frame, first or flush)
        if self._outbox.backlog() >= self._outbox.flush_bytes:
            await trio.lowlevel.checkpoint()  # let the writer and the other producers run


class OutgoingCall(Call):
    """A call to the peer, as its caller sees it: iterate for the items, then read `result`.

    accepted: the body of the accept frame, or None while there was none. result: the body of the end frame.
    Iterating raises CallError or SessionLost, after the items that came before the failure.
    """

    def __init__(self, outbox: Outbox, call_id: int, room: Room, reply_kind: int) -> None:
        super().__init__(outbox, call_id)
        self.reply_kind = reply_kind  # END, or FOUND for a look-up
        self.accepted: Any = None
        self.result: Any = None
        self._items: deque[tuple[Any, int, int]] = deque()  # item, credit to give back, room it holds
        self._allowed = CALL_WINDOW  # what the peer may still send
        self._owed = 0  # consumed since the last credit frame
        self._room = room
        self._held = 0  # room set aside for this call
        self._assembly: Assembly | None = None
        self._has_room = False
        self._unreturned = 0  # bytes of parts whose credit was not given back yet
        self._in_a_row = 0  # items given without waiting

    def __aiter__(self) -> OutgoingCall:
        return self

    async def __anext__(self) -> Any:
        self._in_a_row += 1
        if self._in_a_row > IN_A_ROW:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()  # the session's reader, and whoever else has something to do
        while not self._items:
            self._in_a_row = 0
            if self.error is not None:
                raise self.error
            if self.done:
                raise StopAsyncIteration
            await self._lot.park()
        item, size, held = self._items.popleft()
        if held:
            self._held -= held
            self._room.give_back(held)
        self._give_credit(size)
        return item

    async def finished(self) -> Any:
        """Read past all items; the result."""
        async for _ in self:
            pass
        return self.result

    # -- for the session: frames that came ----------------------------------------------------------------------

    def on_delta(self, item: Any, size: int) -> None:
        self._charge(size)
        self._push(item, size, 0)

    def on_accept(self, body: Any) -> None:
        self.accepted = body

    def on_end(self, body: Any) -> None:
        if not self.done:
            self.result = body
            self.finish()

    def on_part(self, body: Any, size: int, max_body: int) -> None:
        """Raises CallError("too_large") when the peer starts a body over the limit: that ends the call, no more."""
        self._charge(size)
        if self._assembly is None:
            kind, total, _ = part_of(body)
            if kind != self.reply_kind and not (self.reply_kind == END and kind in (ACCEPT, DELTA)):
                raise ProtocolError("a part of a body that this call cannot get")
            if total > max_body:
                raise CallError("too_large", f"the peer sent a body of {total} bytes; the limit is {max_body}")
            self._assembly = Assembly(kind, total)
            self._has_room = False
            self._room.take(total, self._room_granted)
        assembly = self._assembly
        whole = assembly.add(body)
        self._unreturned += size
        if self._has_room:
            self._return_parts()
        if whole:
            self._assembly = None
            self._on_whole(assembly)

    def discard(self) -> None:
        """The caller has left: nothing held for this call is needed any more."""
        self._room.forget(self._room_granted)
        held, self._held = self._held, 0
        self._items.clear()
        self._assembly = None
        self._room.give_back(held)

    def _on_whole(self, assembly: Assembly) -> None:
        item, left = assembly.body(), self._unreturned
        self._unreturned = 0
        if not self._has_room:  # it fitted into the window while others held the room
            self._room.forget(self._room_granted)
        held = assembly.total if self._has_room else 0
        if assembly.kind == DELTA:
            self._push(item, left, held)
        elif assembly.kind == ACCEPT:
            self.on_accept(item)
            self._give_credit(left)
        else:
            self.on_end(item)

    def _room_granted(self) -> None:
        assert self._assembly is not None
        self._has_room = True
        self._held += self._assembly.total
        self._return_parts()

    def _return_parts(self) -> None:
        size, self._unreturned = self._unreturned, 0
        self._give_credit(size)

    def _charge(self, size: int) -> None:
        if self._allowed <= 0:
            raise ProtocolError(f"call {self.id}: more was sent than credit was given for")
        self._allowed -= size

    def _push(self, item: Any, size: int, held: int) -> None:
        self._items.append((item, size, held))
        self._lot.unpark_all()

    def _give_credit(self, size: int) -> None:
        self._owed += size
        if self._owed >= CALL_WINDOW // 2 and not self.done:
            size, self._owed = self._owed, 0
            self._allowed += size
            self._outbox.queue_credit(self.id, size)
