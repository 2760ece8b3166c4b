"""Frames of the session protocol: bytes to `(kind, call id, body)` and back. Pure; docs/protocol.md is its prose.

What belongs here: the spelling of frames, the parts of large bodies, and the sizes both sides must agree on.
What a frame means is session.py's business.

A frame is a 4-byte big-endian length and a msgpack array `[kind, call id, body]`. A body whose msgpack form is longer
than WHOLE_BODY_BYTES travels as `part` frames, so that no call holds up another.

    parser = FrameParser()
    for kind, call_id, body, size in parser.feed(frame(PING, 7)):
        assert (kind, call_id, body) == (PING, 7, None)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from .items import TooManyItems, check_items

HELLO, ADVERT, CALL, ACCEPT, DELTA, END, ERROR, CANCEL, CREDIT, LOOKUP, FOUND, PING, PONG, GOAWAY, PART, NOTE = range(
    16
)

WHOLE_BODY_BYTES = 64 * 1024  # a longer body goes in parts
PART_BYTES = 32 * 1024  # of the body in one part: what another call's frame may have to wait for
MAX_FRAME_BYTES = WHOLE_BODY_BYTES + 64  # after the length prefix; the rest is room for the array, kind and call id
MAX_CALL_ID = 2**53 - 1  # exact in every language that might speak this
MAX_ITEMS = 8 * 1024  # values in a whole body of more than CHEAP_BYTES
MAX_ITEMS_IN_PARTS = 128 * 1024  # values in a body that came in parts
CHEAP_BYTES = 2048  # a body up to here costs little however it is made
CALL_WINDOW = 256 * 1024  # bytes of frames a sender may have unconsumed at the receiver, per call

_LENGTH_BYTES = 4
_PARTED = frozenset({CALL, ACCEPT, DELTA, END, LOOKUP, FOUND})  # kinds whose bodies may come in parts

_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(tuple[int, int, Any]).decode
_decode_body = msgspec.msgpack.Decoder().decode


class ProtocolError(Exception):
    """A peer broke the rules of the protocol; the session cannot go on. The message goes to the peer as the reason."""


def encode_body(body: Any) -> bytes:
    """`body` (plain data or msgspec Structs) as msgpack. TypeError for what msgpack has no form for."""
    return _encode(body)


def head(kind: int, call_id: int) -> bytes:
    """What stands between the length prefix and the body; worth keeping for a call that sends many frames."""
    return b"\x93" + bytes((kind,)) + _encode(call_id)


def frame_of(head: bytes, payload: bytes) -> bytes:
    """One frame from its head and its encoded body. ValueError when it is longer than MAX_FRAME_BYTES."""
    size = len(head) + len(payload)
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes; {MAX_FRAME_BYTES} is the limit, longer bodies go in parts")
    return size.to_bytes(_LENGTH_BYTES, "big") + head + payload


def frame(kind: int, call_id: int, body: Any = None) -> bytes:
    """One frame with a small body."""
    return frame_of(head(kind, call_id), _encode(body))


def parts(kind: int, call_id: int, payload: bytes) -> Iterator[bytes]:
    """The frames that carry an encoded body too long for one frame: `[part, call id, [kind, total, chunk]]`."""
    part_head, view = head(PART, call_id), memoryview(payload)
    for start in range(0, len(payload), PART_BYTES):
        yield frame_of(part_head, _encode((kind, len(payload), view[start : start + PART_BYTES])))


class Assembly:
    """A body on its way in parts."""

    def __init__(self, kind: int, total: int) -> None:
        self.kind, self.total = kind, total
        self._buffer = bytearray()

    @classmethod
    def begin(cls, body: Any) -> Assembly:
        """From the first part's body, which is then to be `add`ed. ProtocolError when it cannot begin one."""
        kind, total, _ = part_of(body)
        return cls(kind, total)

    def add(self, body: Any) -> bool:
        """Take one part; True when the body is whole. ProtocolError for a part that does not fit."""
        kind, total, chunk = part_of(body)
        if (kind, total) != (self.kind, self.total) or len(self._buffer) + len(chunk) > total:
            raise ProtocolError("a part that does not belong to the body before it")
        self._buffer += chunk
        return len(self._buffer) == total

    def body(self) -> Any:
        """The body, once it is whole. ProtocolError for what is no msgpack, or would take far more room than it has."""
        try:
            check_items(self._buffer, MAX_ITEMS_IN_PARTS)
            return _decode_body(self._buffer)
        except TooManyItems as error:
            raise ProtocolError(str(error)) from None
        except (ValueError, RecursionError) as error:
            raise ProtocolError("the parts of a body do not make msgpack") from error


def part_of(body: Any) -> tuple[int, int, bytes]:
    """(kind, total, chunk) of a part's body, checked."""
    if isinstance(body, list) and len(body) == 3:
        kind, total, chunk = body
        if (
            isinstance(kind, int)
            and kind in _PARTED
            and isinstance(total, int)
            and isinstance(chunk, bytes)
            and total > WHOLE_BODY_BYTES
            and 0 < len(chunk) <= PART_BYTES
        ):
            return kind, total, chunk
    raise ProtocolError("a malformed part")


class FrameParser:
    """Bytes in, whole frames out. Holds at most one incomplete frame."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._rest = b""
        self._limit = limit

    def feed(self, data: bytes) -> list[tuple[int, int, Any, int]]:
        """Every frame that is now complete, as (kind, call id, body, bytes after the length prefix).

        ProtocolError at the first byte that cannot be right; the parser is not usable after it. An unknown kind
        is passed on: judging it takes the session's state.
        """
        if self._rest:
            data = self._rest + data
        end, position, frames = len(data), 0, []
        while end - position >= _LENGTH_BYTES:
            start = position + _LENGTH_BYTES
            size = int.from_bytes(data[position:start], "big")
            if size > self._limit:
                raise ProtocolError(f"a frame of {size} bytes; the limit is {self._limit}")
            if end - start < size:
                break
            position = start + size
            try:
                if size > CHEAP_BYTES:
                    check_items(data[start:position], MAX_ITEMS)
                kind, call_id, body = _decode_frame(data[start:position])
            except TooManyItems as error:
                raise ProtocolError(str(error)) from None
            except (ValueError, RecursionError) as error:
                raise ProtocolError("not a frame: expected a msgpack array [kind, call id, body]") from error
            if not 0 <= call_id <= MAX_CALL_ID:
                raise ProtocolError("a call id out of range")
            frames.append((kind, call_id, body, size))
        self._rest = data[position:]
        return frames
