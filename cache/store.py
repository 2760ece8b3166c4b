"""The disk tier: answers and their blocks in one SQLite file, found by request digest or by CID.

One writer thread commits in groups (writer.py); readers have connections of their own in trio's worker threads, so the
event loop waits for the disk in `public_block` only. A block and its index entry are one transaction: after a kill
there is both or neither. Bounded by size: the least recently used go first, pins stay.

    async with Store(path, max_bytes=2**30).running() as store:
        store.put(signed, public=True)
        await store.flush()  # on disk now
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio
from msgspec import Struct

from . import published
from . import statements as sql
from .cid import holds
from .database import StoreError, is_damage, open_reader
from .derived import Derived, derive
from .known import Known
from .published import Placed
from .record import SignedRecord
from .sealing import Seal
from .statements import Found, OutboxItem, Row, Totals
from .writer import Job, Writer

__all__ = ["Found", "OutboxItem", "Row", "Store", "StoreError", "StoreStats"]

log = logging.getLogger("shoal.cache")

T = TypeVar("T")

OPEN = "open"
"""The audience of an open swarm: everybody."""
MAX_OUTBOX = 10_000
READERS = 4
CLOSE_S = 5.0  # a disk that hangs does not hold up the node's end for longer
TOUCHED_AT_ONCE = 1000  # hits whose time of use is kept in memory before it is written


class StoreStats(Struct, frozen=True):
    """answers and bytes: there now (bytes with an allowance for rows). dropped: not taken, as the disk was full or too
    much waited. failed: jobs that could not be committed. damaged: blocks found with a wrong hash. reason: why nothing
    can be stored at the moment, or "". set_aside: names of damaged files moved away since the start."""

    answers: int
    bytes: int
    max_bytes: int
    evicted: int
    dropped: int
    failed: int
    damaged: int
    waiting_bytes: int
    outbox: int
    reason: str
    set_aside: tuple[str, ...]


class Store:
    """See the module. max_bytes: of answers on disk. queue_bytes: of answers that wait for the writer; more is dropped.
    seals: the keys under which sealed blocks are made when they are asked for. audience: whom public answers are for:
    OPEN, or a private swarm's name for its key, and after it those before that it has not given up.

    All methods are for the trio thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 1 << 30,
        queue_bytes: int = 32 << 20,
        seals: Sequence[Seal] = (),
        audience: Sequence[str] = (),
    ) -> None:
        self.path, self.max_bytes, self.seals = path, max_bytes, tuple(seals)
        self._audience = tuple(audience)
        self._totals = Totals()  # changed in the writer's thread, read here
        self._touched: dict[bytes, int] = {}
        self._known = Known()
        self._damaged = 0
        self._many = self._insert_many  # one and the same for all jobs
        self._writer = Writer(path, queue_bytes=queue_bytes, opened=self._count, tidy=self._tidy)
        self._readers: list[tuple[int, sqlite3.Connection]] = []
        self._own_reader: tuple[int, sqlite3.Connection] | None = None
        self._limiter = trio.CapacityLimiter(READERS)
        self._open = False
        self._failures_told = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Store]:
        """Open the file, keep the writer; on leaving, what is queued is written first.

        StoreError when the file cannot be opened or a newer Shoal wrote it.
        """
        await trio.to_thread.run_sync(self._writer.start)
        self._open = True
        try:
            yield self
        finally:
            self._open = False
            while self._readers:
                self._readers.pop()[1].close()
            if self._own_reader is not None:
                self._own_reader[1].close()
                self._own_reader = None
            # Last: the end of the last connection folds the log into the file, and only the writer's may.
            with trio.move_on_after(CLOSE_S, shield=True) as scope:
                await trio.to_thread.run_sync(self._writer.stop, abandon_on_cancel=True)
            if scope.cancelled_caught:
                log.error("the answer store did not finish writing in %.0f s: the last answers may be lost", CLOSE_S)

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(
        self, signed: SignedRecord, *, public: bool, foreign: bool = False, derived: Sequence[Derived] = ()
    ) -> bool:
        """Queue an answer; `flush` waits until it is durable. False when it was not taken (see StoreStats.dropped).

        derived: the blocks that are to be found by their CIDs, too, and made from this answer's then.
        """
        self._known.add(signed.record.request[-32:])
        new = sql.New(signed, _now_ms(), public, foreign, derived)
        return self._writer.submit(Job(None, None, sql.size_of(signed), False, self._many, new))

    async def flush(self) -> None:
        """Return when everything queued so far is on disk. StoreError when something since the last flush is not."""
        await self.settle()
        lost = self._writer.failed + self._writer.dropped
        lost, self._failures_told = lost - self._failures_told, lost
        if lost:
            raise StoreError(f"{lost} answers were not stored: {self._writer.reason or 'too many waited at once'}")

    async def settle(self) -> None:
        """Return when everything queued so far has been tried, whether it worked or not."""
        await self._ask(lambda db: None)

    def touch(self, digest: bytes) -> None:
        """Note a hit on a request. Written with a later group, so that a hit costs no write."""
        self._touched[digest] = _now_ms()
        if len(self._touched) >= TOUCHED_AT_ONCE:
            self._writer.submit(Job(None))

    async def pin(self, cid: bytes, pinned: bool = True) -> bool:
        """Keep a record whatever the size bound says, or no longer. False when it is not here."""
        return await self._ask(lambda db: sql.pin(db, cid, pinned))

    async def unpin(self, cid: bytes) -> bool:
        return await self.pin(cid, pinned=False)

    async def delete(self, cid: bytes) -> bool:
        """Remove a record, and its linked block unless another links it. The bytes are overwritten in the file."""
        return await self._ask(lambda db: sql.erase(db, self._totals, sql.answer_ids(db, cid))) > 0

    async def expire(self, created_before_ms: int) -> int:
        """Remove what was made before a time and is not pinned; how many there were."""
        removed = 0
        while True:  # in batches, so that no answer waits long for the writer
            batch = await self._ask(lambda db: sql.delete(db, self._totals, sql.expired_ids(db, created_before_ms)))
            removed += batch
            if batch < sql.BATCH:
                return removed

    # -- reading ---------------------------------------------------------------------------------------------------

    async def get(self, digest: bytes) -> Found | None:
        """The newest answer to a request (32-byte digest), its hashes checked. What is unreadable counts as missing."""
        if not self.may_hold(digest):
            return None
        found = await self._read(lambda db: sql.newest(db, digest), None)
        return await self._checked(found)

    def may_hold(self, digest: bytes) -> bool:
        """False: there is no answer to this request here. True: look."""
        return self._known.may_hold(digest)

    async def find(self, cid: bytes) -> Found | None:
        """The record with this CID, with what it links."""
        found = await self._read(lambda db: sql.by_cid(db, cid), None)
        return await self._checked(found)

    async def cids_of(self, name: bytes) -> list[bytes]:
        """The record with this CID, or else all records that answer the request with this CID or digest."""
        return await self._read(lambda db: sql.cids_of(db, name), [])

    async def known(self, cids: Sequence[bytes]) -> set[bytes]:
        """Which of these records are here."""
        return await self._read(lambda db: sql.known(db, cids), set())

    async def public_among(self, requests: Sequence[bytes]) -> set[bytes]:
        """Which of these requests, as digests, have an answer that peers may have."""
        return await self._read(lambda db: sql.public_among(db, requests), set())

    async def models(self) -> list[str]:
        """The models whose answers are here."""
        return await self._read(sql.models, [])

    async def newest_public(self, limit: int, *, own: bool = False) -> list[tuple[bytes, bytes]]:
        """(request digest, record's CID) of answers that peers may have, the last first. own: this node's alone."""
        return await self._read(lambda db: sql.newest_public(db, limit, own), [])

    async def block(self, cid: bytes) -> bytes | None:
        """Any block, of a record, linked by one, or derived from either, by its CID."""
        return self._made(cid, await self._read(lambda db: sql.block(db, cid, public_only=False), None))

    def _made(self, cid: bytes, found: tuple[bytes, Derived | None] | None) -> bytes | None:
        """The block itself from what the index led to, its hash checked."""
        if found is None:
            return None
        stored, derived = found
        data = stored if derived is None else derive(derived, stored, self.seals)
        return data if data is not None and holds(cid, data) else None

    def public_block(self, cid: bytes) -> bytes | None:
        """A block that peers may have. Synchronous, for bitswap: one indexed read of at most 1 MiB (20 to 100 us when
        the page is in memory), which waits for no lock."""
        if not self._open:
            return None
        try:
            if self._own_reader is None or self._own_reader[0] != self._writer.generation:
                if self._own_reader is not None:
                    self._own_reader[1].close()
                self._own_reader = (self._writer.generation, open_reader(self.path, timeout_s=0))
            found = sql.block(self._own_reader[1], cid, public_only=True)
        except sqlite3.Error as error:
            self._report_damage(error, self._writer.generation)
            return None
        return self._made(cid, found)

    def count(self) -> int:
        """Answers on disk."""
        return self._totals.answers

    def size(self) -> int:
        """Bytes of answers on disk, with an allowance for their rows."""
        return self._totals.bytes

    async def iterate(self, *, since_ms: int = 0, model: str | None = None) -> AsyncIterator[Row]:
        """What is stored, oldest first, read page by page: what is added meanwhile comes too."""
        after = 0
        while True:
            page: list[Row] = await self._read(
                functools.partial(sql.page, after=after, since_ms=since_ms, model=model), []
            )
            for row in page:
                yield row
            if not page:
                return
            after = page[-1].id

    def stats(self) -> StoreStats:
        writer, totals = self._writer, self._totals
        return StoreStats(
            answers=totals.answers,
            bytes=totals.bytes,
            max_bytes=self.max_bytes,
            evicted=totals.evicted,
            dropped=writer.dropped,
            failed=writer.failed,
            damaged=self._damaged,
            waiting_bytes=writer.waiting_bytes,
            outbox=totals.outbox,
            reason=writer.reason,
            set_aside=tuple(path.name for path in writer.set_aside),
        )

    # -- the outbox: what waits for an IPFS daemon -----------------------------------------------------------------

    def outbox_add(self, cid: bytes, op: str = "put") -> bool:
        """Queue a record's CID for publishing ("put") or withdrawal ("unpin"). False when the outbox is full."""
        if self._totals.outbox >= MAX_OUTBOX:
            return False
        now = _now_ms()
        return self._writer.submit(Job(lambda db: sql.outbox_add(db, self._totals, cid, op, now), size=len(cid)))

    async def outbox_due(self, limit: int) -> list[OutboxItem]:
        """What is due now, the longest waiting first."""
        return await self._read(lambda db: sql.outbox_due(db, _now_ms(), limit), [])

    async def outbox_next_s(self) -> float | None:
        """Seconds until something is due (0 when it is); None when nothing waits."""
        due = await self._read(sql.outbox_next, None)
        return None if due is None else max(0.0, (due - _now_ms()) / 1000)

    async def outbox_done(self, items: Sequence[OutboxItem]) -> None:
        await self._ask(lambda db: sql.outbox_done(db, self._totals, items))

    async def outbox_retry(self, item: OutboxItem, wait_s: float) -> None:
        """Try again in `wait_s` seconds, and count the attempt."""
        due = _now_ms() + int(wait_s * 1000)
        await self._ask(lambda db: sql.outbox_retry(db, item, due))

    # -- what lies at the daemon -----------------------------------------------------------------------------------

    async def placed(self, placed: Sequence[Placed], gone: Sequence[bytes] = ()) -> None:
        """Note what was put and pinned there, and which records (by CID) are there no more."""

        def note(db: sqlite3.Connection) -> None:
            for record in gone:
                published.remove(db, record)
            published.place(db, placed)

        await self._ask(note)

    async def under_root_of(self, record: bytes) -> list[Placed]:
        """The record, when it is there, and all that share its root, itself first."""
        return await self._read(lambda db: published.under_root_of(db, record), [])

    async def needed_elsewhere(self, record: bytes, cids: Sequence[bytes]) -> set[bytes]:
        """Which of these blocks are there for another record, too. When that cannot be read: all of them."""
        return await self._read(lambda db: published.needed_elsewhere(db, record, cids), set(cids))

    # -- within ----------------------------------------------------------------------------------------------------

    async def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job in the writer's thread and wait for its commit. StoreError when it failed."""
        token, ready = trio.lowlevel.current_trio_token(), trio.Event()
        outcome: list[tuple[Any, Exception | None]] = []

        def done(result: Any, error: Exception | None) -> None:
            outcome.append((result, error))
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(ready.set)

        if not self._open:
            raise StoreError("the answer store is closed")
        self._writer.submit(Job(work, done, urgent=True))
        await ready.wait()
        result, error = outcome[0]
        if error is not None:
            raise StoreError(f"the answer store could not write: {error}") from error
        answer: T = result
        return answer

    async def _read(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        if not self._open:
            return otherwise
        generation = self._writer.generation
        try:
            return await trio.to_thread.run_sync(self._with_reader, work, limiter=self._limiter, abandon_on_cancel=True)
        except sqlite3.Error as error:
            self._report_damage(error, generation)
            return otherwise

    def _with_reader(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """In a worker thread: run `work` with a pooled connection to the file of today."""
        generation = self._writer.generation
        connection = None
        with contextlib.suppress(IndexError):
            known, connection = self._readers.pop()
            if known != generation:
                connection.close()
                connection = None
        if connection is None:
            connection = open_reader(self.path)
        try:
            result = work(connection)
        except BaseException:
            connection.close()
            raise
        self._readers.append((generation, connection))
        if not self._open:  # the store was closed while this read was on its way, abandoned
            with contextlib.suppress(IndexError):
                self._readers.pop()[1].close()
        return result

    async def _checked(self, found: Found | None) -> Found | None:
        if found is None:
            return None
        linked = found.extra is None or found.extra_cid is None or holds(found.extra_cid, found.extra)
        if holds(found.cid, found.block) and linked:
            return found
        self._damaged += 1
        with contextlib.suppress(StoreError):
            await self.delete(found.cid)
        return None

    def _report_damage(self, error: sqlite3.Error, generation: int) -> None:
        """A reader met a broken page: let the writer meet it too, and set the file aside, unless that has happened."""
        if is_damage(error):

            def meet(_: sqlite3.Connection) -> None:
                if self._writer.generation == generation:
                    raise error

            self._writer.submit(Job(meet))

    def _insert_many(self, db: sqlite3.Connection, new: list[sql.New]) -> None:
        sql.insert_many(db, self._totals, new)

    def _count(self, db: sqlite3.Connection) -> None:
        if self._audience and (kept := sql.settle_audience(db, self._audience, OPEN)):
            log.info("%d answers of the private swarm that this node was in before stay on this machine", kept)
        sql.count(db, self._totals)
        if not self._open:
            self._known.load(db)

    def _tidy(self, db: sqlite3.Connection, idle: bool) -> bool:
        """In the writer's thread, after a group or when idle: times of use, eviction, the file's size."""
        touched = self._touched
        if touched and (idle or len(touched) >= TOUCHED_AT_ONCE or self._totals.bytes > self.max_bytes):
            self._touched = {}
            sql.touch(db, list(touched.items()))
        if self._totals.erasing:
            self._totals.erasing = False
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return sql.evict(db, self._totals, self.max_bytes)


def _now_ms() -> int:
    return int(time.time() * 1000)
