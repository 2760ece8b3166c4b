"""Answers to and from CAR files: `shoal cache export` and `shoal cache import`, without files and without a screen.

An export has one root, a batch over all its records (batch.py), so that it is one DAG to Kubo, too. Its order is the
store's: the root and its leaves, then each record with what it links before it. What is taken in is
verified like anything else from outside, except for the trust rule, which is asked when an answer is used.

    plan = await plan_export(store, since_ms=0, model=None)
    async for piece in export(store, plan): file.write(piece)
    counts = await take_in(cache, blocks)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence

import trio
from msgspec import Struct

from .batch import batch
from .car import header, section
from .cid import DAG_CBOR, RAW, CidError, codec_of
from .record import RecordRefused, SignedRecord, decode, verify
from .schema import read
from .store import Store, StoreError
from .tiers import AnswerCache

PIECE_BYTES = 64 * 1024
BREATH = 8  # verifications (0.15 ms each) between two turns of the event loop


class Plan(Struct, frozen=True):
    """What an export holds. size: bytes of its blocks, about."""

    records: list[bytes]
    index: list[tuple[bytes, bytes]]
    size: int

    @property
    def root(self) -> bytes:
        return self.index[-1][0]


class Counts(Struct):
    """What came of an import. imported: stored now. known: here before. refused: by reason. other: blocks that are no
    answers, such as the root and texts for people."""

    imported: int = 0
    known: int = 0
    other: int = 0
    refused: dict[str, int] = {}


async def plan_export(store: Store, *, since_ms: int = 0, model: str | None = None) -> Plan:
    """Which answers an export holds: those made since a time (ms since 1970), of one model or of all."""
    await store.settle()
    records, size = list[bytes](), 0
    async for row in store.iterate(since_ms=since_ms, model=model):
        records.append(row.cid)
        size += row.size
    return Plan(records, await trio.to_thread.run_sync(batch, records), size)


async def export(store: Store, plan: Plan) -> AsyncIterator[bytes]:
    """The file in pieces. StoreError when an answer of the plan is not here any more, as its root would lack it."""
    buffer = bytearray(header([plan.root]))
    for cid, block in reversed(plan.index):
        buffer += section(cid, block)
    linked: set[bytes] = set()
    for cid in plan.records:
        found = await store.find(cid)
        if found is None:
            raise StoreError("an answer was removed while it was being exported; start the export again")
        try:
            signed = SignedRecord(decode(found.block, found.extra), found.block, found.cid, found.extra)
        except RecordRefused:
            raise StoreError("an answer of another version of Shoal is here; forget it, then export again") from None
        for name, block in signed.blocks:  # with the text for people, too: whoever pins the root follows every link
            if name not in linked:
                buffer += section(name, block)
        linked.update(name for name, _ in signed.blocks[:-1])
        if len(buffer) >= PIECE_BYTES:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)


async def take_in(cache: AnswerCache, blocks: Iterable[tuple[bytes, bytes]], *, public: bool | None = None) -> Counts:
    """Verify and store the answers among these blocks (binary CID and bytes, the hashes checked by their reader).

    A content that a record links must be among them. Sealed blocks of this private swarm are opened. public: whether
    peers may have them; None is the node's rule. All of it is on disk on return; StoreError when it is not.
    """
    if cache.store is None:
        raise StoreError("this node keeps nothing on disk; an import needs that")
    counts = Counts()
    records, raws = _sorted(cache, blocks, counts)
    known = await cache.store.known([cid for cid, _ in records])
    taken: set[bytes] = set()
    refused: Counter[str] = Counter()
    for number, (cid, block) in enumerate(records):
        if cid in known:
            counts.known += 1
            continue
        if number % BREATH == 0:
            await trio.lowlevel.checkpoint()
        try:
            content_cid = read(block)[1].content_cid
            extra = None if content_cid is None else raws.get(content_cid)
            record = verify(block, cid, extra=extra)
        except RecordRefused as error:
            refused[error.reason] += 1
            continue
        if content_cid is not None:
            taken.add(content_cid)
        cache.take_in(SignedRecord(record, block, cid, extra), public=public)
        counts.imported += 1
    counts.other += len(raws) - len(taken)
    counts.refused = dict(refused)
    await cache.store.flush()
    return counts


def _sorted(
    cache: AnswerCache, blocks: Iterable[tuple[bytes, bytes]], counts: Counts
) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
    """The records, and the raw blocks by CID; what is sealed is opened on the way."""
    records, raws = list[tuple[bytes, bytes]](), dict[bytes, bytes]()
    for cid, block in blocks:
        inner = cache.unseal(block)
        name, data = (cid, block) if inner is None else inner
        try:
            codec = codec_of(name)
        except CidError:
            counts.other += 1
            continue
        if codec == RAW:
            raws[name] = data
        elif _is_answer(data):
            records.append((name, data))
        else:
            counts.other += 1
    return records, raws


def _is_answer(block: bytes) -> bool:
    """Whether a dag-cbor block claims to be a record; a batch's root does not. Whether it is one, `verify` says."""
    return b"csig" in block and b"dnode" in block


def links_of(cid: bytes, block: bytes) -> Sequence[bytes]:
    """The CIDs that a block links, in the order of its bytes; none for a raw one."""
    import cbrrr

    if codec_of(cid) != DAG_CBOR:
        return ()
    found: list[bytes] = []

    def walk(value: object) -> None:
        if isinstance(value, cbrrr.CID):
            found.append(bytes(value.cid_bytes))
        elif isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    try:
        walk(cbrrr.decode_dag_cbor(block))
    except (ValueError, TypeError, RecursionError):
        return ()
    return found
