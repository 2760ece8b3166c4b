"""The store's SQL: functions of a connection, each a few statements. Thread and transaction are the caller's matter.

What changes the number or size of answers keeps `Totals` in step; `count` reads them afresh.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from .derived import Derived
from .record import SignedRecord

ROW_BYTES = 500  # the file's bytes for an answer besides its blocks: 350 to 650, as records fill the pages
BATCH = 512  # rows that one transaction deletes at most
LOW_WATER = 0.9  # eviction goes down to this part of the bound, so that it does not run at every put


class Totals(Struct):
    """What is in the file. erasing: a deletion asks for the log to be folded in at once."""

    answers: int = 0
    bytes: int = 0
    outbox: int = 0
    evicted: int = 0
    evicting: bool = False
    erasing: bool = False


class Found(Struct, frozen=True):
    """A stored answer's blocks, as read."""

    cid: bytes
    block: bytes
    extra_cid: bytes | None
    extra: bytes | None
    public: bool
    foreign: bool


class Row(Struct, frozen=True):
    """One line of the index. Times in ms since 1970; size in bytes."""

    id: int
    cid: bytes
    request: bytes
    model: str | None
    provider: str
    node: str
    created: int
    stored: int
    used: int
    size: int
    pinned: bool
    public: bool
    foreign: bool


class OutboxItem(Struct, frozen=True):
    cid: bytes
    op: str
    attempts: int


def size_of(signed: SignedRecord) -> int:
    return ROW_BYTES + len(signed.block) + len(signed.extra or b"")


def count(db: sqlite3.Connection, totals: Totals) -> None:
    totals.answers, totals.bytes = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM answers").fetchone()
    (totals.outbox,) = db.execute("SELECT count(*) FROM outbox").fetchone()


# -- writing ---------------------------------------------------------------------------------------------------


class New(NamedTuple):
    """An answer to store, as `insert` takes it."""

    signed: SignedRecord
    now_ms: int
    public: bool
    foreign: bool
    derived: Sequence[Derived]


AT_ONCE = 64
"""Rows of one statement. Groups are cut into powers of two up to this, so that few statements are ever compiled."""


def insert_many(db: sqlite3.Connection, totals: Totals, new: Sequence[New]) -> None:
    """Store answers with few statements; those with a linked block, or of which one is here already, one by one."""
    done = 0
    while done < len(new):
        some = new[done : done + min(AT_ONCE, 1 << (len(new) - done).bit_length() - 1)]
        done += len(some)
        if any(one.signed.extra is not None for one in some) or not _insert_some(db, totals, some):
            for one in some:
                insert(db, totals, *one)


def _insert_some(db: sqlite3.Connection, totals: Totals, new: Sequence[New]) -> bool:
    """False, and nothing is stored, when a block is here already."""
    blocks = [value for one in new for value in (one.signed.cid, one.signed.block)]
    try:
        last = db.execute(_INSERT_BLOCKS + _rows(2, len(new)), blocks).lastrowid or 0
    except sqlite3.IntegrityError:  # a statement that fails leaves nothing behind (sqlite.org/lang_conflict.html)
        return False
    # A table's next id is one more than its largest (sqlite.org/autoinc.html), so these follow one another.
    numbers = range(last - len(new) + 1, last + 1)
    answers = [value for number, one in zip(numbers, new, strict=True) for value in _answer(number, None, one)]
    db.execute(_INSERT_ANSWERS + _rows(12, len(new)), answers)
    derived = [(d.cid, number, d.kind) for number, one in zip(numbers, new, strict=True) for d in one.derived]
    while derived:
        some = derived[: 1 << min(AT_ONCE, len(derived)).bit_length() - 1]
        del derived[: len(some)]
        db.execute(_INSERT_DERIVED + _rows(3, len(some)), [value for row in some for value in row])
    totals.answers += len(new)
    totals.bytes += sum(size_of(one.signed) for one in new)
    return True


@functools.cache
def _rows(width: int, count: int) -> str:
    row = f"({','.join('?' * width)})"
    return ",".join([row] * count)


