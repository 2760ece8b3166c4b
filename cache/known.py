"""Which requests the disk may have an answer to, so that a new question does not wait for a look at the disk.

A digest that was never stored is known to be absent, but for a few: the ones from before are kept as 8-byte prefixes,
sorted (8 MB for a million), those stored since in a Bloom filter (Bloom 1970; 512 KiB, under 2 % wrong up to 400,000).
What was deleted counts as perhaps there: the look at the disk finds out.
"""

from __future__ import annotations

import sqlite3
import struct
from array import array
from bisect import bisect_left

FILTER_BITS = 1 << 22
_MASK = FILTER_BITS - 1
_numbers = struct.Struct(">3I").unpack_from


class Known:
    """`load` in any thread before the first use, the rest in one thread."""

    def __init__(self) -> None:
        self._before = array("Q")
        self._since = bytearray(FILTER_BITS // 8)

    def load(self, db: sqlite3.Connection) -> None:
        """Take in what is stored: a single statement, which Python's lock is not held for."""
        (prefixes,) = db.execute("SELECT group_concat(hex(substr(request, 1, 8)), '') FROM answers").fetchone()
        before = array("Q", bytes.fromhex(prefixes or ""))
        before.byteswap()
        self._before = array("Q", sorted(before))

    def add(self, digest: bytes) -> None:
        """digest: the 32 bytes that name a request."""
        since = self._since
        for number in _numbers(digest, 8):
            bit = number & _MASK
            since[bit >> 3] |= 1 << (bit & 7)

    def may_hold(self, digest: bytes) -> bool:
        """False: there is no answer to this request on the disk."""
        since = self._since
        for number in _numbers(digest, 8):
            bit = number & _MASK
            if not since[bit >> 3] & 1 << (bit & 7):
                break
        else:
            return True
        prefix = int.from_bytes(digest[:8])
        at = bisect_left(self._before, prefix)
        return at < len(self._before) and self._before[at] == prefix
