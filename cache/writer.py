"""The store's one writer: a thread that owns the writing connection and commits what comes in groups.

A job is a function of the connection; jobs of one group share a transaction and an fsync. When a group fails, each of
its jobs is tried alone, so that one bad job takes no other with it. Nothing here knows what an answer is.
"""

from __future__ import annotations

import itertools
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .database import StoreError, is_damage, open_writer, set_aside

log = logging.getLogger("shoal.cache")

GROUP_JOBS = 256
GROUP_WAIT_S = 0.1
"""Seconds. A commit writes each page that it touches once, however many answers went there: with 150 of them an answer
costs half the CPU time that it costs with 30. A kill within the wait costs the answers that nobody has asked to have on
the disk; who asks (`Job.urgent`) does not wait."""
IDLE_S = 5.0  # without a job for this long, `idle` runs
FULL_PAUSE_S = 10.0  # nothing is tried on a full disk for so long

Work = Callable[[sqlite3.Connection], Any]
Done = Callable[[Any, Exception | None], None]
Many = Callable[[sqlite3.Connection, list[Any]], None]


class Job(NamedTuple):
    """work: runs in the transaction. done: called in the writer's thread after the commit, with result or error.

    size: bytes, for the bound on what may wait. urgent: someone waits, so the group is committed at once.
    many, item: instead of `work`: jobs in a row with the same `many` are done by one call of it with their items, and
    have no result: each statement takes Python's lock from whoever answers requests, so a group should need few.
    """

    work: Work | None
    done: Done | None = None
    size: int = 0
    urgent: bool = False
    many: Many | None = None
    item: Any = None


