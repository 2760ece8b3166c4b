"""Choosing the protocol of a stream that we opened: multistream-select 1.0.0 in one round trip.

Spec: https://github.com/multiformats/multistream-select. The library waits for the answer to the greeting before it
names the protocol, and cannot be cancelled there without losing the stream's slot.
"""

from __future__ import annotations

from typing import Protocol

from .errors import ProtocolRefused, StreamLost

GREETING = "/multistream/1.0.0"
MAX_LINE_BYTES = 1024


class ByteStream(Protocol):
    async def read(self, n: int) -> bytes: ...
    async def write(self, data: bytes) -> None: ...


def encode_line(text: str) -> bytes:
    """`text` as a message: varint length, text, newline. ValueError over MAX_LINE_BYTES."""
    line = text.encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError("the name of a protocol is too long")
    if len(line) < 0x80:
        return bytes([len(line)]) + line
    return bytes([len(line) & 0x7F | 0x80, len(line) >> 7]) + line


async def select(stream: ByteStream, protocol: str) -> None:
    """Agrees on `protocol`. ProtocolRefused when the peer does not speak it, StreamLost when it answers nonsense."""
    await stream.write(encode_line(GREETING) + encode_line(protocol))
    if (greeting := await _read_line(stream)) != GREETING:
        raise StreamLost(f"the peer does not speak multistream-select: {greeting[:40]!r}")
    answer = await _read_line(stream)
    if answer == "na":
        raise ProtocolRefused(f"the peer does not speak {protocol}")
    if answer != protocol:
        raise StreamLost(f"the peer answered {answer[:40]!r} to {protocol}")


async def _read_line(stream: ByteStream) -> str:
    length = (await _read_exactly(stream, 1))[0]
    if length & 0x80:
        length = length & 0x7F | (await _read_exactly(stream, 1))[0] << 7
    if not 0 < length <= MAX_LINE_BYTES:
        raise StreamLost("the peer sent an oversized negotiation message")
    return (await _read_exactly(stream, length)).removesuffix(b"\n").decode("utf-8", "replace")


async def _read_exactly(stream: ByteStream, n: int) -> bytes:
    data = b""
    while len(data) < n:
        if not (more := await stream.read(n - len(data))):
            raise StreamLost("the peer closed the stream before the protocol was agreed on")
        data += more
    return data
