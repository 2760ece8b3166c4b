"""Whom a node of the DHT knows, and how it closes in on a key. Pure: no I/O, no clock.

Kademlia (Maymounkov and Mazieres, 2002): keys and peers are places on a line of 2^256, the distance of two places is
their XOR. A node knows few of those far from it and nearly all close to it, so each answer to a search halves what is
left of the way.

    search = Search(place_of(key), table.closest(place_of(key), 20))
    while (peers := search.next()): ...                # ask each; search.heard(peer, closer) or search.lost(peer)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

from ..peer_id import PeerId, base58_decode

BUCKET = 20  # peers kept at each distance; Kademlia's k
PARALLEL = 4  # questions of one search under way at once; Kademlia's alpha
MAX_CANDIDATES = 256  # that one search keeps; the farthest go


def place_of(key: bytes) -> int:
    """The place of a key."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


@functools.lru_cache(maxsize=4096)
def place_of_peer(peer: PeerId) -> int:
    """The place of a peer: that of its id as bytes. ValueError for what is no base58."""
    return place_of(base58_decode(peer))


class Table:
    """The peers that have answered or are connected, by distance. `addresses` are those that worked or were told."""

    def __init__(self, me: PeerId, *, bucket: int = BUCKET) -> None:
        self._me, self._bucket = place_of_peer(me), bucket
        self._buckets: dict[int, dict[PeerId, tuple[str, ...]]] = {}  # of the number of bits that differ

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def __contains__(self, peer: PeerId) -> bool:
        return self.addresses(peer) is not None

    def _distance(self, peer: PeerId) -> int:
        return (place_of_peer(peer) ^ self._me).bit_length()

    def addresses(self, peer: PeerId) -> tuple[str, ...] | None:
        return self._buckets.get(self._distance(peer), {}).get(peer)

    def add(self, peer: PeerId, addresses: Iterable[str] = ()) -> bool:
        """A peer is there. False when its bucket is full of others, who have been there for longer: they stay longer,
        too, and a flood of new names cannot push them out."""
        if (distance := self._distance(peer)) == 0:
            return False
        bucket = self._buckets.setdefault(distance, {})
        known = bucket.pop(peer, None)
        if known is None and len(bucket) >= self._bucket:
            return False
        bucket[peer] = tuple(addresses) or known or ()  # behind the others: heard of last
        return True

    def remove(self, peer: PeerId) -> None:
        """A peer did not answer."""
        distance = self._distance(peer)
        bucket = self._buckets.get(distance, {})
        bucket.pop(peer, None)
        if not bucket:
            self._buckets.pop(distance, None)

    def clear(self) -> None:
        self._buckets.clear()

    def peers(self) -> list[PeerId]:
        return [peer for bucket in self._buckets.values() for peer in bucket]

    def closest(self, place: int, count: int) -> list[PeerId]:
        """Those nearest to a place, the nearest first."""
        return sorted(self.peers(), key=lambda peer: place_of_peer(peer) ^ place)[:count]


class Search:
    """One search: whom to ask next, until the `width` nearest peers that answer have all been asked.

    A peer in `seeds` may be asked at once; those heard of on the way only when they are nearer than what has been
    asked.
    """

    def __init__(
        self, place: int, seeds: Iterable[PeerId], *, me: PeerId, width: int = BUCKET, parallel: int = PARALLEL
    ) -> None:
        self._place, self._me, self._width, self._parallel = place, me, width, parallel
        self._known: dict[PeerId, int] = {}
        self._asked: set[PeerId] = set()
        self._answered: set[PeerId] = set()
        self._waiting: set[PeerId] = set()
        self._add(seeds)

    def _add(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if peer != self._me and peer not in self._known and peer not in self._asked:
                try:
                    self._known[peer] = place_of_peer(peer) ^ self._place
                except ValueError:
                    continue
        if len(self._known) > MAX_CANDIDATES:
            for peer in sorted(self._known, key=self._known.__getitem__)[MAX_CANDIDATES:]:
                if peer not in self._asked:
                    del self._known[peer]

    def next(self) -> list[PeerId]:
        """Those to ask now; [] while enough are being asked, and when the search is over."""
        nearest = sorted(self._known, key=self._known.__getitem__)[: self._width]
        room = self._parallel - len(self._waiting)
        chosen = [peer for peer in nearest if peer not in self._asked][: max(0, room)]
        self._asked.update(chosen)
        self._waiting.update(chosen)
        return chosen

    def heard(self, peer: PeerId, closer: Iterable[PeerId]) -> None:
        """A peer that was asked has answered, and named others."""
        self._waiting.discard(peer)
        self._answered.add(peer)
        self._add(closer)

    def lost(self, peer: PeerId) -> None:
        """A peer that was asked does not answer: the next nearest takes its place."""
        self._waiting.discard(peer)
        self._known.pop(peer, None)

    @property
    def over(self) -> bool:
        """Whether nobody is left to ask. A side effect-free look."""
        if self._waiting:
            return False
        nearest = sorted(self._known, key=self._known.__getitem__)[: self._width]
        return all(peer in self._asked for peer in nearest)

    @property
    def closest(self) -> list[PeerId]:
        """Those that have answered, the nearest first."""
        return sorted(self._answered, key=self._known.__getitem__)[: self._width]
