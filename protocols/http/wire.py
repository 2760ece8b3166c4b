"""The byte stream under a connection: plain TCP straight on the socket, TLS through trio's SSLStream.

Why plain TCP does not go through trio's SocketStream: it tries each call before it waits and yields after each that
succeeds, which for a reader that nearly always has to wait, and a writer that nearly never has to, is a third of a
request's CPU (benchmarks/http.py prints it). Reads here wait first, but where the last one need not have; writes yield
only now and then, for fairness.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from typing import Protocol

import trio

RECEIVE_BYTES = 65536
_SENDS_BETWEEN_YIELDS = 16
_RECEIVES_BETWEEN_TRIES = 16


class Wire(Protocol):
    """One reader and one writer at a time. Errors: trio.BrokenResourceError, trio.ClosedResourceError."""

    async def receive(self) -> bytes:
        """At least one byte, or b"" at the end."""

    async def send(self, data: bytes | memoryview) -> None:
        """Returns when all of it is in the kernel's hands; waits while the other side does not read."""

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; over plain TCP reading goes on."""

    def close(self) -> None:
        """Close at once, without waiting; whoever waits on this wire gets ClosedResourceError."""

    def abort(self) -> None:
        """Close at once with a reset, so that the other side sees an error and not an end."""

    def is_readable(self) -> bool:
        """Whether bytes, an end or an error wait to be received: on a connection that should be quiet, it is stale."""


class TcpWire:
    def __init__(self, stream: trio.SocketStream) -> None:
        # SocketStream has set TCP_NODELAY: without it a streamed event waits 40 ms for the other side's delayed ACK.
        self._stream = stream
        self._socket = stream.socket
        self._fd = stream.socket.fileno()
        self._sends = self._receives = 0
        self._hurried = False  # whether the last bytes were there after one turn of the loop
        self._poll: select.poll | None = None

    async def receive(self) -> bytes:
        self._receives += 1
        if self._hurried or self._receives % _RECEIVES_BETWEEN_TRIES == 0:
            # On a busy loop bytes are there when its other tasks had their turn; to be told so costs thrice as much.
            await trio.lowlevel.checkpoint()
            try:
                data = os.read(self._open_fd(), RECEIVE_BYTES)
            except BlockingIOError:
                self._hurried = False
            except OSError as error:
                raise trio.BrokenResourceError(f"the connection broke: {error.strerror}") from error
            else:
                self._hurried = True
                return data
        while True:
            await trio.lowlevel.wait_readable(self._open_fd())
            try:
                # The number is looked up again: it may have been closed, and be another file's, since it was readable.
                return os.read(self._open_fd(), RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(f"the connection broke: {error.strerror}") from error

    async def send(self, data: bytes | memoryview) -> None:
        self._sends += 1
        if self._sends % _SENDS_BETWEEN_YIELDS == 0:
            await trio.lowlevel.checkpoint()
        while True:
            fd = self._open_fd()
            try:
                sent = os.write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise trio.BrokenResourceError(f"the connection broke: {error.strerror}") from error
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            await trio.lowlevel.wait_writable(fd)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    def close(self) -> None:
        self._fd = -1
        self._socket.close()

    def abort(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def is_readable(self) -> bool:
        if self._fd < 0:
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLIN)
        return bool(self._poll.poll(0))

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise trio.ClosedResourceError("this side has closed the connection")
        return self._fd


class TlsWire:
    """TLS over TCP. A connection that ends without TLS's own goodbye is broken, not ended: it may have been cut."""

    def __init__(self, tls: trio.abc.Stream, tcp: TcpWire) -> None:
        self._tls, self._tcp = tls, tcp

    async def receive(self) -> bytes:
        return bytes(await self._tls.receive_some(RECEIVE_BYTES))

    async def send(self, data: bytes | memoryview) -> None:
        await self._tls.send_all(data)

    async def send_eof(self) -> None:
        await self._tls.aclose()  # TLS says goodbye for both directions at once
        self._tcp.close()

    def close(self) -> None:
        self._tcp.close()

    def abort(self) -> None:
        self._tcp.abort()

    def is_readable(self) -> bool:
        return self._tcp.is_readable()
