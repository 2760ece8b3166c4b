"""Messages that come over a stream, each preceded by its length as a varint: the framing of bitswap and of the DHT."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

from .errors import ProtocolViolation
from .stream import P2pStream


class Incoming:
    """limit_s: seconds that one message may take, once its length is there."""

    def __init__(self, stream: P2pStream, limit_s: float) -> None:
        self._stream = stream
        self._limit_s = limit_s
        self._buffer = bytearray()

    async def size(self) -> int | None:
        """The length of the next message; None at the end. Waits as long as the peer keeps the stream open."""
        value = shift = 0
        while True:
            if not self._buffer:
                data = await self._stream.read()
                if not data and shift:
                    raise ProtocolViolation("the stream ended in the middle of a message")
                if not data:
                    return None
                self._buffer += data
            byte = self._buffer.pop(0)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 35:
                raise ProtocolViolation("the length of a message is too long")

    async def take(self, size: int) -> bytes:
        with self._in_time():
            while len(self._buffer) < size:
                await self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def skip(self, size: int) -> None:
        with self._in_time():
            while size:
                if not self._buffer:
                    await self._more()
                drop = min(size, len(self._buffer))
                del self._buffer[:drop]
                size -= drop

    async def _more(self) -> None:
        if not (data := await self._stream.read()):
            raise ProtocolViolation("the stream ended in the middle of a message")
        self._buffer += data

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            with trio.fail_after(self._limit_s):
                yield
        except trio.TooSlowError:
            raise ProtocolViolation(f"a message took longer than {self._limit_s:g} s") from None
