"""What a private swarm publishes: members open it, and an outsider can neither read it nor test a guess."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.cache.archive import take_in
from shoal.cache.cid import DAG_CBOR, RAW, cid_of, cid_text
from shoal.cache.key import request_key
from shoal.cache.kubo import KuboPublisher
from shoal.cache.memory import Memory
from shoal.cache.record import SignedRecord, sign
from shoal.cache.sealing import MAX_PADDED_BYTES, Seal, SealError, padded, unseal
from shoal.cache.store import Store
from shoal.cache.tiers import AnswerCache
from shoal.node.membership import Membership

from .answers import ALICE, LONG, ask
from .fake_kubo import FakeKubo
from .test_kubo import figures, until

pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")  # see cache/kubo_rpc.py

KEY, OLD_KEY, NO_KEY = b"k" * 32, b"o" * 32, b"n" * 32


def member(*keys: bytes) -> Membership:
    return Membership(name="reef", key=keys[0], listen=(), chosen=False, old_keys=keys[1:])


@asynccontextmanager
async def a_cache(path: Path | None, *keys: bytes, **options: Any) -> AsyncIterator[AnswerCache]:
    """Alice's cache in the private swarm of the first key; the others are its older ones."""
    of = member(*keys)
    store = None if path is None else Store(path)
    seals = [Seal(key) for key in of.seal_keys]
    if (address := options.pop("kubo", None)) is not None and store is not None:
        options["publisher"] = KuboPublisher(address, store, linger_s=0.0, first_retry_s=0.02, seal=seals[0])
    cache = AnswerCache(
        ALICE.peer_id,
        memory=Memory(8 << 20),
        store=store,
        hmac_key=of.cache_key,
        older_keys=of.old_cache_keys,
        seals=seals,
        **options,
    )
    async with cache.running():
        yield cache


def made(cache: AnswerCache, prompt: str = "q", content: str = "Cold.") -> SignedRecord:
    """An answer as this node makes it."""
    key = cache.key(ask(prompt))
    assert key is not None
    signed = sign(ALICE, key, ask(prompt), provider="p", model="m", content=content, finish="stop", link_text=True)
    cache.remember(signed)
    return signed


# -- the seal itself ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=5000), st.sampled_from([RAW, DAG_CBOR]))
@settings(max_examples=50)
def test_what_is_sealed_is_opened_with_the_same_key_only(block: bytes, codec: int) -> None:
    cid = cid_of(codec, block)
    name, data = Seal(KEY).seal(cid, block)
    assert name == cid_of(RAW, data)
    assert Seal(KEY).open(data) == (cid, block)
    assert Seal(KEY).seal(cid, block) == (name, data)  # any member makes the same block
    with pytest.raises(SealError):
        Seal(NO_KEY).open(data)
    assert unseal([Seal(NO_KEY), Seal(KEY)], data) == (cid, block)
    assert unseal([Seal(NO_KEY)], data) is None


@given(st.data())
@settings(max_examples=50)
def test_a_changed_bit_is_found(data: st.DataObject) -> None:
    sealed = bytearray(Seal(KEY).seal(cid_of(RAW, b"hello"), b"hello")[1])
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        Seal(KEY).open(bytes(sealed))


@given(st.integers(0, 1 << 20))
def test_the_length_says_little(size: int) -> None:
    assert size <= padded(size) <= max(1024, size * 1.12 + 1)
    assert padded(size) <= max(MAX_PADDED_BYTES, size)
    assert padded(padded(size)) == padded(size)


def test_short_answers_look_alike() -> None:
    seal = Seal(KEY)
    assert len({len(seal.seal(cid_of(RAW, bytes(n)), bytes(n))[1]) for n in (0, 5, 300, 1000)}) == 1


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Seal(b"short")


# -- in the cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["Cold.", LONG])
async def test_the_sealed_blocks_of_an_answer_are_found_by_their_cids_and_made_from_what_is_stored(
    tmp_path: Path, content: str
) -> None:
    async with a_cache(tmp_path / "a.db", KEY) as cache:
        signed = made(cache, content=content)
        seal = cache.seals[0]
        wanted = {seal.cid(cid, block): (cid, block) for cid, block in signed.blocks if codec_is_sealed(signed, cid)}
        assert len(wanted) == (1 if content == "Cold." else 2)
        assert cache.store is not None
        for place in ("memory", "disk"):
            for name, plain in wanted.items():
                data = cache.public_block(name)
                assert data is not None, place
                assert cache.unseal(data) == plain
                assert await cache.block(name) == data
            await cache.store.flush()
            cache.memory.clear()
        await cache.forget(signed.cid)
        assert [cache.public_block(name) for name in wanted] == [None] * len(wanted)


def codec_is_sealed(signed: SignedRecord, cid: bytes) -> bool:
    """The text for people is not published in a private swarm."""
    return cid != signed.record.text_cid


