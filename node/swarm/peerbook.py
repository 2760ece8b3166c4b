"""Peers remembered over restarts: who they were, where, in which swarm, and when they were last good.

One SQLite file with one thread at a time in it; the trio loop only waits. A damaged file is set aside, because a node
without its memory of peers is better than one that does not start.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio
from msgspec import Struct

from ...protocols.peer_id import PeerId

log = logging.getLogger("shoal.swarm")

MAX_PEERS = 1000  # of all swarms; the ones longest not good go first
MAX_ADDRESSES = 16

_SCHEMA = """
create table if not exists peers (
    peer text not null, swarm text not null, addresses text not null, last_good real not null,
    primary key (peer, swarm)
) strict, without rowid
"""

T = TypeVar("T")


class Remembered(Struct, frozen=True):
    """last_good: Unix time in seconds of the last moment with a working session."""

    peer: PeerId
    addresses: tuple[str, ...]
    last_good: float


class PeerBook:
    """`path`: the file; made when it is not there."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._database: sqlite3.Connection | None = None
        self._one_at_a_time = trio.CapacityLimiter(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PeerBook]:
        self._database = await self._in_thread(self._open)
        try:
            yield self
        finally:
            database, self._database = self._database, None
            with trio.CancelScope(shield=True):
                await self._in_thread(database.close)

    async def remember(self, peer: PeerId, addresses: Sequence[str], swarm: str) -> None:
        """The peer works at these addresses, now."""
        await self._in_thread(self._remember, peer, list(addresses[:MAX_ADDRESSES]), swarm)

    async def known(self, swarm: str) -> list[Remembered]:
        """The peers of a swarm, the one last good first."""
        return await self._in_thread(self._known, swarm)

    async def forget(self, peer: PeerId, swarm: str) -> None:
        await self._in_thread(self._execute, "delete from peers where peer = ? and swarm = ?", (peer, swarm))

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._one_at_a_time)

    # -- in the thread -----------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._clock())}")
            self._path.rename(aside)
            log.warning("the book of peers is damaged; it was set aside as %s and a new one begun", aside.name)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            # A peer forgotten in a power cut is met again: no fsync for each.
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = normal")
            database.execute(_SCHEMA)
            database.execute("select count(*) from peers")
        except BaseException:
            database.close()
            raise
        return database

    def _execute(self, sql: str, values: tuple[object, ...]) -> list[tuple[str, str, float]]:
        if self._database is None:
            raise RuntimeError("the book of peers is closed: enter `async with book.running()` first")
        return self._database.execute(sql, values).fetchall()

    def _remember(self, peer: PeerId, addresses: list[str], swarm: str) -> None:
        self._execute(
            "insert into peers values (?, ?, ?, ?) on conflict do update set "
            "addresses = excluded.addresses, last_good = excluded.last_good",
            (peer, swarm, json.dumps(addresses), self._clock()),
        )
        self._execute(
            "delete from peers where (peer, swarm) in "
            "(select peer, swarm from peers order by last_good desc limit -1 offset ?)",
            (MAX_PEERS,),
        )

    def _known(self, swarm: str) -> list[Remembered]:
        rows = self._execute(
            "select peer, addresses, last_good from peers where swarm = ? order by last_good desc", (swarm,)
        )
        return [
            Remembered(PeerId(peer), tuple(json.loads(addresses)), last_good) for peer, addresses, last_good in rows
        ]
