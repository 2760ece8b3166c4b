"""The memory tier: whole answers by request digest, bounded by bytes, least recently used first out.

Synchronous and for one thread, so that a hit on the RPC's hot path is a dictionary look-up and nothing else.

    memory = Memory(max_bytes=64 * 2**20)
    memory.put(key.digest, Entry.of(signed, public=True))
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct

from .derived import SEALED, Derived, derive
from .record import SignedRecord
from .sealing import Seal

OVERHEAD_BYTES = 1300  # of an entry's Python objects besides its texts and blocks (1,292 by tracemalloc)


class Entry(Struct, frozen=True, gc=False):
    """An answer at hand. public: served to peers. foreign: signed by another node, so the trust rule applies.

    cids: every CID under which something of it can be asked for. size: bytes of memory that it takes, about.
    derived: blocks that are made from it when they are asked for.
    """

    signed: SignedRecord
    public: bool
    foreign: bool
    cid_text: str
    cids: tuple[bytes, ...]
    size: int
    derived: tuple[Derived, ...] = ()

    @classmethod
    def of(
        cls, signed: SignedRecord, *, public: bool, foreign: bool = False, derived: tuple[Derived, ...] = ()
    ) -> Entry:
        """An entry with its CID written out once (1.5 us), and not at every hit."""
        extra = signed.extra
        cids = (signed.cid, *(one.cid for one in derived)) if derived else (signed.cid,)
        size = OVERHEAD_BYTES + len(signed.block) + len(signed.record.content)
        if extra is not None and signed.extra_cid is not None:
            cids, size = (*cids, signed.extra_cid), size + len(extra)
        return cls(signed, public, foreign, signed.cid_text, cids, size, derived)


class Memory:
    """Entries by request digest (32 bytes) within `max_bytes`; one too large for a quarter of it is not kept."""

    def __init__(self, max_bytes: int, seals: Sequence[Seal] = ()) -> None:
        self.max_bytes = max_bytes
        self.seals = tuple(seals)
        self.bytes = 0
        self.evicted = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._blocks: dict[bytes, bytes] = {}  # CID of a record, or of what it links -> request digest

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes) -> Entry | None:
        entry = self._entries.get(digest)
        if entry is not None:
            self._entries.move_to_end(digest)
        return entry

    def put(self, digest: bytes, entry: Entry) -> None:
        self.delete(digest)
        if entry.size > self.max_bytes // 4:
            return
        self._entries[digest] = entry
        self.bytes += entry.size
        for cid in entry.cids:
            self._blocks[cid] = digest
        while self.bytes > self.max_bytes:
            self.delete(next(iter(self._entries)))
            self.evicted += 1

    def delete(self, digest: bytes) -> bool:
        entry = self._entries.pop(digest, None)
        if entry is None:
            return False
        self.bytes -= entry.size
        for cid in entry.cids:
            if self._blocks.get(cid) == digest:
                del self._blocks[cid]
        return True

    def clear(self) -> None:
        self._entries.clear()
        self._blocks.clear()
        self.bytes = 0

    def by_cid(self, cid: bytes) -> Entry | None:
        """The entry whose record, or linked raw block, has this CID. Does not count as use."""
        digest = self._blocks.get(cid)
        return None if digest is None else self._entries.get(digest)

    def block(self, cid: bytes, *, public_only: bool = False) -> bytes | None:
        """The block with this CID, when it is here (and public, if asked for so)."""
        entry = self.by_cid(cid)
        if entry is None or (public_only and not entry.public):
            return None
        signed = entry.signed
        if cid == signed.cid:
            return signed.block
        if cid == signed.extra_cid:
            return signed.extra
        wanted = next(one for one in entry.derived if one.cid == cid)
        stored = signed.extra if wanted.kind == SEALED and wanted.of == signed.extra_cid else signed.block
        return None if stored is None else derive(wanted, stored, self.seals)
