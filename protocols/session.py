"""The session: many calls at once over one long-lived byte stream between two nodes.

What belongs here: the life of a session (hello, heartbeat, goodbye), its one reader and one writer, and who gets
which frame. Frames are framing.py's, the table of calls is calls.py's; docs/protocol.md is the whole in prose.

Only the reader awaits `stream.read` and only the writer awaits `stream.write`, and both are cancelled only at the
end, so cancelling a caller or a handler can never tear a frame or lose bytes (py-libp2p's streams survive neither).
The reader never waits for anything but bytes: a reader that pauses for 5 s would cost the Yamux stream. Queueing a
frame never blocks, so cancel, end and error leave even inside a cancelled scope.

    session = Session(stream, service, local=hello, remote_peer=peer, initiator=True, limits=SessionLimits())
    await nursery.start(session.run)
    async with session.call("echo", {"text": "hi"}) as call:
        async for item in call:
            ...
    call.result
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import trio

from .call import IncomingCall, OutgoingCall
from .call_errors import CallError, PeerSilent, SessionLost, where
from .calls import Calls
from .farewell import MAX_REASON_CHARS, goaway, read_out
from .framing import (
    ACCEPT,
    ADVERT,
    CALL,
    CANCEL,
    CREDIT,
    DELTA,
    END,
    ERROR,
    FOUND,
    GOAWAY,
    HELLO,
    LOOKUP,
    NOTE,
    PART,
    PING,
    PONG,
    WHOLE_BODY_BYTES,
    FrameParser,
    ProtocolError,
    encode_body,
    frame,
    frame_of,
    head,
)
from .heartbeat import Heartbeat
from .outbox import ByteStream, Outbox
from .peer_id import PeerId, short
from .rate import Bucket
from .service import Service
from .session_limits import VERSION, Hello, SessionLimits

__all__ = ["ByteStream", "CallError", "Hello", "IncomingCall", "OutgoingCall", "PeerSilent", "ProtocolError", "Service",
           "Session", "SessionLimits", "SessionLost"]  # fmt: skip

log = logging.getLogger("shoal.session")

READ_SIZE = 64 * 1024
MAX_NOTE_BYTES = 16 * 1024
FAREWELL_S = 1.0  # for the goaway to leave before the stream is closed
RESET_S = 2.0


class Session:
    """One session. `run` it in a nursery; it is ready for calls when run has started.

    remote_hello: the peer's, once run has started. lost: why the session is over, or None. leaving: the reason of the
    peer's goaway, or None. last_rx: trio time of the last bytes received.
    """

    def __init__(
        self,
        stream: ByteStream,
        service: Service,
        *,
        local: Hello,
        remote_peer: PeerId,
        initiator: bool,
        limits: SessionLimits | None = None,
    ) -> None:
        self.remote_peer, self.initiator, self.local = remote_peer, initiator, local
        self.limits = limits = limits or SessionLimits()
        self.remote_hello: Hello | None = None
        self.lost: Exception | None = None
        self.leaving: str | None = None
        self.frames_in = self.bytes_in = 0
        self._stream, self._service = stream, service
        self._outbox = Outbox(stream, limits)
        self._closing: str | None = None
        self._heartbeat = Heartbeat(limits)
        self._calls = Calls(
            self._outbox,
            limits,
            initiator=initiator,
            on_call=service.on_call,
            on_lookup=lambda body: service.on_lookup(self, body),
            on_busy=self._heartbeat.wake,
        )
        self._greeted = trio.Event()
        self._read_all = trio.Event()  # the reader has ended
        self._ended = trio.Event()
        self._pings: dict[int, trio.Event] = {}
        self._next_ping = 1
        self._scope: trio.CancelScope | None = None
        self._frame_bucket = Bucket(limits.frames_per_s, limits.frame_burst)
        self._byte_bucket = Bucket(limits.bytes_per_s, limits.byte_burst)
        self._advert_bucket = Bucket(limits.adverts_per_s, limits.advert_burst)
        self._note_bucket = Bucket(limits.notes_per_s, limits.note_burst)

    @property
    def last_rx(self) -> float:
        return self._heartbeat.last_rx

    @property
    def frames_out(self) -> int:
        """Frames that the stream has taken."""
        return self._outbox.frames

    @property
    def bytes_out(self) -> int:
        return self._outbox.bytes

    @property
    def calls_in_flight(self) -> int:
        return len(self._calls)

    @property
    def usable(self) -> bool:
        """Whether a new call has a chance."""
        return self.lost is None and self.leaving is None and self._closing is None and self.remote_hello is not None

    @property
    def relay(self) -> PeerId | None:
        """The relay that its stream says it runs through."""
        return getattr(self._stream, "relay", None)

    @property
    def relayed(self) -> bool:
        """Whether its stream says that it runs through a relay."""
        return bool(getattr(self._stream, "relayed", False))

    # -- calls and other things to ask ---------------------------------------------------------------------------

    def call(self, method: str, params: Any = None) -> AbstractAsyncContextManager[OutgoingCall]:
        """Call the peer. Leaving the context before the end cancels the call there.

        Raises SessionLost, here or while iterating, and CallError (also "too_large" for the params).
        """
        return self._open(CALL, END, [method, params])

    async def request(self, method: str, params: Any = None) -> Any:
        """Call, and give the result; items on the way are dropped."""
        async with self.call(method, params) as call:
            return await call.finished()

    async def lookup(self, body: Any, timeout: float) -> Any:
        """Ask the peer's `on_lookup`; its answer. trio.TooSlowError after `timeout` seconds."""
        with trio.fail_after(timeout):
            async with self._open(LOOKUP, FOUND, body) as call:
                return await call.finished()

    def _open(self, kind: int, reply_kind: int, body: Any) -> AbstractAsyncContextManager[OutgoingCall]:
        if not self.usable:
            raise SessionLost(str(self.lost or self.leaving or self._closing or "no hello yet"))
        return self._calls.begin(kind, reply_kind, body)

    def send_advert(self, body: Any) -> None:
        """Queue an advert; dropped silently when the session is over. ValueError when it is over 64 KiB."""
        payload = encode_body(body)
        if len(payload) > WHOLE_BODY_BYTES:
            raise ValueError(f"an advert of {len(payload)} bytes; the limit is {WHOLE_BODY_BYTES}")
        if self.lost is None:
            self._outbox.queue(frame_of(head(ADVERT, 0), payload), True)

    def send_note(self, name: str, data: Any) -> None:
        """Queue a note; dropped silently when the session is over. ValueError when it is over 16 KiB."""
        payload = encode_body([name, data])
        if len(payload) > MAX_NOTE_BYTES:
            raise ValueError(f"a note of {len(payload)} bytes; the limit is {MAX_NOTE_BYTES}")
        if self.lost is None:
            self._outbox.queue(frame_of(head(NOTE, 0), payload), True)

    async def ping(self, timeout: float = 5.0) -> float:
        """Seconds there and back. Raises SessionLost, and trio.TooSlowError after `timeout` seconds."""
        nonce, start = self._next_ping, trio.current_time()
        self._next_ping = nonce + 1
        self._pings[nonce] = answered = trio.Event()
        try:
            self._outbox.queue(frame(PING, nonce), True)
            with trio.fail_after(timeout):
                await answered.wait()
        finally:
            self._pings.pop(nonce, None)
        self._outbox.check_open()
        return trio.current_time() - start

    async def goodbye(self, reason: str, drain_s: float = 0.0) -> None:
        """Tell the peer that no new call is taken, let calls in flight go on for `drain_s` seconds, then close.

        Returns when the session is over.
        """
        if self._scope is None or self.lost:
            return
        if self._closing is None:
            self._closing, self._calls.closing = reason, True
            self._outbox.queue(goaway(reason), True)
        with trio.move_on_after(drain_s):
            while self.calls_in_flight and not self.lost:
                await self._calls.one_is_over()
        with trio.move_on_after(FAREWELL_S):
            await self._outbox.flushed()
        await self._part(SessionLost(f"closed here: {reason}"))
        await self._ended.wait()

    def close(self, reason: str) -> None:
        """End the session now, without a word to the peer."""
        self._end(SessionLost(f"closed here: {reason}"))

    async def _part(self, reason: Exception) -> None:
        """The end after a goaway: over for everyone here, and the peer has a moment to hear it before the reset."""
        self._lose(reason)
        try:
            with trio.move_on_after(self.limits.farewell_s):
                await self._stream.close_write()
                if self._read_all.is_set():
                    await read_out(self._stream)
                else:
                    await self._read_all.wait()
        except Exception as error:
            log.debug("the stream to %s ended first: %s", short(self.remote_peer), type(error).__name__)
        finally:
            self._end(reason)

    # -- input ---------------------------------------------------------------------------------------------------

    async def _reader(self, nursery: trio.Nursery) -> None:
        try:
            await self._read(nursery)
        finally:
            self._read_all.set()

    async def _read(self, nursery: trio.Nursery) -> None:
        parser, stream = FrameParser(), self._stream
        while True:
            data = await stream.read(READ_SIZE)
            if not data:
                raise SessionLost("the stream ended")
            if self.lost is not None:
                continue  # only the end is waited for
            self._heartbeat.last_rx = now = trio.current_time()
            if self._byte_bucket.take(len(data), now):
                raise ProtocolError(f"more than {self.limits.bytes_per_s:.0f} bytes a second")
            self.bytes_in += len(data)
            frames = parser.feed(data)
            if frames:
                self.frames_in += len(frames)
                if self._frame_bucket.take(len(frames), now):
                    raise ProtocolError(f"more than {self.limits.frames_per_s:.0f} frames a second")
                for kind, call_id, body, size in frames:
                    self._dispatch(nursery, kind, call_id, body, size)
            self._show_life()

    def _show_life(self) -> None:
        """Who has so much to read that a ping waits behind it says a word unasked, or would be taken for dead."""
        if self._calls.busy and trio.current_time() - self._outbox.quiet_since >= self.limits.busy_ping_s:
            self._outbox.queue(frame(PONG, 0), True)

    def _dispatch(self, nursery: trio.Nursery, kind: int, call_id: int, body: Any, size: int) -> None:
        if self.remote_hello is None:
            self._greet(kind, body)
        elif kind in (DELTA, END, ACCEPT, ERROR, FOUND):
            self._calls.on_reply(kind, call_id, body, size)
        elif kind in (CALL, LOOKUP):
            self._calls.on_begin(nursery, kind, call_id, body)
        elif kind == CANCEL:
            self._calls.on_cancel(call_id)
        elif kind == CREDIT:
            self._calls.on_credit(call_id, body)
        elif kind == PART:
            self._calls.on_part(nursery, call_id, body, size)
        elif kind == PING:
            self._outbox.queue(frame(PONG, call_id), True)
        elif kind == PONG:
            if (answered := self._pings.pop(call_id, None)) is not None:
                answered.set()
        elif kind == ADVERT:
            if self._advert_bucket.take(1, self.last_rx):
                raise ProtocolError(f"more than {self.limits.adverts_per_s:g} adverts a second")
            self._tell_service("an advert", self._service.on_advert, body)
        elif kind == NOTE:
            self._on_note(body, size)
        elif kind == GOAWAY:
            self._on_goaway(body)
        else:
            raise ProtocolError(f"frame kind {kind} is not known, or not allowed now")

    def _greet(self, kind: int, body: Any) -> None:
        if kind == GOAWAY:
            self._on_goaway(body)
            raise SessionLost(f"the peer refused: {self.leaving}")
        if kind != HELLO:
            raise ProtocolError("the first frame must be hello")
        try:
            hello = msgspec.convert(body, Hello)
        except msgspec.ValidationError as error:
            raise ProtocolError("a malformed hello") from error
        if hello.v != VERSION:
            raise ProtocolError(f"protocol version {VERSION} is spoken here, not {hello.v}: update the older node")
        if hello.peer != self.remote_peer:
            raise ProtocolError("the hello names another peer than the connection")
        if hello.swarm != self.local.swarm:
            raise ProtocolError("wrong swarm")
        self._service.on_hello(self, hello)
        self.remote_hello = hello
        self._greeted.set()

    def _on_note(self, body: Any, size: int) -> None:
        if self._note_bucket.take(1, self.last_rx):
            raise ProtocolError(f"more than {self.limits.notes_per_s:g} notes a second")
        if size > MAX_NOTE_BYTES + 16:
            raise ProtocolError(f"a note of {size} bytes; the limit is {MAX_NOTE_BYTES}")
        if not (isinstance(body, list) and len(body) == 2 and isinstance(body[0], str)):
            raise ProtocolError("a malformed note: expected [name, data]")
        self._tell_service("a note", self._service.on_note, *body)

    def _tell_service(self, what: str, take: Callable[..., None], *args: Any) -> None:
        try:
            take(self, *args)
        except ProtocolError:
            raise
        except Exception as error:
            log.error("taking %s of %s failed: %s", what, short(self.remote_peer), type(error).__name__)  # noqa: TRY400

    def _on_goaway(self, body: Any) -> None:
        self.leaving = body[:MAX_REASON_CHARS] if isinstance(body, str) else "no reason given"

    # -- life ----------------------------------------------------------------------------------------------------

    def _check_busy(self) -> bool:
        """For the heartbeat. ProtocolError when the params of a call are on their way for too long."""
        self._calls.check_opening()
        return self._calls.busy

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Live until the stream ends, the peer falls silent or breaks a rule, `goodbye`, or cancellation.

        Started when the hellos were exchanged. Raises ProtocolError or SessionLost when they were not; later ends
        are told by `lost` only.
        """
        greeted = False
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                self._outbox.queue(frame(HELLO, 0, self.local), True)
                nursery.start_soon(self._guard, self._outbox.run)
                nursery.start_soon(self._guard, self._heartbeat.run, self._check_busy, self._outbox)
                nursery.start_soon(self._guard, self._reader, nursery)
                with trio.move_on_after(self.limits.hello_timeout_s):
                    await self._greeted.wait()
                    greeted = True
                    task_status.started()
                if not greeted:
                    self._end(SessionLost(f"the peer did not say hello within {self.limits.hello_timeout_s:.0f} s"))
        finally:
            self._end(SessionLost("closed here"))
            with trio.CancelScope(deadline=trio.current_time() + RESET_S, shield=True):
                try:
                    await self._stream.reset()
                except Exception as error:
                    log.debug("reset of the stream to %s failed: %s", short(self.remote_peer), type(error).__name__)
            self._ended.set()
        if not greeted and self.lost:
            raise self.lost

    async def _guard(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run one of the session's own tasks; its failure is the session's end, never the node's."""
        try:
            await task(*args)
        except (SessionLost, ProtocolError) as error:
            reason: Exception = error
        except Exception as error:
            log.debug("the stream to %s failed: %s", short(self.remote_peer), where(error))
            reason = SessionLost(f"the connection failed: {getattr(error, 'reason', type(error).__name__)}")
        if self.leaving is not None and self._greeted.is_set() and not isinstance(reason, ProtocolError | PeerSilent):
            reason = SessionLost(f"the peer left: {self.leaving}")  # however its stream ended
        if isinstance(reason, ProtocolError) and self.lost is None:
            log.warning("dropping %s: %s", short(self.remote_peer), reason)
            self._outbox.queue(goaway(str(reason)), True)
            with trio.move_on_after(FAREWELL_S):
                await self._outbox.flushed()
            await self._part(reason)
        self._end(reason)

    def _lose(self, reason: Exception) -> None:
        """The session is over for everyone who waits for it. The first reason stays."""
        if self.lost is None:
            self.lost = reason
            self._calls.end(reason)
            for answered in self._pings.values():
                answered.set()
            self._outbox.close(reason)

    def _end(self, reason: Exception) -> None:
        """Over, and its own tasks with it."""
        self._lose(reason)
        if self._scope is not None:
            self._scope.cancel()