async def test_the_daemon_gets_sealed_blocks_and_nothing_that_a_guess_could_be_tested_against(tmp_path: Path) -> None:
    with FakeKubo().listening() as kubo:
        async with a_cache(tmp_path / "a.db", KEY, kubo=kubo.address) as cache:
            signed = [made(cache, "q"), made(cache, "r", LONG)]
            await until(lambda: figures(cache).published == 2)
            everything = b"".join(kubo.blocks.values())
            names = set(kubo.blocks)
    for one in signed:
        content = one.record.content.encode()
        for secret in (content[:40], one.record.sig, one.record.node.encode(), one.record.request, one.cid):
            assert secret not in everything
        # What an outsider could compute from a guess at the question, the answer or the whole record:
        guesses = [request_key(ask("q")).cid, request_key(ask("q"), "sha256").cid, cid_of(RAW, content), one.cid]
        assert not names & {cid_text(cid) for cid in guesses}
        assert all(guess[-32:] not in everything for guess in guesses)
        assert hashlib.sha256(content).digest() not in everything
    assert not any(Seal(NO_KEY).knows(block) for block in kubo.blocks.values())


async def test_a_member_takes_the_answers_out_of_what_the_daemon_holds(tmp_path: Path) -> None:
    with FakeKubo().listening() as kubo:
        async with a_cache(tmp_path / "a.db", KEY, kubo=kubo.address) as cache:
            contents = {made(cache, str(n), LONG if n == 2 else f"answer {n}").record.content for n in range(4)}
            await until(lambda: figures(cache).published == 4)
        held = [(cid_of(RAW, block), block) for block in kubo.blocks.values()]
    async with a_cache(tmp_path / "b.db", KEY) as other:
        counts = await take_in(other, held)
        assert (counts.imported, counts.refused) == (4, {})
        found = [await other.get(key) for n in range(4) if (key := other.key(ask(str(n)))) is not None]
        assert {hit.record.content for hit in found if hit is not None} == contents
    async with a_cache(tmp_path / "c.db", NO_KEY) as outsider:
        assert (await take_in(outsider, held)).imported == 0


async def test_a_node_outside_cannot_make_the_names_of_requests() -> None:
    async with a_cache(None, KEY) as inside, a_cache(None, NO_KEY) as outside:
        names = [cache.key(ask("q")) for cache in (inside, outside)]
        assert names[0] not in (names[1], request_key(ask("q")), request_key(ask("q"), "sha256"))


# -- another key -------------------------------------------------------------------------------------------------


async def test_answers_from_before_the_swarm_was_private_are_still_found_here_and_go_with_the_others(
    tmp_path: Path,
) -> None:
    async with AnswerCache(ALICE.peer_id, memory=Memory(8 << 20), store=Store(tmp_path / "a.db")).running() as cache:
        made(cache, "before")
    async with a_cache(tmp_path / "a.db", KEY) as cache:
        key = cache.key(ask("before"))
        assert key is not None
        assert key != request_key(ask("before"))
        for tier in ("disk", "memory"):
            hit = await cache.get(key)
            assert hit is not None
            assert (hit.tier, hit.record.content) == (tier, "Cold.")
        assert await cache.public_answer(key.cid) is None  # by that name nobody else gets it
        for name in cache.keys(ask("before")):
            await cache.forget(name.cid)
        assert await cache.get(key) is None


async def test_after_a_rotation_the_old_answers_are_still_found_by_whoever_keeps_the_old_key(tmp_path: Path) -> None:
    async with a_cache(tmp_path / "a.db", OLD_KEY) as cache:
        old = made(cache, "before")
        sealed_before = cache.seals[0].cid(old.cid, old.block)
    async with a_cache(tmp_path / "a.db", KEY, OLD_KEY) as cache:
        key = cache.key(ask("before"))
        assert key is not None
        for tier in ("disk", "memory"):
            hit = await cache.get(key)
            assert hit is not None
            assert (hit.tier, hit.record.content) == (tier, "Cold.")
        assert cache.public_block(sealed_before) is not None
        new = made(cache, "after")
        sealed = cache.public_block(cache.seals[0].cid(new.cid, new.block))
        assert sealed is not None
        with pytest.raises(SealError):  # who was left behind with the old key reads nothing new
            Seal(member(OLD_KEY).seal_keys[0]).open(sealed)
        for key in cache.keys(ask("before")):
            await cache.forget(key.cid)
        assert await cache.get(cache.keys(ask("before"))[0]) is None
    async with a_cache(tmp_path / "a.db", KEY) as cache:
        assert await cache.get(cache.keys(ask("before"))[0]) is None


def test_the_keys_are_apart() -> None:
    of = member(KEY, OLD_KEY)
    keys = [of.cache_key, *of.old_cache_keys, *of.seal_keys, of.key]
    assert len(set(keys)) == len(keys)
