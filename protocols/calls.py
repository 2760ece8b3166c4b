"""The calls of a session, both ways: which there are, which frame is for which, and what a peer may have open.

What belongs here: the table of calls and look-ups, their ids, and the frames that carry a call id. A call's own state
is call.py's; the life of the session, and frames without a call, are session.py's.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from .call import IncomingCall, Opening, OutgoingCall, Room
from .call_errors import CallError, SessionLost, error_body, failure_of, read_error
from .framing import (
    ACCEPT,
    CALL,
    CANCEL,
    DELTA,
    END,
    ERROR,
    FOUND,
    LOOKUP,
    MAX_CALL_ID,
    WHOLE_BODY_BYTES,
    Assembly,
    ProtocolError,
    encode_body,
    frame,
)
from .outbox import Outbox
from .session_limits import SessionLimits

OnCall = Callable[[IncomingCall, str, Any], Awaitable[Any]]
OnLookup = Callable[[Any], Awaitable[Any]]


class Calls:
    """on_call, on_lookup: answer the peer's. on_busy: told when a call begins while there was none.

    opening: calls of the peer whose params are still coming. closing: no new one is taken.
    """

    def __init__(
        self,
        outbox: Outbox,
        limits: SessionLimits,
        *,
        initiator: bool,
        on_call: OnCall,
        on_lookup: OnLookup,
        on_busy: Callable[[], None],
    ) -> None:
        self.opening: dict[int, Opening] = {}
        self.closing = False
        self._outbox, self._limits = outbox, limits
        self._on_call, self._on_lookup, self._on_busy = on_call, on_lookup, on_busy
        self._mine: dict[int, OutgoingCall] = {}
        self._theirs: dict[int, IncomingCall] = {}
        self._lookups = 0  # among theirs
        self._my_next, self._their_last = (1, 0) if initiator else (2, -1)
        self._room = Room(limits.assembly_bytes)
        self._over = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        """Those in flight."""
        return len(self._mine) + len(self._theirs)

    @property
    def busy(self) -> bool:
        return bool(self._mine or self._theirs or self.opening)

    def check_opening(self) -> None:
        """ProtocolError when the params of a call are on their way for too long."""
        if self.opening:
            since = min((opening.since for opening in self.opening.values()), default=math.inf)
            if trio.current_time() - since > self._limits.body_timeout_s:
                raise ProtocolError(f"the params of a call did not come within {self._limits.body_timeout_s:.0f} s")

    async def one_is_over(self) -> None:
        """Wait until a call has ended, or all have with the session."""
        await self._over.park()

    def end(self, reason: Exception) -> None:
        """The session is over."""
        for call in [*self._mine.values(), *self._theirs.values()]:
            call.finish(SessionLost(str(reason)))
        for served in self._theirs.values():
            served.scope.cancel()  # who asked hears nothing any more
        self._over.unpark_all()

    def _mark_busy(self) -> None:
        if not self.busy:
            self._on_busy()

    # -- mine ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def begin(self, kind: int, reply_kind: int, body: Any) -> AsyncIterator[OutgoingCall]:
        """A call (CALL, END) or look-up (LOOKUP, FOUND) of this side; left before its end, it is cancelled."""
        payload = encode_body(body)
        self._outbox.check_size(payload)
        # From here to the first frame in `put` nothing waits: call ids must leave in order.
        await self._outbox.room(bulk=len(payload) > WHOLE_BODY_BYTES)
        call = OutgoingCall(self._outbox, self._my_next, self._room, reply_kind)
        self._my_next += 2
        self._mark_busy()
        self._mine[call.id] = call
        try:
            await call.put(kind, payload, flush=True)
            yield call
        finally:
            if not call.done and not self._outbox.lost:
                self._outbox.queue(frame(CANCEL, call.id), True)
            call.finish(CallError("cancelled", "the caller has left"))
            call.discard()
            del self._mine[call.id]
            self._over.unpark_all()

    def on_reply(self, kind: int, call_id: int, body: Any, size: int) -> None:
        """An accept, delta, end, error or found."""
        call = self._mine.get(call_id)
        if call is None:
            self._check_gone(call_id, mine=True)
        elif kind == DELTA and call.reply_kind == END:
            call.on_delta(body, size)
        elif kind == ERROR:
            call.finish(read_error(body))
        elif kind == call.reply_kind:
            call.on_end(body)
        elif kind == ACCEPT and call.reply_kind == END:
            call.on_accept(body)
        else:
            raise ProtocolError("an answer to a call where a look-up was asked, or the other way round")

    # -- either's ------------------------------------------------------------------------------------------------

    def on_credit(self, call_id: int, body: Any) -> None:
        if not isinstance(body, int) or not 0 < body <= MAX_CALL_ID:
            raise ProtocolError("malformed credit")
        if call := self._mine.get(call_id) or self._theirs.get(call_id):
            call.grant(body)
        else:
            self._check_gone(call_id, mine=call_id % 2 == self._my_next % 2)

    def on_part(self, nursery: trio.Nursery, call_id: int, body: Any, size: int) -> None:
        if call_id % 2 == self._my_next % 2:
            self._on_my_part(call_id, body, size)
        elif call_id > self._their_last:
            self._on_first_part(call_id, body, size)
        elif opened := self.opening.get(call_id):
            if opened.on_part(body, size):
                del self.opening[call_id]
                self._room.give_back(opened.assembly.total)
                self._start(nursery, opened.assembly.kind, call_id, opened.assembly.body())
        else:
            self._check_gone(call_id, mine=False)

    def _on_my_part(self, call_id: int, body: Any, size: int) -> None:
        if (call := self._mine.get(call_id)) is None:
            self._check_gone(call_id, mine=True)
            return
        try:
            call.on_part(body, size, self._limits.max_body_bytes)
        except CallError as error:
            call.finish(error)
            self._outbox.queue(frame(CANCEL, call_id), True)

    def _check_new(self, call_id: int) -> None:
        if call_id <= self._their_last or (call_id - self._their_last) % 2:
            raise ProtocolError(f"call id {call_id} is not a new one")
        self._their_last = call_id

    def _check_gone(self, call_id: int, *, mine: bool) -> None:
        """A frame for a call that is over has crossed its end; for one that never was, the peer is wrong."""
        if mine and call_id % 2 == self._my_next % 2:
            known = 0 < call_id < self._my_next
        else:
            known = not mine and call_id % 2 == self._their_last % 2 and 0 < call_id <= self._their_last
        if not known:
            raise ProtocolError(f"a frame for call {call_id}, which never was")

    # -- theirs --------------------------------------------------------------------------------------------------

    def on_begin(self, nursery: trio.Nursery, kind: int, call_id: int, body: Any) -> None:
        """A call or look-up of the peer; what it asks is answered in `nursery`."""
        self._check_new(call_id)
        if self._admit(kind, call_id):
            self._start(nursery, kind, call_id, body)

    def on_cancel(self, call_id: int) -> None:
        if call := self._theirs.get(call_id):
            call.cancelled_by_peer = True
            call.finish(CallError("cancelled", "the caller has left"))
            call.scope.cancel()
        elif opening := self.opening.pop(call_id, None):
            self._room.give_back(opening.assembly.total)
        else:
            self._check_gone(call_id, mine=False)

    def _on_first_part(self, call_id: int, body: Any, size: int) -> None:
        assembly, limit = Assembly.begin(body), self._limits.max_body_bytes
        if assembly.kind not in (CALL, LOOKUP):
            raise ProtocolError("a part of a body for a call that never was")
        self._check_new(call_id)
        if assembly.total > limit:
            self._refuse(call_id, "too_large", f"{assembly.total} bytes; the limit is {limit}")
        elif self._admit(assembly.kind, call_id):
            if self._room.try_take(assembly.total):
                self._mark_busy()
                opening = self.opening[call_id] = Opening(self._outbox, call_id, assembly)
                opening.on_part(body, size)
            else:
                self._refuse(call_id, "busy", "too many large bodies on their way; try again")

    def _admit(self, kind: int, call_id: int) -> bool:
        limits = self._limits
        if self.closing:
            self._refuse(call_id, "busy", "this node is shutting down")
        elif kind == CALL and len(self._theirs) - self._lookups + len(self.opening) >= limits.max_calls:
            self._refuse(call_id, "busy", f"{limits.max_calls} calls are open already")
        elif kind == LOOKUP and self._lookups >= limits.max_lookups:
            self._refuse(call_id, "busy", f"{limits.max_lookups} look-ups are open already")
        else:
            return True
        return False

    def _refuse(self, call_id: int, code: str, message: str) -> None:
        self._outbox.queue(frame(ERROR, call_id, [code, message, None]), True)

    def _start(self, nursery: trio.Nursery, kind: int, call_id: int, body: Any) -> None:
        method, params = "", body
        if kind == CALL:
            if not (isinstance(body, list) and len(body) == 2 and isinstance(body[0], str)):
                raise ProtocolError("a malformed call: expected [method, params]")
            method, params = body
        else:
            self._lookups += 1
        self._mark_busy()
        call = self._theirs[call_id] = IncomingCall(self._outbox, call_id)
        nursery.start_soon(self._serve, call, kind, method, params)

    async def _serve(self, call: IncomingCall, kind: int, method: str, params: Any) -> None:
        failure: CallError | None = None
        try:
            with call.scope:
                try:
                    if kind == CALL:
                        result = await self._on_call(call, method, params)
                        await call.put(END, encode_body(result), flush=True)
                    else:
                        result = await self._on_lookup(params)
                        await call.put(FOUND, encode_body(result), flush=True)
                except Exception as error:
                    failure = failure_of(error, method or "lookup")
        finally:
            call.finish()
            del self._theirs[call.id]
            self._lookups -= kind == LOOKUP
            self._over.unpark_all()
            if failure and not call.cancelled_by_peer and not self._outbox.lost:
                self._outbox.queue(frame(ERROR, call.id, error_body(failure)), True)
