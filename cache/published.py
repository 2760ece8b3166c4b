"""SQL of what lies at the IPFS daemon: which blocks of which record, and the root that pins them there.

Functions of a connection, like statements.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from msgspec import Struct


class Placed(Struct, frozen=True):
    """A record at the daemon. blocks: CIDs of everything put there for it. tops: those that a root must link, so that
    a recursive pin holds all of them. root: the CID that is pinned."""

    record: bytes
    root: bytes
    tops: tuple[bytes, ...]
    blocks: tuple[bytes, ...]


def place(db: sqlite3.Connection, placed: Sequence[Placed]) -> None:
    """Note what was put and pinned; a record that was there before has the new root from now on."""
    for one in placed:
        db.execute("DELETE FROM published WHERE record = ?", (one.record,))
        db.executemany(
            "INSERT INTO published(record, cid, root, top) VALUES (?, ?, ?, ?)",
            [(one.record, cid, one.root, cid in one.tops) for cid in dict.fromkeys((*one.tops, *one.blocks))],
        )


def remove(db: sqlite3.Connection, record: bytes) -> None:
    db.execute("DELETE FROM published WHERE record = ?", (record,))


def under_root_of(db: sqlite3.Connection, record: bytes) -> list[Placed]:
    """The record, when it is at the daemon, and all that share its root, the record itself first."""
    rows = db.execute(
        "SELECT record, cid, root, top FROM published"
        " WHERE root = (SELECT root FROM published WHERE record = ?1 LIMIT 1) ORDER BY record != ?1, record",
        (record,),
    ).fetchall()
    found: dict[bytes, tuple[bytes, list[bytes], list[bytes]]] = {}
    for name, cid, root, top in rows:
        _, tops, blocks = found.setdefault(name, (root, [], []))
        blocks.append(cid)
        if top:
            tops.append(cid)
    return [Placed(name, root, tuple(tops), tuple(blocks)) for name, (root, tops, blocks) in found.items()]


def needed_elsewhere(db: sqlite3.Connection, record: bytes, cids: Sequence[bytes]) -> set[bytes]:
    """Which of these blocks are at the daemon for another record, too (two answers with the same text)."""
    query = "SELECT 1 FROM published WHERE cid = ? AND record != ? LIMIT 1"
    return {cid for cid in cids if db.execute(query, (cid, record)).fetchone()}


def count(db: sqlite3.Connection) -> int:
    (number,) = db.execute("SELECT count(DISTINCT record) FROM published").fetchone()
    return int(number)