_INSERT_BLOCKS = "INSERT INTO blocks(cid, data) VALUES "
_INSERT_DERIVED = "INSERT OR IGNORE INTO derived(cid, block, kind) VALUES "
_INSERT_ANSWERS = (
    "INSERT INTO answers"
    "(request, block, linked, model, provider, node, created, stored, used, size, public, foreign_) VALUES "
)


def _answer(block: int, linked: int | None, new: New) -> tuple[object, ...]:
    record, now = new.signed.record, new.now_ms
    about = (record.model, record.provider, record.node, record.created)
    # The same digest whether the record refers to its request by CID or by digest.
    return (record.request[-32:], block, linked, *about, now, now, size_of(new.signed), new.public, new.foreign)


def insert(
    db: sqlite3.Connection,
    totals: Totals,
    signed: SignedRecord,
    now_ms: int,
    public: bool,
    foreign: bool,
    derived: Sequence[Derived] = (),
) -> bool:
    """Store an answer; False when the same record is here already (it may become public then)."""
    linked = None
    if signed.extra is not None and signed.extra_cid is not None:
        linked = _insert_block(db, signed.extra_cid, signed.extra)
    block = _insert_block(db, signed.cid, signed.block)
    size = size_of(signed)
    inserted = db.execute(
        _INSERT_ANSWERS + _rows(12, 1) + " ON CONFLICT(block) DO NOTHING",
        _answer(block, linked, New(signed, now_ms, public, foreign, derived)),
    ).rowcount
    if inserted:
        totals.answers += 1
        totals.bytes += size
    elif public:
        db.execute("UPDATE answers SET public = 1 WHERE block = ?", (block,))
    db.executemany(
        _INSERT_DERIVED + _rows(3, 1),
        [(one.cid, block if one.of == signed.cid else linked, one.kind) for one in derived],
    )
    return bool(inserted)


def _insert_block(db: sqlite3.Connection, cid: bytes, data: bytes) -> int:
    row = db.execute("SELECT id FROM blocks WHERE cid = ?", (cid,)).fetchone()
    if row is not None:
        return int(row[0])
    made = db.execute(_INSERT_BLOCKS + _rows(2, 1), (cid, data)).lastrowid
    return int(made or 0)


def touch(db: sqlite3.Connection, used: Iterable[tuple[bytes, int]]) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.executemany("UPDATE answers SET used = ?2 WHERE request = ?1", used)
    db.execute("COMMIT")


def pin(db: sqlite3.Connection, cid: bytes, pinned: bool) -> bool:
    changed = db.execute(
        "UPDATE answers SET pinned = ? WHERE block = (SELECT id FROM blocks WHERE cid = ?)", (pinned, cid)
    ).rowcount
    return bool(changed)


def answer_ids(db: sqlite3.Connection, cid: bytes) -> list[int]:
    rows = db.execute("SELECT id FROM answers WHERE block = (SELECT id FROM blocks WHERE cid = ?)", (cid,))
    return [row[0] for row in rows]


def expired_ids(db: sqlite3.Connection, created_before_ms: int) -> list[int]:
    query = "SELECT id FROM answers WHERE pinned = 0 AND created < ? LIMIT ?"
    return [row[0] for row in db.execute(query, (created_before_ms, BATCH))]


def delete(db: sqlite3.Connection, totals: Totals, ids: Sequence[int]) -> int:
    """Remove answers with their blocks; a linked block stays while another answer links it."""
    for number in ids:
        block, linked, size = db.execute("SELECT block, linked, size FROM answers WHERE id = ?", (number,)).fetchone()
        db.execute("DELETE FROM answers WHERE id = ?", (number,))
        db.execute("DELETE FROM derived WHERE block = ?", (block,))
        db.execute("DELETE FROM blocks WHERE id = ?", (block,))
        if linked is not None and not db.execute("SELECT 1 FROM answers WHERE linked = ?", (linked,)).fetchone():
            db.execute("DELETE FROM derived WHERE block = ?", (linked,))
            db.execute("DELETE FROM blocks WHERE id = ?", (linked,))
        totals.answers -= 1
        totals.bytes -= size
    return len(ids)


