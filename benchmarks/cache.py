"""What the cache costs: CPU of a key, a signature, a verification, a hit; rates of the store; hits through the RPC.

    python -m benchmarks cache

Method: an answer of 2 KiB to a conversation of four messages. CPU is user + system time of this process, threads and
all (so the writer's share of a put is in it), the least of several rounds, since other work on the machine only adds.
Ratios are to one sha2-256 of 64 KiB, which says how fast the machine is; quote those, times differ between machines.
The store is on the disk under the temporary directory, every group of its commits with an fsync.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import cbrrr
import trio
from shoal.cache.archive import export, plan_export, take_in
from shoal.cache.canonical import canonical_bytes
from shoal.cache.cid import DAG_CBOR, cid_of, cid_text
from shoal.cache.derived import derived_of
from shoal.cache.key import Key, request_key
from shoal.cache.memory import Memory
from shoal.cache.record import SignedRecord, decode, rebuild, sign, verify
from shoal.cache.sealing import Seal
from shoal.cache.store import Store
from shoal.cache.tiers import AnswerCache
from shoal.protocols.peer_id import Identity
from shoal.providers.base import GenerateRequest, Message, Usage

from . import cache_hits
from .table import show

ROUNDS = 5
CONTENT = "The opposite of hot is cold, and between them lies what is warm. " * 32
IDENTITY = Identity.from_seed(b"benchmark".ljust(32, b"."))


def chat(n: int = 0) -> GenerateRequest:
    return GenerateRequest(
        messages=(
            Message("system", "You are a helpful assistant. Answer briefly."),
            Message("user", f"What is the opposite of hot? ({n}) " + "Please explain. " * 20),
            Message("assistant", "Cold. " * 20),
            Message("user", "And the opposite of that?"),
        ),
        model="smollm2",
        max_tokens=200,
        temperature=0.0,
    )


def signed(n: int = 0) -> tuple[Key, SignedRecord]:
    request = chat(n)
    key = request_key(request)
    return key, sign(
        IDENTITY,
        key,
        request,
        provider="local_hf",
        model="smollm2",
        content=CONTENT,
        finish="stop",
        usage=Usage(180, 420),
        link_text=True,
    )


def cpu_us(function: Callable[[], Any], times: int) -> float:
    """Microseconds of CPU for one call: the least of ROUNDS."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(times):
            function()
        best = min(best, (time.process_time() - start) / times)
    return best * 1e6


