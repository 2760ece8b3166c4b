"""How many values a msgpack body holds, counted before it is decoded.

An empty array is one byte on the wire and some 60 in memory, so 8 MiB of them would be half a gigabyte here. Counting
steps over texts and bytes by their length: an honest body, which is mostly text, costs microseconds, and a hostile one
is refused after as many steps as it may hold values. Format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations


class TooManyItems(ValueError):
    """The body would take far more memory than it has bytes."""


def _table() -> tuple[list[int], list[int], list[int], list[int]]:
    """For each first byte: bytes to skip; bytes that hold a length; what the length counts (0: bytes, 1: items,
    2: pairs); items that follow for certain."""
    skip, width, counts, items = [1] * 256, [0] * 256, [0] * 256, [0] * 256
    for byte in range(0x80, 0x90):
        items[byte] = 2 * (byte & 0x0F)
    for byte in range(0x90, 0xA0):
        items[byte] = byte & 0x0F
    for byte in range(0xA0, 0xC0):
        skip[byte] = 1 + (byte & 0x1F)
    for byte, size in ((0xCA, 4), (0xCB, 8), (0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)):
        skip[byte] = 1 + size
    for byte, size in ((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8), (0xD4, 2), (0xD5, 3), (0xD6, 5), (0xD7, 9)):
        skip[byte] = 1 + size
    skip[0xD8] = 18
    for first, extra in ((0xC4, 0), (0xC7, 1)):  # bin, ext
        for power in range(3):
            width[first + power] = 1 << power
            skip[first + power] = 1 + (1 << power) + extra
    for power in range(3):  # str
        width[0xD9 + power] = 1 << power
        skip[0xD9 + power] = 1 + (1 << power)
    for first, what in ((0xDC, 1), (0xDE, 2)):  # array, map
        for power in range(2):
            width[first + power] = 2 << power
            skip[first + power] = 1 + (2 << power)
            counts[first + power] = what
    return skip, width, counts, items


_SKIP, _WIDTH, _COUNTS, _ITEMS = _table()


def check_items(data: bytes | bytearray, limit: int) -> None:
    """TooManyItems when the first value in `data` has more than `limit` values in it, keys and itself among them.

    What is cut short or no msgpack passes: telling that is the decoder's business.
    """
    position, end, left, seen = 0, len(data), 1, 0
    while left and position < end:
        byte = data[position]
        left -= 1
        seen += 1
        if width := _WIDTH[byte]:
            count = int.from_bytes(data[position + 1 : position + 1 + width], "big")
            kind = _COUNTS[byte]
            if kind:
                left += count * kind
            else:
                position += count
        else:
            left += _ITEMS[byte]
        position += _SKIP[byte]
        if seen + left > limit:
            raise TooManyItems(f"a body with more than {limit} values in it")
