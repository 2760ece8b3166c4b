"""The answer cache as the router sees it: memory over disk, with the rules of age and trust.

What lies beyond this machine (peers, a DHT) is asked by the router; whatever comes from there enters through
`remember_foreign` or `remember_streamed`, which verify it first, refuse what does not hold and count why.

    key = cache.key(request)
    hit = cache.peek(key) or await cache.get(key)
    ...
    cache.remember(sign(identity, key, request, provider=..., model=..., content=..., finish="stop"))
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any, Literal

import msgspec
import trio
from msgspec import Struct

from ..protocols.peer_id import PeerId
from ..providers.base import Event, GenerateRequest
from ..providers.embedding import vectors_of
from .canonical import CanonicalError, why_not_cacheable
from .derived import Derived, derived_of
from .key import Key, check_mode, request_key
from .kubo import KuboPublisher
from .memory import Entry, Memory
from .record import Record, RecordRefused, SignedRecord, decode, events, rebuild, verify
from .schema import read
from .sealing import Seal, SealError, unseal
from .store import Store, StoreError

Tier = Literal["memory", "disk", "swarm", "dht", "ipfs"]
Trust = Literal["any", "swarm"] | Collection[str]

EXPIRY_INTERVAL_S = 3600.0


class Hit(Struct, frozen=True, gc=False):
    """A remembered answer and the tier that gave it. cid_text: the response CID as people write it."""

    signed: SignedRecord
    tier: Tier
    cid_text: str

    @property
    def record(self) -> Record:
        return self.signed.record

    @property
    def cid(self) -> bytes:
        return self.signed.cid

    @property
    def events(self) -> list[Event]:
        """The answer as a provider would have said it."""
        return events(self.signed.record)


class Forgotten(Struct, frozen=True):
    """What `forget` did. records: removed from memory and disk. withdrawn: queued to be taken from the IPFS daemon.
    shared: of the records those that other nodes could have fetched; what they have cannot be taken back. announced:
    announcements in a DHT that end, in the swarm's at once where its nodes can be reached."""

    records: int
    withdrawn: int
    shared: int = 0
    announced: int = 0


