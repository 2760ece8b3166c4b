"""Publishing to an IPFS daemon over its RPC, through ipfshttpclient, beside the requests and never in their way.

What is to be published waits in the store's outbox, so a daemon that is down, slow or restarted loses nothing, nor does
a restart of ours. One worker thread at a time talks to the daemon, every call under a timeout, and the CID that the
daemon answers must be ours. A record's linked block goes first, then the record, then a pin.

    publisher = KuboPublisher("/ip4/127.0.0.1/tcp/5001", store)

ipfshttpclient 0.7.0: `connect()` refuses every Kubo since 0.8 (VersionMismatch), so `Client` is made directly; its
session is not thread-safe, so each batch has its own; `block.put` without options makes a CIDv0 of dag-pb.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import trio
from msgspec import Struct

from .cid import DAG_CBOR, CidError, cid_text, codec_of, parse_cid
from .store import OutboxItem, Store, StoreError

log = logging.getLogger("shoal.cache")

BATCH = 32
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 600.0
LAST_AWAY_S = 60.0  # an absent daemon is asked at least so often: a refused connection costs next to nothing
MAX_ATTEMPTS = 20  # of one block that the daemon itself refuses; a daemon that is away is waited for without end
IDLE_CHECK_S = 60.0

_CODECS = {True: "dag-cbor", False: "raw"}
# How daemons want to be told the codec: Kubo of today; js-ipfs and Kubo of some years ago; go-ipfs before that.
# Which one works shows in the CID that comes back, so it is tried, not read out of a version.
_DIALECTS: tuple[dict[str, dict[str, str]], ...] = (
    {"dag-cbor": {"cid-codec": "dag-cbor"}, "raw": {"cid-codec": "raw"}},
    {"dag-cbor": {"format": "dag-cbor", "version": "1"}, "raw": {"format": "raw", "version": "1"}},
    {"dag-cbor": {"format": "cbor"}, "raw": {"format": "raw"}},
)

State = Literal["idle", "publishing", "waiting"]


class DaemonAway(Exception):  # noqa: N818 - it is a state, and passes
    """The daemon did not answer; the text says how that showed."""


class DaemonRefused(Exception):  # noqa: N818
    """The daemon answered, and would not take this block, or named it otherwise."""


class PublisherStats(Struct, frozen=True):
    """state: "waiting" is for a daemon that is away. refused: blocks given up. queued: what waits on disk."""

    state: State
    address: str
    published: int
    withdrawn: int
    refused: int
    queued: int
    attempts_failed: int
    last_error: str


class _Work(Struct, frozen=True):
    item: OutboxItem
    blocks: list[tuple[bytes, bytes]]


class KuboPublisher:
    """See the module. address: the RPC as a multiaddr or an http URL. timeout_s: for each call to the daemon.

    first_retry_s: the wait after a first failure,
    which doubles with each further one. ValueError for an address of another form.
    """

    def __init__(
        self,
        address: str,
        store: Store,
        *,
        timeout_s: float = 10.0,
        pin: bool = True,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self.address = api_multiaddr(address)
        self._store, self._timeout_s, self._pin, self._first_retry_s = store, timeout_s, pin, first_retry_s
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._dialect = 0
        self._state: State = "idle"
        self._last_error = ""
        self._published = self._withdrawn = self._refused = self._failed = 0

    def publish(self, cid: bytes) -> bool:
        """Queue a stored record. False when too much waits already."""
        return self._queue(cid, "put")

    def withdraw(self, cid: bytes) -> bool:
        """Queue the removal of a record's pin; the daemon drops the block at its next garbage collection."""
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
            published=self._published,
            withdrawn=self._withdrawn,
            refused=self._refused,
            queued=self._store.stats().outbox,
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

    async def _round(self) -> bool:
        """Do one batch of what is due; whether there was any."""
        items = await self._store.outbox_due(BATCH)
        if not items:
            return False
        work = [_Work(item, await self._blocks_of(item.cid) if item.op == "put" else []) for item in items]
        gone = [w.item for w in work if w.item.op == "put" and not w.blocks]  # evicted or forgotten since
        if gone:
            await self._store.outbox_done(gone)
        work = [w for w in work if w.item not in gone]
        if not work:
            return True
        self._state = "publishing"
        # Abandoned when cancelled: the thread touches nothing of ours and ends with its own timeouts.
        results = await trio.to_thread.run_sync(self._talk, work, abandon_on_cancel=True, limiter=self._limiter)
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
        return True

    async def _refusal(self, item: OutboxItem, error: DaemonRefused) -> None:
        self._failed += 1
        self._last_error = str(error)
        if item.attempts + 1 >= MAX_ATTEMPTS:
            self._refused += 1
            log.warning("the IPFS daemon keeps refusing a block, given up: %s", error)
            await self._store.outbox_done([item])
        else:
            await self._store.outbox_retry(item, self._retry_s(item.attempts))

    async def _blocks_of(self, cid: bytes) -> list[tuple[bytes, bytes]]:
        found = await self._store.find(cid)
        if found is None:
            return []
        linked = [] if found.extra is None or found.extra_cid is None else [(found.extra_cid, found.extra)]
        return [*linked, (found.cid, found.block)]

    def _retry_s(self, attempts: int) -> float:
        """Seconds before try number `attempts` + 2: 5, 10, 20, ... up to ten minutes."""
        return float(min(LAST_RETRY_S, self._first_retry_s * 2 ** min(attempts, 10)))

    # -- in the worker thread ---------------------------------------------------------------------------------------

    def _talk(self, work: Sequence[_Work]) -> list[tuple[OutboxItem, DaemonAway | DaemonRefused | None]]:
        """Hand one batch to the daemon; stops at the first sign that it is away."""
        import ipfshttpclient  # slow to import (it brings requests), and only who publishes needs it

        # urllib3 2 says at every call that it ignores a key which 0.7.0 passes.
        warnings.filterwarnings("ignore", "The 'strict' parameter is no longer needed", FutureWarning)
        results: list[tuple[OutboxItem, DaemonAway | DaemonRefused | None]] = []
        client = ipfshttpclient.Client(self.address, timeout=self._timeout_s)
        # The daemon is where its address says, whatever proxy the environment names (0.7.0 offers no setting).
        client._client._session_props["trust_env"] = False
        with client:
            for one in work:
                try:
                    if one.item.op == "put":
                        self._put(client, one)
                    else:
                        self._unpin(client, one.item.cid)
                except DaemonAway as error:
                    results.append((one.item, error))
                    break
                except DaemonRefused as error:
                    results.append((one.item, error))
                else:
                    results.append((one.item, None))
        return results

    def _put(self, client: Any, work: _Work) -> None:
        for cid, data in work.blocks:
            self._put_block(client, cid, data)
        if self._pin:
            # Recursive is safe: a record links only the blocks that went before it (its request is not a link).
            _call(client.pin.add, cid_text(work.item.cid))

    def _put_block(self, client: Any, cid: bytes, data: bytes) -> None:
        codec = _CODECS[codec_of(cid) == DAG_CBOR]
        said: list[str] = []
        for turn in range(len(_DIALECTS)):
            dialect = (self._dialect + turn) % len(_DIALECTS)
            opts = {**_DIALECTS[dialect][codec], "mhtype": "sha2-256"}
            try:
                answer = _call(client.block.put, io.BytesIO(data), opts=opts)
                got = parse_cid(str(answer["Key"]))
            except DaemonRefused as error:
                said.append(str(error))
                continue
            except (CidError, KeyError):
                said.append("it named the block otherwise")
                continue
            if got == cid:
                self._dialect = dialect
                return
            said.append("it named the block otherwise")
        raise DaemonRefused(f"no way of putting a {codec} block worked: {'; '.join(dict.fromkeys(said))}")

    def _unpin(self, client: Any, cid: bytes) -> None:
        with contextlib.suppress(DaemonRefused):  # "not pinned" is what we want
            _call(client.pin.rm, cid_text(cid))


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """One call to the daemon, its many exceptions made into two."""
    import ipfshttpclient.exceptions as faults
    import requests

    try:
        return function(*args, **kwargs)
    except (faults.ErrorResponse, faults.StatusError, faults.DecodingError) as error:
        raise DaemonRefused(_short(error)) from error
    # Timeouts while reading leak from 0.7.0 as requests' own ConnectionError.
    except (faults.CommunicationError, requests.RequestException, OSError) as error:
        raise DaemonAway(_short(error)) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def api_multiaddr(address: str) -> str:
    """A daemon's RPC address as a multiaddr, from one or from "http://127.0.0.1:5001". ValueError for anything else."""
    if re.fullmatch(r"/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d{1,5}(/https?)?|/unix/.+", address):
        return address
    match = re.fullmatch(r"(https?)://(\[[0-9a-fA-F:]+\]|[^/:@\[\]]+):(\d{1,5})/?", address)
    if match is None:
        raise ValueError(
            f"{address!r} is not the address of an IPFS daemon's RPC: "
            'write it as "/ip4/127.0.0.1/tcp/5001" or "http://127.0.0.1:5001"'
        )
    scheme, host, port = match.groups()
    if host.startswith("["):
        kind, host = "ip6", host[1:-1]
    else:
        kind = "ip4" if re.fullmatch(r"\d+\.\d+\.\d+\.\d+", host) else "dns"
    return f"/{kind}/{host}/tcp/{port}/{scheme}"
