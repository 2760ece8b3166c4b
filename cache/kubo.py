"""Publishing to an IPFS daemon over its RPC, beside the requests and never in their way.

What is to be published waits in the store's outbox, so a daemon that is down, slow or restarted loses nothing, nor does
a restart of ours. One worker thread at a time talks to the daemon (kubo_rpc.py), every call under a timeout. Answers go
in batches: their blocks first, then a root that links them, which is pinned and announced: one pin and one announcement
for a batch (batch.py). The store notes which root holds what, so that one answer can be taken out again.

    publisher = KuboPublisher("/ip4/127.0.0.1/tcp/5001", store)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Literal

import trio
from msgspec import Struct

from .batch import batch
from .kubo_rpc import Daemon, DaemonAway, DaemonRefused, Dialects, api_multiaddr
from .published import Placed
from .record import RecordRefused, SignedRecord, decode
from .sealing import Seal
from .store import OutboxItem, Store, StoreError

__all__ = ["DaemonAway", "DaemonRefused", "KuboPublisher", "PublisherStats", "api_multiaddr"]

log = logging.getLogger("shoal.cache")

BATCH = 64
LINGER_S = 2.0  # a batch waits so long for more answers to share its root
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 600.0
LAST_AWAY_S = 60.0  # an absent daemon is asked at least so often: a refused connection costs next to nothing
MAX_ATTEMPTS = 20  # of one block that the daemon itself refuses; a daemon that is away is waited for without end
IDLE_CHECK_S = 60.0

State = Literal["idle", "publishing", "waiting"]
Failure = DaemonAway | DaemonRefused


class PublisherStats(Struct, frozen=True):
    """state: "waiting" is for a daemon that is away. refused: blocks given up. queued: what waits on disk. roots:
    batches pinned; provided: of them announced at once."""

    state: State
    address: str
    sealed: bool
    published: int
    withdrawn: int
    refused: int
    queued: int
    roots: int
    provided: int
    attempts_failed: int
    last_error: str


class _Work(Struct, frozen=True):
    """One answer to be put there. tops: the CIDs that a root must link to hold all of `blocks`."""

    item: OutboxItem
    blocks: list[tuple[bytes, bytes]]
    tops: list[bytes]


class _Done(Struct):
    """What came of a batch: each item with its error, and what lies at the daemon now."""

    results: list[tuple[OutboxItem, Failure | None]] = []
    placed: list[Placed] = []
    provided: bool = False


class KuboPublisher:
    """See the module. address: the RPC as a multiaddr or an http URL. timeout_s: for each call to the daemon.

    seal: publish sealed blocks only (a private swarm's). linger_s: how long a batch waits for more answers.
    first_retry_s: the wait after a first failure, which doubles with each further one. ValueError for an address of
    another form.
    """

    def __init__(
        self,
        address: str,
        store: Store,
        *,
        timeout_s: float = 10.0,
        pin: bool = True,
        seal: Seal | None = None,
        linger_s: float = LINGER_S,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self.address = api_multiaddr(address)
        self.seal = seal
        self._store, self._timeout_s, self._pin = store, timeout_s, pin
        self._linger_s, self._first_retry_s = linger_s, first_retry_s
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._dialects = Dialects()
        self._state: State = "idle"
        self._last_error = ""
        self._published = self._withdrawn = self._refused = self._failed = self._roots = self._provided = 0

    def publish(self, cid: bytes) -> bool:
        """Queue a stored record. False when too much waits already."""
        return self._queue(cid, "put")

    def withdraw(self, cid: bytes) -> bool:
        """Queue the removal of a record from the daemon: out of its batch's root, and its blocks deleted."""
        return self._queue(cid, "unpin")

    def _queue(self, cid: bytes, op: str) -> bool:
        taken = self._store.outbox_add(cid, op)
        self._wake.set()
        return taken

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[KuboPublisher]:
        """Publishes while the context lasts. A call on its way when it ends is left to its timeout, in its thread."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            yield self
            nursery.cancel_scope.cancel()

    def stats(self) -> PublisherStats:
        return PublisherStats(
            state=self._state,
            address=self.address,
            sealed=self.seal is not None,
            published=self._published,
            withdrawn=self._withdrawn,
            refused=self._refused,
            queued=self._store.stats().outbox,
            roots=self._roots,
            provided=self._provided,
            attempts_failed=self._failed,
            last_error=self._last_error,
        )

    # -- the loop --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        away_for = 0  # rounds in a row
        while True:
            self._wake = trio.Event()
            try:
                await self._store.settle()  # what was queued before the new event is in the outbox now
                done = await self._round()
                away_for = 0
                if done:
                    continue
                self._state = "idle"
                due_s = await self._store.outbox_next_s()
                pause_s = IDLE_CHECK_S if due_s is None else min(due_s, IDLE_CHECK_S)
            except DaemonAway as error:
                if not away_for:
                    log.warning("the IPFS daemon at %s does not answer, publishing waits: %s", self.address, error)
                self._failed += 1
                self._last_error = str(error)
                self._state = "waiting"
                pause_s = min(self._retry_s(away_for), LAST_AWAY_S)
                away_for += 1
            except StoreError as error:
                self._last_error = str(error)
                self._state, pause_s = "waiting", LAST_RETRY_S
            with trio.move_on_after(pause_s):
                if away_for:
                    await trio.sleep_forever()  # more work is no reason to ask an absent daemon sooner
                await self._wake.wait()
                await trio.sleep(self._linger_s)

    async def _round(self) -> bool:
        """Do one batch of what is due; whether there was any."""
        items = await self._store.outbox_due(BATCH)
        if not items:
            return False
        work: list[_Work] = []
        for item in items:
            if item.op != "put":
                continue
            one = await self._work_of(item)
            if one is None or await self._store.under_root_of(item.cid):
                await self._store.outbox_done([item])  # evicted or forgotten since, or there already
            else:
                work.append(one)
        if work:
            self._state = "publishing"
            # Abandoned when cancelled: the thread touches nothing of ours and ends with its own timeouts.
            done = await trio.to_thread.run_sync(self._put, work, abandon_on_cancel=True, limiter=self._limiter)
            if done.placed:
                await self._store.placed(done.placed)
                self._roots += 1
                self._provided += done.provided
            await self._settle(done.results)
        for item in items:
            if item.op != "put":
                await self._withdraw(item)
        return True

    async def _withdraw(self, item: OutboxItem) -> None:
        """One at a time, since each may change the root that the next one is under."""
        placed = await self._store.under_root_of(item.cid)
        cids = placed[0].blocks if placed else ()
        spare = await self._store.needed_elsewhere(item.cid, cids)
        result, moved = await trio.to_thread.run_sync(
            self._take_out, item, placed, spare, abandon_on_cancel=True, limiter=self._limiter
        )
        if result is None:
            await self._store.placed(moved, gone=[item.cid])
        await self._settle([(item, result)])

    async def _settle(self, results: Sequence[tuple[OutboxItem, Failure | None]]) -> None:
        away: DaemonAway | None = None
        for item, error in results:
            if error is None:
                await self._store.outbox_done([item])
                if item.op == "put":
                    self._published += 1
                else:
                    self._withdrawn += 1
                self._last_error = ""
            elif isinstance(error, DaemonAway):
                away = error
                # Behind the others: it may be this very block that the daemon takes too long for.
                await self._store.outbox_retry(item, self._retry_s(item.attempts))
            else:
                await self._refusal(item, error)
        if away is not None:
            raise away

    async def _refusal(self, item: OutboxItem, error: DaemonRefused) -> None:
        self._failed += 1
        self._last_error = str(error)
        if item.attempts + 1 >= MAX_ATTEMPTS:
            self._refused += 1
            log.warning("the IPFS daemon keeps refusing a block, given up: %s", error)
            await self._store.outbox_done([item])
        else:
            await self._store.outbox_retry(item, self._retry_s(item.attempts))

    async def _work_of(self, item: OutboxItem) -> _Work | None:
        found = await self._store.find(item.cid)
        if found is None:
            return None
        try:
            signed = SignedRecord(decode(found.block, found.extra), found.block, found.cid, found.extra)
        except RecordRefused:
            return None
        if self.seal is None:
            return _Work(item, signed.blocks, [signed.cid])  # it links whatever else there is
        blocks = [(signed.cid, signed.block)]
        if signed.extra is not None and signed.extra_cid is not None:
            blocks.insert(0, (signed.extra_cid, signed.extra))
        blocks = [self.seal.seal(cid, block) for cid, block in blocks]
        return _Work(item, blocks, [cid for cid, _ in blocks])

    def _retry_s(self, attempts: int) -> float:
        """Seconds before try number `attempts` + 2: 5, 10, 20, ... up to ten minutes."""
        return float(min(LAST_RETRY_S, self._first_retry_s * 2 ** min(attempts, 10)))

    # -- in the worker thread ---------------------------------------------------------------------------------------

    def _daemon(self) -> Daemon:
        return Daemon(self.address, timeout_s=self._timeout_s, dialects=self._dialects)

    def _put(self, work: Sequence[_Work]) -> _Done:
        """Hand one batch to the daemon; stops at the first sign that it is away."""
        done, there, away = _Done(), list[_Work](), False
        with self._daemon() as daemon:
            for one in work:
                try:
                    for cid, data in one.blocks:
                        daemon.put(cid, data)
                except DaemonRefused as error:
                    done.results.append((one.item, error))
                except DaemonAway as error:
                    done.results.append((one.item, error))
                    away = True
                    break
                else:
                    there.append(one)
            if not there or away:
                # Without its pin nothing is published: what was put is put again, which costs little.
                return done
            try:
                tops = list(dict.fromkeys(cid for one in there for cid in one.tops))
                root = self._hold(daemon, tops) if self._pin else tops[0]
            except (DaemonAway, DaemonRefused) as error:
                done.results += [(one.item, error) for one in there]
                return done
            done.results += [(one.item, None) for one in there]
            if self._pin:
                done.placed += [
                    Placed(one.item.cid, root, tuple(one.tops), tuple(cid for cid, _ in one.blocks)) for one in there
                ]
                done.provided = daemon.provide(root)
        return done

    def _hold(self, daemon: Daemon, tops: Sequence[bytes]) -> bytes:
        """Pin these blocks with all that they link, under one root; the root's CID."""
        if len(tops) == 1:
            daemon.pin(tops[0])
            return tops[0]
        blocks = batch(tops)
        for cid, block in blocks:
            daemon.put(cid, block)
        root = blocks[-1][0]
        # Recursive is safe: a record links only the blocks that went before it (its request is not a link).
        daemon.pin(root)
        return root

    def _take_out(
        self, item: OutboxItem, placed: Sequence[Placed], spare: set[bytes]
    ) -> tuple[Failure | None, list[Placed]]:
        """Take a record out of its root: the others get a new one. spare: blocks that other answers need."""
        try:
            with self._daemon() as daemon:
                if not placed:
                    daemon.unpin(item.cid)
                    return None, []
                own, others = placed[0], placed[1:]
                tops = [cid for one in others for cid in one.tops]
                root = self._hold(daemon, list(dict.fromkeys(tops))) if others else None
                if root != own.root:
                    daemon.unpin(own.root)
                for cid in dict.fromkeys((own.root, *own.blocks)):
                    if cid not in spare and cid != root:
                        daemon.remove(cid)
                return None, [Placed(one.record, root or b"", one.tops, one.blocks) for one in others]
        except (DaemonAway, DaemonRefused) as error:
            return error, []