def erase(db: sqlite3.Connection, totals: Totals, ids: Sequence[int]) -> int:
    """Remove answers such that no text is left in the file's free pages."""
    db.execute("PRAGMA secure_delete = ON").fetchall()
    try:
        removed = delete(db, totals, ids)
    finally:
        db.execute("PRAGMA secure_delete = OFF").fetchall()
    totals.erasing = True
    return removed


def evict(db: sqlite3.Connection, totals: Totals, max_bytes: int) -> bool:
    """Remove one batch of the least recently used when the bound is passed; whether more remains to be removed."""
    if totals.bytes <= (max_bytes * LOW_WATER if totals.evicting else max_bytes):
        totals.evicting = False
        return False
    to_free = totals.bytes - int(max_bytes * LOW_WATER)
    ids = []
    for number, size in db.execute("SELECT id, size FROM answers WHERE pinned = 0 ORDER BY used, id LIMIT ?", (BATCH,)):
        ids.append(number)
        to_free -= size
        if to_free <= 0:
            break
    db.execute("BEGIN IMMEDIATE")
    delete(db, totals, ids)
    db.execute("COMMIT")
    totals.evicted += len(ids)
    db.execute("PRAGMA incremental_vacuum").fetchall()
    totals.evicting = bool(ids) and to_free > 0
    return totals.evicting


# -- reading ---------------------------------------------------------------------------------------------------

_FOUND = (
    "SELECT b.cid, b.data, l.cid, l.data, a.public, a.foreign_ FROM answers a JOIN blocks b ON b.id = a.block"
    " LEFT JOIN blocks l ON l.id = a.linked "
)


def newest(db: sqlite3.Connection, digest: bytes) -> Found | None:
    row = db.execute(_FOUND + "WHERE a.request = ? ORDER BY a.created DESC LIMIT 1", (digest,)).fetchone()
    return _found(row)


def by_cid(db: sqlite3.Connection, cid: bytes) -> Found | None:
    row = db.execute(_FOUND + "WHERE b.cid = ?", (cid,)).fetchone()
    return _found(row)


def _found(row: tuple[bytes, bytes, bytes | None, bytes | None, int, int] | None) -> Found | None:
    if row is None:
        return None
    cid, data, linked_cid, linked, public, foreign = row
    return Found(cid, data, linked_cid, linked, bool(public), bool(foreign))


def cids_of(db: sqlite3.Connection, name: bytes) -> list[bytes]:
    query = "SELECT b.cid FROM answers a JOIN blocks b ON b.id = a.block WHERE "
    rows = db.execute(query + "b.cid = ?", (name,)).fetchall()
    return [row[0] for row in rows or db.execute(query + "a.request = ?", (name[-32:],)).fetchall()]


_IS_PUBLIC = (
    " AND EXISTS (SELECT 1 FROM answers WHERE public = 1 AND block = blocks.id"
    " UNION ALL SELECT 1 FROM answers WHERE public = 1 AND linked = blocks.id)"
)

_DERIVED = "SELECT data, blocks.cid, kind FROM derived JOIN blocks ON blocks.id = derived.block WHERE derived.cid = ?"


def block(db: sqlite3.Connection, cid: bytes, *, public_only: bool) -> tuple[bytes, Derived | None] | None:
    """A stored block; or the one that the block with this CID is derived from, with how. None when there is neither."""
    stored, derived = "SELECT data FROM blocks WHERE cid = ?", _DERIVED
    if public_only:
        stored += _IS_PUBLIC
        derived += _IS_PUBLIC
    row = db.execute(stored, (cid,)).fetchone()
    if row is not None:
        return row[0], None
    row = db.execute(derived, (cid,)).fetchone()
    return None if row is None else (row[0], Derived(cid, row[1], row[2]))


def known(db: sqlite3.Connection, cids: Sequence[bytes]) -> set[bytes]:
    """Which of these records are here."""
    query = "SELECT 1 FROM answers JOIN blocks ON blocks.id = answers.block WHERE cid = ?"
    return {cid for cid in cids if db.execute(query, (cid,)).fetchone()}


def public_among(db: sqlite3.Connection, requests: Sequence[bytes]) -> set[bytes]:
    """Which of these requests, as digests, have an answer that peers may have."""
    query = "SELECT 1 FROM answers WHERE public AND request = ?"
    return {request for request in requests if db.execute(query, (request,)).fetchone()}