async def cpu_us_async(function: Callable[[], Awaitable[Any]], times: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(times):
            await function()
        best = min(best, (time.process_time() - start) / times)
    return best * 1e6


def pure() -> list[tuple[str, float]]:
    """The parts that touch neither disk nor event loop."""
    request, (key, answer) = chat(), signed()
    record, meta = answer.record, answer.record.without_content()
    form = cbrrr.decode_dag_cbor(answer.block)
    seal = Seal(b"k" * 32)
    _, sealed = seal.seal(answer.cid, answer.block)
    return [
        ("canonical form", cpu_us(lambda: canonical_bytes(request), 5000)),
        ("canonical form and request CID", cpu_us(lambda: request_key(request), 5000)),
        ("  the same, written in base32", cpu_us(lambda: request_key(request).text, 5000)),
        ("  the same, keyed", cpu_us(lambda: request_key(request, "cid", b"k" * 32), 5000)),
        ("response CID of a block", cpu_us(lambda: cid_of(DAG_CBOR, answer.block), 5000)),
        ("  written in base32", cpu_us(lambda: cid_text(answer.cid), 5000)),
        ("dag-cbor of a record", cpu_us(lambda: cbrrr.encode_dag_cbor(form), 5000)),
        (
            "sign a record",
            cpu_us(
                lambda: sign(
                    IDENTITY,
                    key,
                    request,
                    provider=record.provider,
                    model=record.model,
                    content=record.content,
                    finish=record.finish,
                    usage=record.usage,
                ),
                1000,
            ),
        ),
        ("  of it Ed25519", cpu_us(lambda: IDENTITY.sign(answer.block), 1000)),
        ("verify a record, every check", cpu_us(lambda: verify(answer.block, answer.cid, key.cid), 1000)),
        ("rebuild and verify a streamed one", cpu_us(lambda: rebuild(meta, record.content, None, key.cid), 1000)),
        ("read one of our own from its block", cpu_us(lambda: decode(answer.block), 5000)),
        ("seal a block", cpu_us(lambda: seal.seal(answer.cid, answer.block), 3000)),
        ("open a sealed block", cpu_us(lambda: seal.open(sealed), 3000)),
    ]


async def tiers(path: Path) -> list[tuple[str, float]]:
    key, answer = signed()
    store = Store(path)
    cache = AnswerCache(IDENTITY.peer_id, memory=Memory(64 << 20), store=store)

    async def from_disk() -> None:
        cache.memory.clear()
        assert await cache.get(key) is not None

    async with cache.running():
        cache.remember(answer)
        await store.flush()
        memory = cpu_us(lambda: cache.peek(key), 20_000)
        whole = cpu_us(lambda: cache.peek(cache.key(chat()) or key), 5000)
        disk = await cpu_us_async(from_disk, 500)
        assert store.public_block(answer.cid) is not None
        block = cpu_us(lambda: store.public_block(answer.cid), 5000)
    return [
        ("hit in memory, key at hand", memory),
        ("hit in memory, from the request", whole),
        ("hit on disk, in a thread", disk),
        ("public block for bitswap, from disk", block),
    ]


def batches(count: int) -> Iterator[list[tuple[Key, SignedRecord]]]:
    """Answers made beforehand, so that only the store is measured, and few at a time, so that they fit in memory."""
    for first in range(0, count, 5000):
        yield [signed(n) for n in range(first, min(first + 5000, count))]


async def rates(directory: Path, count: int) -> list[tuple[str, str, str, str]]:
    """Records a second, CPU a record and bytes a record for the store."""
    rows = []

    def row(what: str, number: int, wall: float, cpu: float, note: str = "") -> None:
        rows.append((what, f"{number / wall:,.0f}", f"{cpu / number * 1e6:.0f}", note))

    path, raw, wall, cpu = directory / "rates.db", 0, 0.0, 0.0
    digests: list[bytes] = []
    some: list[SignedRecord] = []
    async with Store(path, max_bytes=1 << 40, queue_bytes=1 << 30).running() as store:
        for batch in batches(count):
            raw += sum(len(answer.block) for _, answer in batch)
            digests += [key.digest for key, _ in batch]
            some = [answer for _, answer in batch]
            start = time.perf_counter(), time.process_time()
            for _, answer in batch:
                store.put(answer, public=True, derived=derived_of(answer))
            await store.flush()
            wall, cpu = wall + time.perf_counter() - start[0], cpu + time.process_time() - start[1]
        row("put, queued at once", count, wall, cpu)

        looked_up = random.Random(7).sample(digests, min(count, 10_000))
        wall, cpu = time.perf_counter(), time.process_time()
        for digest in looked_up:
            assert await store.get(digest) is not None
        row("get at random, one by one", len(looked_up), time.perf_counter() - wall, time.process_time() - cpu)

        wall, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for part in range(8):

                async def some_of(part: int = part) -> None:
                    for digest in looked_up[part::8]:
                        assert await store.get(digest) is not None

                nursery.start_soon(some_of)
        row("get at random, 8 at once", len(looked_up), time.perf_counter() - wall, time.process_time() - cpu)

        wall, cpu = time.perf_counter(), time.process_time()
        plan = await plan_export(store)
        size = 0
        with (directory / "all.car").open("wb") as file:
            async for piece in export(store, plan):
                size += file.write(piece)
        note = f"{size / count:,.0f} B a record"
        row("export as CAR", count, time.perf_counter() - wall, time.process_time() - cpu, note)
    size = await trio.to_thread.run_sync(os.path.getsize, path)
    rows.append(("file", "", "", f"{size / count:,.0f} B a record, {size / raw:.2f} of its blocks"))

    other = AnswerCache(IDENTITY.peer_id, memory=Memory(1 << 20), store=Store(directory / "in.db"))
    async with other.running() as cache:
        blocks = [block for answer in some for block in answer.blocks]
        wall, cpu = time.perf_counter(), time.process_time()
        counts = await take_in(cache, blocks)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        row("import from CAR, verified", counts.imported, wall, cpu)

    async with Store(directory / "one.db").running() as store:
        wall, cpu = time.perf_counter(), time.process_time()
        for answer in some[:100]:
            store.put(answer, public=True)
            await store.flush()
        row("put, each flushed before the next", 100, time.perf_counter() - wall, time.process_time() - cpu)

    wall = cpu = 0.0
    async with Store(directory / "evict.db", max_bytes=raw // 2, queue_bytes=1 << 30).running() as store:
        for batch in batches(count):
            start = time.perf_counter(), time.process_time()
            for _, answer in batch:
                store.put(answer, public=True, derived=derived_of(answer))
            await store.flush()
            wall, cpu = wall + time.perf_counter() - start[0], cpu + time.process_time() - start[1]
        row("put into half the room it takes", count, wall, cpu, f"{store.stats().evicted:,} evicted")
    return rows


def beside_others() -> list[tuple[str, str, str]]:
    """CIDs and dag-cbor by us and by the libraries that are installed, in one run. (what, a second, times ours)."""
    data, (_, answer) = os.urandom(1024), signed()
    # Without links, and with a `request` that is no CID: libipld would make a link of one.
    plain = {**cbrrr.decode_dag_cbor(answer.block), "request": b"r" * 36}
    del plain["text"]
    block = bytes(cbrrr.encode_dag_cbor(plain))
    rows: list[tuple[str, float, float]] = []

    def add(what: str, function: Callable[[], Any], times: int, ours: float | None = None) -> float:
        rate = 1e6 / cpu_us(function, times)
        rows.append((what, rate, rate / (ours or rate)))
        return rate

    from multiformats import CID, multihash

    cid = add("CID as text of 1 KiB: Shoal", lambda: cid_text(cid_of(DAG_CBOR, data)), 5000)
    add(
        "  multiformats",
        lambda: str(CID("base32", 1, "dag-cbor", multihash.digest(data, "sha2-256"))),
        300,
        cid,
    )
    libipld, dag_cbor = (_library(name) for name in ("libipld", "dag_cbor"))
    if libipld is not None:
        digest = hashlib.sha256
        add("  libipld", lambda: libipld.encode_cid(b"\x01\x71\x12\x20" + digest(data).digest()), 5000, cid)
    made = add("dag-cbor, encode a record: Shoal (cbrrr)", lambda: cbrrr.encode_dag_cbor(plain), 5000)
    if libipld is not None:
        add("  libipld", lambda: libipld.encode_dag_cbor(plain), 5000, made)
    if dag_cbor is not None:
        add("  dag-cbor", lambda: dag_cbor.encode(plain), 200, made)
    read = add("dag-cbor, decode a record: Shoal (cbrrr)", lambda: cbrrr.decode_dag_cbor(block), 5000)
    if libipld is not None:
        add("  libipld", lambda: libipld.decode_dag_cbor(block), 5000, read)
    if dag_cbor is not None:
        add("  dag-cbor", lambda: dag_cbor.decode(block), 200, read)
    if libipld is None or dag_cbor is None:
        print("for the other libraries in the table: pip install libipld dag-cbor")
    return [(what, f"{rate:,.0f}", f"{ratio:.3f}") for what, rate, ratio in rows]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


async def _measure(count: int) -> None:
    data = os.urandom(65536)
    yardstick = cpu_us(lambda: hashlib.sha256(data).digest(), 500)
    with tempfile.TemporaryDirectory() as directory:
        timed = pure() + await tiers(Path(directory) / "tiers.db")
        rows = await rates(Path(directory), count)
    show(
        f"The cache, CPU a call (sha2-256 of 64 KiB here: {yardstick:.0f} us)",
        ("what", "us", "ratio", "a second on one core"),
        [(what, f"{us:.1f}", f"{us / yardstick:.3f}", f"{1e6 / us:,.0f}") for what, us in timed],
    )
    show(f"The store, {count:,} records of 2 KiB", ("what", "a second", "CPU us each", ""), rows)


def main(count: int = 100_000) -> None:
    trio.run(_measure, count)
    show("Beside other libraries, on one core", ("what", "a second", "times ours"), beside_others())
    cache_hits.main()


if __name__ == "__main__":
    main()