class AnswerCache:
    """Answers by request, and blocks by CID. For the trio thread.

    own: this node, whose answers need no trust. mode: "cid" or "sha256". trust: whose answers are used: "any",
    "swarm" (those of whom `is_member` says so), or peer ids. ttl_s: answers older than this are not used, and removed.
    hmac_key: a private swarm's, which keys the request's name; older_keys: its earlier ones, whose answers stay good.
    seals: a private swarm's, the current one first: what it publishes is sealed, what it gets is opened with any.
    publish: peers may have the answers made here. publisher: hands public answers to an IPFS daemon; auto_publish:
    without being asked for each. on_public: told the CIDs of everything that peers may have from now on.
    on_answer: told the request of every answer that they may have; on_ipfs: the CID of each that may go to public IPFS;
    on_forgotten: requests and records that are here no more, it says how many were announced. All three set later.
    ValueError for an unknown mode or trust rule.
    """

    def __init__(
        self,
        own: PeerId,
        *,
        memory: Memory,
        store: Store | None = None,
        mode: str = "cid",
        trust: Trust = "any",
        is_member: Callable[[PeerId], bool] | None = None,
        ttl_s: float | None = None,
        hmac_key: bytes | None = None,
        older_keys: Sequence[bytes] = (),
        seals: Sequence[Seal] = (),
        publish: bool = True,
        publisher: KuboPublisher | None = None,
        auto_publish: bool = True,
        on_public: Callable[[Sequence[bytes]], None] | None = None,
    ) -> None:
        if isinstance(trust, str) and trust not in ("any", "swarm"):
            raise ValueError(f'unknown trust rule {trust!r}: use "any", "swarm" or a list of peer ids')
        self.own, self.memory, self.store, self.publisher = own, memory, store, publisher
        self.mode = check_mode(mode)
        self.is_member = is_member
        self.publish = publish
        self._trust: Literal["any", "swarm"] | frozenset[str]
        if isinstance(trust, str):
            self._trust = "any" if trust == "any" else "swarm"
        else:
            self._trust = frozenset(trust)
        self._ttl_s, self._hmac_key, self._older_keys = ttl_s, hmac_key, tuple(older_keys)
        self.seals = memory.seals = tuple(seals)
        if store is not None:
            store.seals = self.seals
        self.auto_publish, self.on_public = auto_publish, on_public
        self.on_answer: Callable[[bytes], None] | None = None
        self.on_ipfs: Callable[[bytes], None] | None = None
        self.on_forgotten: Callable[[list[bytes], list[bytes]], int] | None = None
        self._hits: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._misses = 0
        self._stored = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[AnswerCache]:
        """The store, the publisher and the removal of old answers live inside. StoreError when the store can't open."""
        async with contextlib.AsyncExitStack() as stack:
            if self.store is not None:
                await stack.enter_async_context(self.store.running())
            if self.publisher is not None:
                await stack.enter_async_context(self.publisher.running())
            if self._ttl_s is None or self.store is None:
                yield self
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire, self.store, self._ttl_s)
                yield self
                nursery.cancel_scope.cancel()

    # -- looking up ------------------------------------------------------------------------------------------------

    def key(self, request: GenerateRequest) -> Key | None:
        """The request's name; None when its answer must not be cached, or it has no canonical form."""
        if why_not_cacheable(request) is not None:
            return None
        try:
            return request_key(request, self.mode, self._hmac_key, self._older_keys)
        except CanonicalError:
            return None

    def keys(self, request: GenerateRequest) -> list[Key]:
        """Every name that the request has or had here, cacheable or not; [] when it has no canonical form."""
        try:
            key = request_key(request, self.mode, self._hmac_key, self._older_keys)
        except CanonicalError:
            return []
        return [key, *key.older]

    def peek(self, key: Key, max_age: float | None = None) -> Hit | None:
        """The answer, when it is in memory: no waiting, for the hot path. max_age: seconds. A miss is not counted."""
        for name in (key, *key.older):
            entry = self.memory.get(name.digest)
            if entry is not None and self._usable(entry.signed.record, max_age):
                self._hits["memory"] += 1
                if self.store is not None:
                    self.store.touch(name.digest)
                return Hit(entry.signed, "memory", entry.cid_text)
        return None

    async def get(self, key: Key, max_age: float | None = None) -> Hit | None:
        """The answer from memory or disk. max_age: seconds since it was made."""
        if (hit := self.peek(key, max_age)) is not None:
            return hit
        if (store := self.store) is not None:
            for name in (key, *key.older):
                if not store.may_hold(name.digest):
                    continue
                if (entry := await self._from_disk(store, name.digest, max_age)) is not None:
                    self._hits["disk"] += 1
                    store.touch(name.digest)
                    return Hit(entry.signed, "disk", entry.cid_text)
        self._misses += 1
        return None

    async def _from_disk(self, store: Store, digest: bytes, max_age: float | None) -> Entry | None:
        found = await store.get(digest)
        if found is None:
            return None
        try:
            record = decode(found.block, found.extra)
        except RecordRefused as refused:  # the hash was right, so another version of Shoal wrote it
            self._refused[refused.reason] += 1
            return None
        if not self._usable(record, max_age):
            return None
        signed = SignedRecord(record, found.block, found.cid, found.extra)
        derived = self._derived(signed, found.public)
        entry = Entry.of(signed, public=found.public, foreign=found.foreign, derived=derived)
        self.memory.put(digest, entry)
        return entry

    def _derived(self, signed: SignedRecord, public: bool) -> tuple[Derived, ...]:
        return derived_of(signed, self.seals[0] if self.seals and public else None)

    def _usable(self, record: Record, max_age: float | None) -> bool:
        limit = self._ttl_s if max_age is None else max_age if self._ttl_s is None else min(max_age, self._ttl_s)
        return (limit is None or record.age_s() <= limit) and self.trusts(record.node)

    def trusts(self, node: PeerId) -> bool:
        """Whether the trust rule covers the answers of a node, at this moment."""
        if node == self.own or self._trust == "any":
            return True
        if self._trust == "swarm":
            return self.is_member is not None and self.is_member(node)
        return node in self._trust

    # -- remembering -----------------------------------------------------------------------------------------------

    def remember(self, signed: SignedRecord, *, public: bool | None = None, ipfs: bool | None = None) -> Hit:
        """Take an answer of this node: into memory at once, onto the disk soon, to the IPFS daemon when there is one.

        public: whether others may have it; None is the node's rule. ipfs: whether it goes to the daemon, too; None is
        the rule of the node's owner. What is not public never does.
        """
        return self._take(signed, self.publish if public is None else public, "memory", ipfs)

    def linked_content(self, block: bytes) -> bytes | None:
        """The CID of the raw block that a record from outside needs before it can be taken; None when it needs none."""
        try:
            return read(block)[1].content_cid
        except RecordRefused:
            return None  # `remember_foreign` refuses it, and counts why

    def remember_foreign(
        self,
        block: bytes,
        key: Key,
        *,
        extra: bytes | None = None,
        tier: Tier = "swarm",
        request: GenerateRequest | None = None,
    ) -> Hit:
        """Verify a record from outside, and take it. extra: the raw block it links, if it links one.

        request: also refuse another model's answer when it pins one, and what is no vectors when it asks for those.
        RecordRefused, and counted under its reason, when it does not hold.
        """
        try:
            record = verify(block, None, key.cid, extra=extra, max_age_s=self._ttl_s, trusted=self.trusts)
            _check_answer(record, request)
        except RecordRefused as refused:
            self._refused[refused.reason] += 1
            raise
        linked = extra if record.content_cid else None
        return self._take(SignedRecord.of(record, block, linked), self.publish, tier)

    def remember_streamed(
        self,
        meta: bytes,
        content: str,
        key: Key,
        *,
        request: GenerateRequest | None = None,
        public: bool | None = None,
    ) -> Hit:
        """Take an answer that a peer streamed: its record without the content, and the text that was relayed.

        public: whether others may have it from here; None is the node's rule.
        RecordRefused, and counted, unless they make exactly the block that the peer signed for this request.
        """
        try:
            signed = rebuild(meta, content, None, key.cid, max_age_s=self._ttl_s, trusted=self.trusts)
            _check_answer(signed.record, request)
        except RecordRefused as refused:
            self._refused[refused.reason] += 1
            raise
        return self._take(signed, self.publish if public is None else public, "swarm")

    def _take(self, signed: SignedRecord, public: bool, tier: Tier, ipfs: bool | None = None) -> Hit:
        record = signed.record
        foreign = record.node != self.own
        derived = self._derived(signed, public)
        entry = Entry.of(signed, public=public, foreign=foreign, derived=derived)
        self.memory.put(record.request[-32:], entry)
        self._stored += 1
        stored = self.store is not None and self.store.put(signed, public=public, foreign=foreign, derived=derived)
        if public:
            # Another's answer is that node's to publish.
            if not foreign and (self.auto_publish if ipfs is None else ipfs):
                if stored and self.publisher is not None:
                    self.publisher.publish(signed.cid)
                if self.on_ipfs is not None:
                    self.on_ipfs(signed.cid)
            if self.on_public is not None:
                self.on_public(entry.cids)
            if self.on_answer is not None:
                self.on_answer(record.request)
        if tier != "memory":
            self._hits[tier] += 1
        return Hit(signed, tier, entry.cid_text)

    def take_in(self, signed: SignedRecord, *, public: bool | None = None) -> None:
        """Store an answer that came in a file and was verified, whoever signed it. `Store.flush` waits for the disk."""
        public = self.publish if public is None else public
        if self.store is None:
            return
        derived = self._derived(signed, public)
        self.store.put(signed, public=public, foreign=signed.record.node != self.own, derived=derived)
        if public and self.on_public is not None:
            self.on_public([signed.cid, *(one.cid for one in derived)])
        if public and self.on_answer is not None:
            self.on_answer(signed.record.request)

    # -- blocks ----------------------------------------------------------------------------------------------------

    async def block(self, cid: bytes) -> bytes | None:
        """Any block kept here, public or not, by its binary CID."""
        data = self.memory.block(cid)
        if data is None and self.store is not None:
            data = await self.store.block(cid)
        return data

    def public_block(self, cid: bytes) -> bytes | None:
        """A block that anyone may have: the block source of bitswap (see Store.public_block for what it costs)."""
        data = self.memory.block(cid, public_only=True)
        if data is None and self.store is not None:
            data = self.store.public_block(cid)
        return data

    def unseal(self, data: bytes) -> tuple[bytes, bytes] | None:
        """(CID, block) that was sealed into a block of this private swarm; None when it is no such block."""
        with contextlib.suppress(SealError):
            return unseal(self.seals, data)
        return None

    async def public_answer(self, request: bytes) -> SignedRecord | None:
        """The answer to a peer's look-up by request CID (36 bytes) or digest (32 bytes), when it may have it."""
        digest = request[-32:]
        if len(digest) < 32:
            return None  # a peer may ask for anything
        entry = self.memory.get(digest)
        if entry is None and self.store is not None:
            entry = await self._from_disk(self.store, digest, None)
        if entry is None or not entry.public or not self._usable(entry.signed.record, None):
            return None
        return entry.signed

    async def forget(self, name: bytes) -> Forgotten:
        """Remove a record by its CID, or all answers to a request by its CID or digest, from memory and disk.

        A copy at the configured IPFS daemon is taken from there when the daemon can be reached. What other nodes have
        fetched already cannot be taken back. StoreError when the disk would not do it.
        """
        entry = self.memory.by_cid(name)
        if entry is not None and name not in (entry.signed.cid, entry.signed.record.request):
            name = entry.signed.cid  # the CID of its text, or of a sealed block
        digest = name[-32:] if entry is None else entry.signed.record.request[-32:]
        held = entry or self.memory.get(digest)
        self.memory.delete(digest)
        requests, records = [digest], [name]
        if held is not None:
            records.append(held.signed.cid)
        if self.store is None:
            announced = self._forgotten(requests, records)
            return Forgotten(int(held is not None), 0, int(held is not None and held.public), announced)
        await self.store.settle()  # an answer of a moment ago may still be on its way to the disk
        removed = withdrawn = shared = 0
        for cid in await self.store.cids_of(name):
            found = await self.store.find(cid)
            records.append(cid)
            if found is not None:
                with contextlib.suppress(RecordRefused):
                    requests.append(decode(found.block, found.extra).request[-32:])
            if await self.store.delete(cid):
                removed += 1
                shared += found is not None and found.public
            if self.publisher is not None:
                withdrawn += self.publisher.withdraw(cid)
        return Forgotten(removed, withdrawn, shared, self._forgotten(requests, records))

    def _forgotten(self, requests: list[bytes], records: list[bytes]) -> int:
        """What was announced of these is announced no more; how many announcements there were."""
        if self.on_forgotten is None:
            return 0
        return self.on_forgotten(list(dict.fromkeys(requests)), list(dict.fromkeys(records)))

    async def newest(self, limit: int) -> list[bytes]:
        """The requests, as digests, whose answers peers may have, the newest first."""
        return [request for request, _ in await self.store.newest_public(limit)] if self.store is not None else []

    async def still_public(self, requests: Sequence[bytes]) -> set[bytes]:
        """Which of these requests, as digests, have an answer here that peers may have: what was evicted has not."""
        here = {request for request in requests if (held := self.memory.get(request)) is not None and held.public}
        rest = [request for request in requests if request not in here]
        return here | (await self.store.public_among(rest) if self.store is not None and rest else set())

    async def still_kept(self, records: Sequence[bytes]) -> set[bytes]:
        """Which of these records, by CID, are on disk."""
        return await self.store.known(records) if self.store is not None else set()

    async def newest_published(self, limit: int) -> list[bytes]:
        """The CIDs of this node's records that go to public IPFS without being asked for each, the newest first."""
        if self.store is None or not self.auto_publish:
            return []
        return [cid for _, cid in await self.store.newest_public(limit, own=True)]

    async def pin(self, name: bytes, pinned: bool = True) -> int:
        """Keep a record, or all answers to a request, whatever the size bound says, or no longer; how many there are.

        StoreError when the disk would not do it.
        """
        if self.store is None:
            return 0
        await self.store.settle()
        return sum([await self.store.pin(cid, pinned) for cid in await self.store.cids_of(name)])

    async def clear(self) -> int:
        """Remove every answer that is not pinned; how many were on disk. StoreError when the disk would not do it."""
        self.memory.clear()
        return 0 if self.store is None else await self.store.expire(1 << 62)

    # -- figures ---------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counts since the start, by tier and by reason of refusal, and what there is now. JSON-compatible."""
        memory = self.memory
        return {
            "mode": self.mode,
            "sealed": bool(self.seals),
            "hits": {tier: self._hits[tier] for tier in ("memory", "disk", "swarm", "dht", "ipfs")},
            "misses": self._misses,
            "remembered": self._stored,
            "refused": dict(self._refused),
            "memory": {
                "answers": len(memory),
                "bytes": memory.bytes,
                "max_bytes": memory.max_bytes,
                "evicted": memory.evicted,
            },
            "disk": None if self.store is None else msgspec.to_builtins(self.store.stats()),
            "publisher": None if self.publisher is None else msgspec.to_builtins(self.publisher.stats()),
        }

    async def _expire(self, store: Store, ttl_s: float) -> None:
        while True:
            with contextlib.suppress(StoreError):  # the store counts and logs its own failures
                await store.expire(int((time.time() - ttl_s) * 1000))
            await trio.sleep(EXPIRY_INTERVAL_S)


def _check_answer(record: Record, request: GenerateRequest | None) -> None:
    """What the request itself says of a record that answers it: the model, and vectors where those were asked for."""
    if request is None:
        return
    if request.model is not None and record.model != request.model:
        raise RecordRefused("model", "the record is another model's answer than the one that the request pins")
    if request.embed is not None:
        try:
            vectors_of(record.content, len(request.embed.inputs))
        except ValueError as error:
            raise RecordRefused("content", f"embeddings were asked for: {error}") from None
