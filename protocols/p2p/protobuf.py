"""The wire format of protobuf, as much as our messages need: pure, bounded, tolerant of fields that it does not know.

Format: https://protobuf.dev/programming-guides/encoding/. Messages are read by hand rather than by a protobuf library,
because that one builds every entry before anyone can count them.

    data = field(1, b"key") + number(2, 300)
    assert list(fields(data)) == [(1, b"key"), (2, 300)]
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


def encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, text or a message. number: 1 to 15."""
    return bytes([number << 3 | _BYTES]) + encode_varint(len(data)) + data


def integer(number: int, value: int) -> bytes:
    """A field of a number or an enumeration. number: 1 to 15."""
    return bytes([number << 3 | _VARINT]) + encode_varint(value)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, its value) for every field of a message. ValueError when it is malformed."""
    position, end = 0, len(data)
    while position < end:
        tag, position = varint_at(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = varint_at(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = varint_at(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("an unknown wire type")
        if size > end - position:
            raise ValueError("a field is cut short")
        yield number, data[position : position + size]
        position += size


def varint_at(data: bytes, start: int) -> tuple[int, int]:
    """(the varint at `start`, where the next field begins). ValueError when it is cut short or too long."""
    value = shift = 0
    for position in range(start, min(start + 10, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
        shift += 7
    raise ValueError("a varint is cut short or too long")


def as_bytes(value: int | bytes) -> bytes:
    """A field's value that must be bytes. ValueError."""
    if not isinstance(value, bytes):
        raise ValueError("a field has the wrong type")  # noqa: TRY004  # one error for all that is malformed
    return value