def models(db: sqlite3.Connection) -> list[str]:
    """The models whose answers are here."""
    return [row[0] for row in db.execute("SELECT DISTINCT model FROM answers WHERE model IS NOT NULL ORDER BY model")]


def newest_public(db: sqlite3.Connection, limit: int, own: bool) -> list[tuple[bytes, bytes]]:
    """(request digest, record's CID) of answers that peers may have, the last stored first. own: only ours."""
    query = (
        "SELECT a.request, b.cid FROM answers a JOIN blocks b ON b.id = a.block"
        " WHERE public AND NOT (? AND foreign_) ORDER BY a.id DESC LIMIT ?"
    )
    return [(row[0], row[1]) for row in db.execute(query, (own, limit))]


def page(db: sqlite3.Connection, after: int, since_ms: int, model: str | None, limit: int = 200) -> list[Row]:
    rows = db.execute(
        "SELECT a.id, b.cid, request, model, provider, node, created, stored, used, size, pinned, public, foreign_"
        " FROM answers a JOIN blocks b ON b.id = a.block"
        " WHERE a.id > ? AND created >= ? AND (?3 IS NULL OR model = ?3) ORDER BY a.id LIMIT ?4",
        (after, since_ms, model, limit),
    )
    return [Row(*row[:10], *(bool(flag) for flag in row[10:])) for row in rows]


# -- whom it is for --------------------------------------------------------------------------------------------


def settle_audience(db: sqlite3.Connection, audience: Sequence[str], everybody: str) -> int:
    """Note whom public answers are for from now on. Those that were for another private swarm only are public no more,
    and what of them waits for an IPFS daemon waits no longer; how many there were."""
    row = db.execute("SELECT name FROM audience").fetchone()
    if row is not None and row[0] == audience[0]:
        return 0
    kept = 0
    db.execute("BEGIN IMMEDIATE")
    if row is not None and row[0] not in (everybody, *audience):
        kept = db.execute("UPDATE answers SET public = 0 WHERE public = 1").rowcount
        db.execute("DELETE FROM outbox WHERE op = 'put'")
    db.execute("DELETE FROM audience")
    db.execute("INSERT INTO audience(name) VALUES (?)", (audience[0],))
    db.execute("COMMIT")
    return kept


# -- the outbox ------------------------------------------------------------------------------------------------


def outbox_add(db: sqlite3.Connection, totals: Totals, cid: bytes, op: str, now_ms: int) -> None:
    """The last word on a CID counts: a withdrawal replaces a publication that still waits."""
    db.execute(
        "INSERT INTO outbox(cid, op, added, due) VALUES (?1, ?2, ?3, ?3)"
        " ON CONFLICT(cid) DO UPDATE SET op = ?2, due = ?3, attempts = 0",
        (cid, op, now_ms),
    )
    (totals.outbox,) = db.execute("SELECT count(*) FROM outbox").fetchone()


def outbox_due(db: sqlite3.Connection, now_ms: int, limit: int) -> list[OutboxItem]:
    rows = db.execute("SELECT cid, op, attempts FROM outbox WHERE due <= ? ORDER BY due LIMIT ?", (now_ms, limit))
    return [OutboxItem(*row) for row in rows]


def outbox_next(db: sqlite3.Connection) -> int | None:
    row = db.execute("SELECT min(due) FROM outbox").fetchone()
    return None if row is None else row[0]


def outbox_done(db: sqlite3.Connection, totals: Totals, items: Iterable[OutboxItem]) -> None:
    """Remove what was done, unless another operation on the same CID came meanwhile."""
    db.executemany("DELETE FROM outbox WHERE cid = ? AND op = ?", [(item.cid, item.op) for item in items])
    (totals.outbox,) = db.execute("SELECT count(*) FROM outbox").fetchone()


def outbox_retry(db: sqlite3.Connection, item: OutboxItem, due_ms: int) -> None:
    db.execute(
        "UPDATE outbox SET due = ?, attempts = attempts + 1 WHERE cid = ? AND op = ?", (due_ms, item.cid, item.op)
    )
