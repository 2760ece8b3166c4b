"""The store's SQLite file: its tables, their migrations, how it is opened, and what happens to a damaged one.

Synchronous; store.py and writer.py call it in threads of theirs. The settings come from measurements of this very use
(2 KiB blocks): WAL, synchronous FULL, many answers a transaction. `WITHOUT ROWID` made the file three times larger.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

APPLICATION_ID = 0x53484F4C  # "SHOL", in the file's header

# Index n takes a file of version n to n + 1. What has been released is never changed: add a step.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE blocks (id INTEGER PRIMARY KEY, cid BLOB NOT NULL UNIQUE, data BLOB NOT NULL)",
        """CREATE TABLE answers (
            id INTEGER PRIMARY KEY,
            request BLOB NOT NULL,      -- digest of the canonical request
            block INTEGER NOT NULL UNIQUE REFERENCES blocks(id),
            linked INTEGER REFERENCES blocks(id),
            model TEXT, provider TEXT NOT NULL, node TEXT NOT NULL,
            created INTEGER NOT NULL,   -- ms, by its node's clock
            stored INTEGER NOT NULL,    -- ms, by ours
            used INTEGER NOT NULL,      -- ms, the last hit
            size INTEGER NOT NULL,      -- bytes, with an allowance for the rows
            pinned INTEGER NOT NULL DEFAULT 0,
            public INTEGER NOT NULL,
            foreign_ INTEGER NOT NULL
        )""",
        "CREATE INDEX answers_request ON answers(request, created)",
        "CREATE INDEX answers_used ON answers(pinned, used)",
        "CREATE INDEX answers_linked ON answers(linked) WHERE linked IS NOT NULL",
    ),
    (
        # What waits for an IPFS daemon. op: "put" or "unpin". due: ms, not tried before.
        """CREATE TABLE outbox (
            cid BLOB PRIMARY KEY, op TEXT NOT NULL, added INTEGER NOT NULL, due INTEGER NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX outbox_due ON outbox(due)",
    ),
    (
        # Blocks that are made from a stored one when they are asked for (derived.py). Rows are small, so no rowid here.
        """CREATE TABLE derived (
            cid BLOB NOT NULL, block INTEGER NOT NULL REFERENCES blocks(id), kind TEXT NOT NULL,
            PRIMARY KEY (cid, block)
        ) WITHOUT ROWID""",
        "CREATE INDEX derived_block ON derived(block)",
        # What lies at an IPFS daemon, under which pinned root (published.py).
        """CREATE TABLE published (
            record BLOB NOT NULL, cid BLOB NOT NULL, root BLOB NOT NULL, top INTEGER NOT NULL,
            PRIMARY KEY (record, cid)
        ) WITHOUT ROWID""",
        "CREATE INDEX published_root ON published(root)",
        "CREATE INDEX published_cid ON published(cid)",
    ),
    # Whom the public answers are for: everybody, or one private swarm (`Store`). One row.
    ("CREATE TABLE audience (name TEXT NOT NULL)",),
)

# An unclean end of a file up to this size is followed by a whole check at the next start (about 0.1 s); damage in a
# larger one is found when it is touched, and every block's hash is checked whenever it is read.
QUICK_CHECK_BYTES = 32 * 1024 * 1024

_DAMAGE = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


class StoreError(Exception):
    """The store cannot do this; the text says what to do about it."""


class Damaged(sqlite3.DatabaseError):
    """The check at the start found the file damaged."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, as against a full disk, a lock or an I/O error that may pass."""
    code = getattr(error, "sqlite_errorcode", None)  # extended codes carry the primary one in the low byte
    return isinstance(error, Damaged) or (code is not None and (code & 0xFF) in _DAMAGE)


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the file for its one writer, made, or brought to the newest version, where needed.

    sqlite3.DatabaseError (see `is_damage`) when it cannot be read; StoreError when a newer Shoal wrote it.
    """
    unclean = _size(_beside(path, "-wal")) > 0
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives the files beside it the same mode
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        # These two take effect in an empty file only. A page of 4 KiB holds one record of 2.4 KB, one of 8 KiB three.
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.execute("PRAGMA temp_store = MEMORY")  # what undoes one statement, or SQLite writes it to a file
        if unclean and _size(path) <= QUICK_CHECK_BYTES:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise Damaged("the check after an unclean end found damage")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path, timeout_s: float = 2.0) -> sqlite3.Connection:
    """A read-only connection. In WAL mode a reader waits for nobody; the timeout is for a checkpoint's last moment."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def set_aside(path: Path) -> Path:
    """Move a damaged file, and the log beside it, out of the way: `answers.db.corrupt-20260131T235959Z`."""
    target = _beside(path, time.strftime(".corrupt-%Y%m%dT%H%M%SZ", time.gmtime()))
    number = 1
    while target.exists():
        number += 1
        target = _beside(path, time.strftime(f".corrupt-%Y%m%dT%H%M%SZ-{number}", time.gmtime()))
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            _beside(path, suffix).rename(_beside(target, suffix))
    return target


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the answer store has version {version}, this Shoal knows {len(MIGRATIONS)}: install a newer Shoal, "
            "or choose another data directory"
        )
    for number in range(version, len(MIGRATIONS)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in MIGRATIONS[number]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
