"""One stream to a peer: bytes in order, or StreamLost.

Reads and writes survive cancellation: a cancelled read takes nothing, a cancelled write has sent all of its bytes or
none. py-libp2p 0.8.1 keeps neither promise (remedies.py), so this class does its own reading and writing on the Yamux
stream and leaves only opening and closing to the library.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.stream_muxer.yamux.yamux import HEADER_SIZE, MAX_MESSAGE_SIZE, TYPE_DATA, YAMUX_HEADER_FORMAT

from ..peer_id import PeerId
from . import sockets
from .errors import StreamLost
from .remedies import SEND_LIMIT_S, Lock

CREDIT_WAIT_S = 5.0  # a peer that reads nothing for so long with a full window has lost the stream
CREDIT_POLL_S = 0.005  # the library has no event for a window update
SLOWEST_BYTES_S = 32 * 1024  # a message begun must leave at this pace, after SEND_LIMIT_S of grace
CLOSE_S = 2.0
FRAME_BYTES = MAX_MESSAGE_SIZE - HEADER_SIZE
LOST = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class _Discard(bytearray):
    """Stands in for the buffer of a stream that we closed: what the peer still sends takes no memory."""

    def extend(self, data: Any) -> None:
        pass


class P2pStream:
    """A stream owned by at most one reading and one writing task.

    `remote`: the peer at the other end, authenticated by the connection's handshake. `protocol`: what it speaks.
    """

    def __init__(self, net_stream: Any, protocol: str, remote: PeerId) -> None:
        self.remote = remote
        self.protocol = protocol
        self._net = net_stream
        self._muxed = net_stream.muxed_stream
        self._conn = self._muxed.conn
        # Kept, because the library forgets its buffers when the connection ends, with what was received before the end.
        self._buffer: bytearray = self._conn.stream_buffers.get(self._muxed.stream_id, bytearray())
        self._writing = Lock()
        self._done = False

    def __repr__(self) -> str:
        return f"<P2pStream {self.protocol} with {self.remote[-6:]}>"

    @property
    def relayed(self) -> bool:
        """Whether its connection runs through a relay."""
        return not sockets.is_direct(self._conn)

    @property
    def relay(self) -> PeerId | None:
        """The relay that its connection runs through; None when it is direct."""
        return getattr(self._conn, "relay", None) if self.relayed else None

    @property
    def endpoint(self) -> sockets.Endpoint | None:
        """Both ends of its connection; None for one through a relay."""
        return sockets.endpoint(self._conn)

    async def read(self, n: int = 65536) -> bytes:
        """1 to `n` bytes; b"" when the peer closed its side. StreamLost when the stream was cut.

        What was received before the cut is read first.
        """
        muxed, conn = self._muxed, self._conn
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._buffer:
            event = conn.stream_events.get(muxed.stream_id)
            if self._done:
                raise StreamLost("the stream was closed here")
            if muxed.reset_received or event is None or conn.event_shutting_down.is_set():
                raise StreamLost("the peer reset the stream or its connection ended")
            if muxed.recv_closed:
                return b""
            await event.wait()
            if conn.stream_events.get(muxed.stream_id) is event:
                conn.stream_events[muxed.stream_id] = trio.Event()
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        with contextlib.suppress(*LOST):  # the bytes are read; if the connection is gone the next read tells
            await muxed._auto_tune_and_send_window_update(bytes_read=len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Sends all of `data`. Cancelled before the first byte is sent it sends nothing; later it first sends the rest.

        StreamLost when the stream was cut, closed here, or the peer took no data for CREDIT_WAIT_S.
        """
        muxed = self._muxed
        async with self._writing:
            view = memoryview(data)
            with trio.CancelScope() as scope:
                while view:
                    await self._credit()
                    if not scope.shield:
                        scope.shield = True  # half a message would put the peer out of step
                        scope.deadline = trio.current_time() + SEND_LIMIT_S + len(data) / SLOWEST_BYTES_S
                    size = min(muxed.send_window, FRAME_BYTES, len(view))
                    muxed.send_window -= size
                    header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, muxed.stream_id, size)
                    try:
                        await self._conn._write_frame(header + view[:size])
                    except LOST as error:
                        raise StreamLost(f"the connection ended while writing: {type(error).__name__}") from None
                    view = view[size:]
            if scope.cancelled_caught:
                await self.reset()
                raise StreamLost(f"the peer takes less than {SLOWEST_BYTES_S // 1024} KiB/s")
            if self._conn.event_shutting_down.is_set():
                raise StreamLost("the connection ended while writing")  # the library swallows this one

    async def _credit(self) -> None:
        muxed = self._muxed
        deadline = trio.current_time() + CREDIT_WAIT_S
        while True:
            if self._done or muxed.send_closed:
                raise StreamLost("the stream is closed")
            if muxed.closed or muxed.reset_received or self._conn.event_shutting_down.is_set():
                raise StreamLost("the peer reset the stream or its connection ended")
            if muxed.send_window > 0:
                return
            if trio.current_time() > deadline:
                await self.reset()
                raise StreamLost(f"the peer took no data for {CREDIT_WAIT_S:.0f} s")
            await trio.sleep(CREDIT_POLL_S)

    async def close_write(self) -> None:
        """Ends our side; the peer's bytes can still be read."""
        with contextlib.suppress(*LOST):
            await self._muxed.close()

    async def close(self) -> None:
        """Ends both sides in good order. Safe to call again, while cancelled, and after the stream was lost."""
        await self._end(self._muxed.close)

    async def reset(self) -> None:
        """Cuts the stream: the peer's next read or write fails. Safe to call whenever close() is."""
        await self._end(self._muxed.reset)

    async def cut_connection(self) -> None:
        """Ends the whole connection without a word, because it is dead: new streams take another, or there is none."""
        sockets.let_go(self._conn)
        with contextlib.suppress(*LOST):
            await self._conn.secured_conn.close()

    async def _end(self, how: Callable[[], Awaitable[None]]) -> None:
        if self._done:
            return
        self._done = True
        conn, stream_id = self._conn, self._muxed.stream_id
        if stream_id in conn.stream_buffers:
            conn.stream_buffers[stream_id] = _Discard()
        if (event := conn.stream_events.get(stream_id)) is not None:
            event.set()  # a reader of ours wakes up and finds the stream closed
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S), contextlib.suppress(*LOST):
                await how()
        finally:
            if self._net.swarm_conn is not None:
                self._net.swarm_conn.remove_stream(self._net)