class Writer:
    """The thread and its queue.

    tidy: called in the thread after each group, when idle and before the end (idle is true then, too); says whether
    more is left to do at once.
    opened: called with each fresh connection (the first, and one after a damaged file was set aside).
    """

    def __init__(
        self,
        path: Path,
        *,
        queue_bytes: int,
        opened: Callable[[sqlite3.Connection], None],
        tidy: Callable[[sqlite3.Connection, bool], bool],
    ) -> None:
        self.path, self._queue_bytes, self._opened, self._tidy = path, queue_bytes, opened, tidy
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._hurry = threading.Event()  # no waiting for more jobs: someone waits for one of these
        self._in = 0  # bytes, written by the callers' thread only
        self._out = 0  # bytes, written by the writer's thread only
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._full_until = 0.0
        self.generation = 0  # grows when the file is replaced, so that readers open the new one
        self.dropped = 0
        self.failed = 0
        self.set_aside: list[Path] = []
        self.reason = ""  # why nothing is stored at the moment; empty while all is well

    # -- from the callers' thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the file and start the thread. Blocks for the opening: call it in a thread."""
        self._connection = self._open()
        self._thread = threading.Thread(target=self._run, name="shoal-store", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued and close. Blocks: call it in a thread."""
        self._queue.put(None)
        self._hurry.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def submit(self, job: Job) -> bool:
        """Queue a job. False, and counted, when the disk is full or too much waits already."""
        waiting = self._in - self._out
        if job.size and (waiting + job.size > self._queue_bytes or time.monotonic() < self._full_until):
            self.dropped += 1
            return False
        self._in += job.size
        self._queue.put(job)
        if job.urgent or waiting > self._queue_bytes // 4 or self._queue.qsize() >= GROUP_JOBS:
            self._hurry.set()
        return True

    @property
    def waiting_bytes(self) -> int:
        return self._in - self._out

    # -- in the writer's thread -----------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            return self._open_and_count()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise StoreError(f"cannot open the answer store {self.path.name}: {error}") from error
        self._put_aside()
        try:
            return self._open_and_count()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"cannot make a new answer store {self.path.name}: {error}") from error

    def _open_and_count(self) -> sqlite3.Connection:
        connection = open_writer(self.path)
        try:
            self._opened(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self) -> None:
        target = set_aside(self.path)
        self.set_aside.append(target)
        log.error("the answer store was damaged: set aside as %s, a new one was started", target.name)

    def _run(self) -> None:
        more = False
        while True:
            group, last = self._collect(0.0 if more else IDLE_S)
            if group:
                self._commit(group)
            more = self._housekeeping(idle=last or not group)
            if last:
                break
        if self._connection is not None:
            self._connection.close()  # the last connection's end folds the log into the file

    def _collect(self, wait_s: float) -> tuple[list[Job], bool]:
        """The next group; whether the end was asked for. Waits once for its first job and once for more, and not for
        each: every waking takes Python's lock from whoever answers requests."""
        group: list[Job] = []
        try:
            job = self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
            if job is not None and not job.urgent:
                self._hurry.wait(GROUP_WAIT_S)
            self._hurry.clear()
            while job is not None:
                group.append(job)
                if len(group) >= GROUP_JOBS:
                    if not self._queue.empty():
                        self._hurry.set()  # what is left over has waited with these
                    return group, False
                job = self._queue.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _commit(self, group: list[Job]) -> None:
        results, error = self._transaction(group)
        if error is None:
            self._report(group, results, None)
        elif len(group) == 1 and self._connection is not None:
            self._report(group, [None], error)
        else:
            for job in group:
                results, error = self._transaction([job])
                self._report([job], results or [None], error)
        self._out += sum(job.size for job in group)

    def _transaction(self, group: list[Job]) -> tuple[list[Any], Exception | None]:
        try:
            if self._connection is None:
                self._connection = self._open()
                self.generation += 1
            self._connection.execute("BEGIN IMMEDIATE")
            results = _work(self._connection, group)
            self._connection.execute("COMMIT")
        except Exception as error:  # the thread's boundary: told to whoever waits, counted and logged
            self._after_failure(error)
            return [], error
        if self.reason and any(job.size for job in group):
            self.reason = ""
            log.warning("the answer store works again")
        return results, None

    def _after_failure(self, error: Exception) -> None:
        """Bring the connection back to a known state: rolled back, or closed and made anew by the next transaction."""
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if self._connection is not None:
                self._opened(self._connection)  # counts what is really there
        except sqlite3.Error as second:
            error = second
        if isinstance(error, sqlite3.Error) and is_damage(error):
            if self._connection is not None:
                self._connection.close()
                self._connection = None
                self._put_aside()
        elif isinstance(error, sqlite3.Error | StoreError | OSError):
            if not self.reason:
                log.error("the answer store cannot write, so answers are not stored for now: %s", error)
            self.reason = str(error)
            self._full_until = time.monotonic() + FULL_PAUSE_S

    def _report(self, group: list[Job], results: list[Any], error: Exception | None) -> None:
        if error is not None:
            self.failed += len(group)
            if not isinstance(error, sqlite3.Error):
                log.error("a job of the answer store failed: %s", type(error).__name__)
        for job, result in zip(group, results, strict=True):
            if job.done is not None:
                job.done(result, error)

    def _housekeeping(self, *, idle: bool) -> bool:
        try:
            if self._connection is None:
                self._connection = self._open()
                self.generation += 1
            return self._tidy(self._connection, idle)
        except Exception as error:  # the thread's boundary: whoever waits for it must not wait for ever
            if not isinstance(error, sqlite3.Error | StoreError | OSError):
                log.exception("the answer store's housekeeping failed")
            self._after_failure(error)
            return False


def _work(db: sqlite3.Connection, group: list[Job]) -> list[Any]:
    """Do the jobs in order; their results."""
    results: list[Any] = []
    for many, jobs in itertools.groupby(group, key=lambda job: job.many):
        run = list(jobs)
        if many is not None:
            many(db, [job.item for job in run])
            results += [None] * len(run)
        else:
            results += [job.work(db) if job.work is not None else None for job in run]
    return results
