"""What a node of the DHT keeps for others: who provides what, and where nodes are. Bounded in every direction. Pure.

What comes in is verified by then (kad_statement.py) and was brought by the node that it speaks of. When there is no
room, the oldest record of whoever has most of them goes: a flood displaces itself.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from msgspec import Struct

from ..peer_id import PeerId
from .kad_statement import Statement, read

SWEEP_S = 60.0  # between two looks at everything, however full it is


class Held(Struct, frozen=True, gc=False):
    """sealed: as it came, to be passed on. Of a statement only what every look needs is kept beside it: there may be
    thousands, and they are read again when somebody asks."""

    peer: PeerId
    created: float
    expires: float
    sealed: bytes

    @property
    def statement(self) -> Statement:
        return read(self.sealed)


class RecordStore:
    """records: in all. per_peer: of one node. per_key: providers of one key. refused: counts by reason."""

    def __init__(self, *, records: int, per_peer: int, per_key: int) -> None:
        self._records, self._per_peer, self._per_key = records, per_peer, per_key
        self._by_key: dict[bytes, dict[PeerId, Held]] = {}
        self._by_peer: dict[PeerId, OrderedDict[bytes, None]] = {}  # keys, the oldest record first
        self._count = 0
        self._swept = 0.0
        self.refused: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> int:
        return len(self._by_key)

    def put(self, statement: Statement, sealed: bytes, now: float) -> bool:
        """Keep a statement, or take the one before back; False when it is refused, and counted."""
        key, peer = statement.key, statement.peer
        held = self._by_key.get(key, {}).get(peer)
        if held is not None and statement.created <= held.created:
            if sealed == held.sealed:
                return True
            self.refused["stale"] += 1
            return False
        if statement.withdrawn:
            self._drop(key, peer)
            return True
        if held is None:
            mine = self._by_peer.get(peer, ())
            if len(mine) >= self._per_peer:
                self.refused["peer_full"] += 1
                return False
            others = self._by_key.get(key, {})
            if len(others) >= self._per_key:
                gone = [other for other, record in others.items() if now >= record.expires]
                if not gone:
                    self.refused["key_full"] += 1
                    return False
                for other in gone:
                    self._drop(key, other)
            if self._count >= self._records and not self._make_room(now):
                self.refused["full"] += 1
                return False
        self._drop(key, peer)
        self._by_key.setdefault(key, {})[peer] = Held(statement.peer, statement.created, statement.expires, sealed)
        self._by_peer.setdefault(peer, OrderedDict())[key] = None
        self._count += 1
        return True

    def get(self, key: bytes, now: float) -> list[Held]:
        """What holds now, the newest first."""
        held = [one for one in self._by_key.get(key, {}).values() if now < one.expires]
        return sorted(held, key=lambda one: -one.created)

    def sweep(self, now: float) -> None:
        """Let go of what holds no longer."""
        self._swept = now
        for key, held in list(self._by_key.items()):
            for peer, one in list(held.items()):
                if now >= one.expires:
                    self._drop(key, peer)

    def clear(self) -> None:
        self._by_key.clear()
        self._by_peer.clear()
        self._count = 0

    def _make_room(self, now: float) -> bool:
        if now - self._swept > SWEEP_S:
            self.sweep(now)
        if self._count < self._records:
            return True
        if not self._by_peer:
            return False
        most = max(self._by_peer, key=lambda peer: len(self._by_peer[peer]))
        self._drop(next(iter(self._by_peer[most])), most)
        return True

    def _drop(self, key: bytes, peer: PeerId) -> None:
        of_key = self._by_key.get(key)
        if of_key is None or of_key.pop(peer, None) is None:
            return
        if not of_key:
            del self._by_key[key]
        of_peer = self._by_peer[peer]
        del of_peer[key]
        if not of_peer:
            del self._by_peer[peer]
        self._count -= 1
