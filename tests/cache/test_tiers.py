"""The answer cache: memory over disk, age, trust, what is public, what is refused and counted, what is forgotten.

Faults 2 to 6 of the predecessor (an empty answer cached, a mode swapped, a pin swapped, sampled answers kept for ever,
`None` made into a text) are tests here and in test_record.py, test_key.py and test_canonical.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from multiformats import CID
from shoal.cache.memory import Memory
from shoal.cache.record import RecordError, RecordRefused
from shoal.cache.store import Store
from shoal.cache.tiers import AnswerCache
from shoal.protocols.peer_id import Identity
from shoal.providers.base import Finish, GenerateRequest, TextDelta, Usage

from .answers import ALICE, BOB, LONG, answer, ask, key_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.db"


@asynccontextmanager
async def a_cache(path: Path | None = None, **options: Any) -> AsyncIterator[AnswerCache]:
    """Alice's cache; with a path, on disk too."""
    store = None if path is None else Store(path)
    cache = AnswerCache(ALICE.peer_id, memory=Memory(options.pop("memory", 1 << 20)), store=store, **options)
    async with cache.running():
        yield cache


async def on_disk(cache: AnswerCache) -> None:
    """Let what was remembered reach the disk, and leave it there only."""
    assert cache.store is not None
    await cache.store.flush()
    cache.memory.clear()


# -- tiers -------------------------------------------------------------------------------------------------------


async def test_an_answer_is_in_memory_at_once() -> None:
    async with a_cache() as cache:
        key = cache.key(ask())
        assert key is not None
        assert cache.peek(key) is None
        assert await cache.get(key) is None
        cache.remember(answer())
        hit = cache.peek(key)
        assert hit is not None
        assert (hit.tier, hit.record.content, hit.cid_text) == ("memory", "Cold.", CID.decode(hit.cid).encode("base32"))
        assert hit.events == [TextDelta("Cold."), Usage(14, 3, 14), Finish("stop", "smollm2")]
        assert cache.stats()["hits"]["memory"] == 1
        assert cache.stats()["misses"] == 1


async def test_after_a_restart_the_disk_has_it_and_then_the_memory(path: Path) -> None:
    async with a_cache(path) as cache:
        cache.remember(answer())
    async with a_cache(path) as cache:
        tiers = [hit.tier for _ in range(2) if (hit := await cache.get(key_of()))]
        assert tiers == ["disk", "memory"]
        assert cache.peek(key_of()) is not None


async def test_a_long_answer_comes_from_the_disk_whole(path: Path) -> None:
    async with a_cache(path) as cache:
        cache.remember(answer(content=LONG))
        await on_disk(cache)
        hit = await cache.get(key_of())
        assert hit is not None
        assert hit.record.content == LONG


@pytest.mark.parametrize("mode", ["cid", "sha256"])
async def test_both_modes_find_what_they_stored(path: Path, mode: str) -> None:
    async with a_cache(path, mode=mode) as cache:
        key = cache.key(ask())
        assert key is not None
        cache.remember(answer(mode=mode))
        await on_disk(cache)
        hit = await cache.get(key)
        assert hit is not None
        assert hit.record.request == key.reference


def test_a_mode_that_cannot_be_honoured_is_an_error() -> None:
    with pytest.raises(ValueError, match="sha256"):
        AnswerCache(ALICE.peer_id, memory=Memory(1), mode="cidv2")


async def test_what_must_not_be_cached_has_no_key() -> None:
    async with a_cache() as cache:
        assert cache.key(ask(temperature=0.9)) is None
        assert cache.key(ask(extra={"k": 2**70})) is None  # no canonical form: the request goes on without a cache
        assert cache.key(ask(temperature=0.9, seed=1)) is not None


async def test_a_private_swarms_keys_are_its_own() -> None:
    async with a_cache(hmac_key=b"k" * 32) as cache:
        key = cache.key(ask())
        assert key is not None
        assert key != key_of()


# -- age ---------------------------------------------------------------------------------------------------------


def seconds_ago(seconds: float) -> int:
    return int((time.time() - seconds) * 1000)


@pytest.mark.parametrize("disk", [False, True])
async def test_max_age_and_ttl_both_bound_the_age(path: Path, disk: bool) -> None:
    async with a_cache(path, ttl_s=1000) as cache:
        for prompt, age in (("young", 10), ("middle", 500), ("old", 2000)):
            cache.remember(answer(ask(prompt), created_ms=seconds_ago(age)))
        if disk:
            await on_disk(cache)
        keys = {prompt: key_of(ask(prompt)) for prompt in ("young", "middle", "old")}
        assert await cache.get(keys["old"]) is None
        assert await cache.get(keys["middle"], max_age=100) is None
        assert await cache.get(keys["middle"]) is not None
        assert await cache.get(keys["young"], max_age=100) is not None
        assert await cache.get(keys["old"], max_age=10_000) is None


async def test_expired_answers_leave_the_disk(path: Path) -> None:
    async with a_cache(path) as cache:
        cache.remember(answer(created_ms=seconds_ago(2000)))
    async with a_cache(path, ttl_s=1000) as cache:
        assert cache.store is not None
        while cache.store.count():
            await cache.store.settle()


# -- trust -------------------------------------------------------------------------------------------------------


def signed_by_bob(**fields: Any) -> bytes:
    return answer(by=BOB, **fields).block


async def test_a_record_from_a_peer_is_verified_and_taken() -> None:
    async with a_cache() as cache:
        hit = cache.remember_foreign(signed_by_bob(), key_of())
        assert (hit.tier, hit.record.node) == ("swarm", BOB.peer_id)
        assert cache.peek(key_of()) is not None
        assert cache.stats()["hits"]["swarm"] == 1


@pytest.mark.parametrize(
    ("trust", "members", "taken"),
    [
        ("any", [], True),
        ("swarm", [BOB.peer_id], True),
        ("swarm", [], False),
        ([BOB.peer_id], [], True),
        ([ALICE.peer_id], [BOB.peer_id], False),
        ([], [BOB.peer_id], False),
    ],
)
async def test_the_trust_rule_decides_whose_answers_are_used(trust: Any, members: list[str], taken: bool) -> None:
    async with a_cache(trust=trust, is_member=members.__contains__) as cache:
        if taken:
            cache.remember_foreign(signed_by_bob(), key_of())
        else:
            with pytest.raises(RecordRefused, match="trust"):
                cache.remember_foreign(signed_by_bob(), key_of())
            assert cache.stats()["refused"] == {"trust": 1}
        cache.remember(answer(ask("mine")))
        assert cache.peek(key_of(ask("mine"))) is not None  # this node's own answers need no rule


async def test_trust_in_the_swarm_without_a_swarm_trusts_nobody_else() -> None:
    async with a_cache(trust="swarm") as cache:
        assert not cache.trusts(BOB.peer_id)
        assert cache.trusts(ALICE.peer_id)


def test_an_unknown_trust_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="trust rule"):
        AnswerCache(ALICE.peer_id, memory=Memory(1), trust="everyone")  # type: ignore[arg-type]


@pytest.mark.parametrize("disk", [False, True])
async def test_who_lost_our_trust_is_not_believed_from_memory_or_disk_either(path: Path, disk: bool) -> None:
    members = {BOB.peer_id}
    async with a_cache(path, trust="swarm", is_member=members.__contains__) as cache:
        cache.remember_foreign(signed_by_bob(), key_of())
        if disk:
            await on_disk(cache)
        members.clear()
        assert await cache.get(key_of()) is None
        members.add(BOB.peer_id)
        assert await cache.get(key_of()) is not None


async def test_what_does_not_hold_is_refused_counted_and_not_kept(path: Path) -> None:
    good = answer(by=BOB)
    flipped = bytearray(good.block)
    flipped[good.block.index(b"Cold.")] ^= 1
    mallory = Identity.generate()
    foreign_signature = good.block.replace(good.record.sig, mallory.sign(b"something"))
    async with a_cache(path) as cache:
        for block, key, reason in (
            (bytes(flipped), key_of(), "signature"),
            (foreign_signature, key_of(), "signature"),
            (good.block, key_of(ask("another question")), "request"),
            (b"garbage", key_of(), "schema"),
            (signed_by_bob(created_ms=seconds_ago(-3600)), key_of(), "age"),
        ):
            with pytest.raises(RecordRefused) as caught:
                cache.remember_foreign(block, key)
            assert caught.value.reason == reason
        assert cache.stats()["refused"] == {"signature": 2, "request": 1, "schema": 1, "age": 1}
        assert await cache.get(key_of()) is None
        assert cache.store is not None
        await cache.store.flush()
        assert cache.store.count() == 0


async def test_a_record_of_another_model_does_not_answer_a_pinned_request() -> None:
    pinned = ask(model="gpt-4o")
    block = answer(by=BOB).block.replace(key_of().cid, key_of(pinned).cid)
    assert block != answer(by=BOB).block
    honest = answer(pinned, by=BOB, aliases=["smollm2"])  # signed with another model's name, by whatever mistake
    async with a_cache() as cache:
        with pytest.raises(RecordRefused, match="model"):
            cache.remember_foreign(honest.block, key_of(pinned), request=pinned)
        with pytest.raises(RecordRefused, match="signature"):
            cache.remember_foreign(block, key_of(pinned), request=pinned)


async def test_a_streamed_answer_becomes_the_peers_own_record() -> None:
    signed = answer(by=BOB)
    async with a_cache() as cache:
        with pytest.raises(RecordRefused, match="signature"):
            cache.remember_streamed(signed.record.without_content(), "Cold", key_of())
        hit = cache.remember_streamed(signed.record.without_content(), "Cold.", key_of())
        assert hit.cid == signed.cid
        assert hit.signed == signed
        assert cache.stats()["refused"] == {"signature": 1}


async def test_a_foreign_long_answer_brings_its_linked_block(path: Path) -> None:
    signed = answer(by=BOB, content=LONG)
    async with a_cache(path) as cache:
        with pytest.raises(RecordRefused, match="content"):
            cache.remember_foreign(signed.block, key_of())
        cache.remember_foreign(signed.block, key_of(), extra=signed.extra)
        await on_disk(cache)
        hit = await cache.get(key_of())
        assert hit is not None
        assert hit.record.content == LONG


# -- blocks for others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk", [False, True])
async def test_public_answers_are_served_and_private_ones_are_not(path: Path, disk: bool) -> None:
    async with a_cache(path, memory=8 << 20) as cache:
        public, private = answer(ask("p"), content=LONG), answer(ask("s"))
        cache.remember(public)
        cache.remember(private, public=False)
        if disk:
            await on_disk(cache)
        for cid, block in public.blocks:
            assert cache.public_block(cid) == block
        assert cache.public_block(private.cid) is None
        assert await cache.public_answer(public.record.request) == public
        assert await cache.public_answer(private.record.request) is None
        assert await cache.block(private.cid) == private.block
        assert await cache.public_answer(key_of(ask("unknown")).digest) is None
        assert await cache.public_answer(b"\x01\x71") is None, "a peer may ask for anything"


async def test_a_node_that_does_not_publish_serves_nothing(path: Path) -> None:
    async with a_cache(path, publish=False) as cache:
        cache.remember(answer())
        assert cache.public_block(answer().cid) is None
        assert await cache.public_answer(key_of().cid) is None


async def test_requests_are_never_served() -> None:
    async with a_cache() as cache:
        cache.remember(answer())
        assert cache.public_block(key_of().cid) is None


# -- forgetting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["record", "request", "digest"])
async def test_a_forgotten_answer_is_gone_from_both_tiers(path: Path, by: str) -> None:
    signed = answer()
    name = {"record": signed.cid, "request": key_of().cid, "digest": key_of().digest}[by]
    async with a_cache(path) as cache:
        cache.remember(signed)  # not flushed: it may still be on its way to the disk
        cache.remember(answer(ask("kept")))
        assert (await cache.forget(name)).records == 1
        assert cache.peek(key_of()) is None
        assert await cache.get(key_of()) is None
        assert await cache.get(key_of(ask("kept"))) is not None
        assert (await cache.forget(name)).records == 0


async def test_clearing_leaves_pinned_answers(path: Path) -> None:
    async with a_cache(path) as cache:
        kept = answer(ask("kept"))
        cache.remember(kept)
        cache.remember(answer())
        assert cache.store is not None
        await cache.store.flush()
        await cache.store.pin(kept.cid)
        await cache.clear()
        assert await cache.get(key_of()) is None
        assert await cache.get(key_of(ask("kept"))) is not None


# -- the predecessor's faults ------------------------------------------------------------------------------------


async def test_an_empty_answer_never_gets_into_the_cache() -> None:
    for usage in (None, Usage(14, 0)):
        with pytest.raises(RecordError, match="empty"):
            answer(content="", usage=usage)


async def test_two_providers_asked_for_by_name_do_not_share_answers() -> None:
    async with a_cache() as cache:
        keys = {cache.key(ask(provider=name)) for name in ("openrouter", "local_hf", None)}
        assert len(keys) == 3


async def test_a_fallbacks_answer_is_not_remembered_under_the_pinned_name() -> None:
    for pin in ({"model": "gpt-4o"}, {"provider": "openrouter"}):
        with pytest.raises(RecordError, match="pins another"):
            answer(GenerateRequest.of("x", **pin))


async def test_nothing_becomes_the_text_none() -> None:
    record = answer(model=None, usage=None).record
    assert record.model is None
    assert b"None" not in answer(model=None, usage=None).block


async def test_the_figures_are_plain_json(path: Path) -> None:
    async with a_cache(path) as cache:
        cache.remember(answer())
        assert cache.store is not None
        await cache.store.flush()
        figures = json.loads(json.dumps(cache.stats()))
        assert figures["disk"]["answers"] == figures["memory"]["answers"] == 1
        assert figures["remembered"] == 1


# -- what peers are told -----------------------------------------------------------------------------------------


async def test_every_public_block_is_announced_once_it_is_here_and_no_private_one(path: Path) -> None:
    told: list[list[bytes]] = []
    async with a_cache(path, on_public=told.append) as cache:
        cache.remember(answer(ask("private"), content=LONG), public=False)
        assert told == []
        mine, bobs = answer(content=LONG), answer(ask("b"), by=BOB, link_text=True)
        cache.remember(mine)
        cache.remember_foreign(bobs.block, key_of(ask("b")))
        assert [set(cids) for cids in told] == [{cid for cid, _ in signed.blocks} for signed in (mine, bobs)]
        assert all(cache.public_block(cid) is not None for cid in told[1])


async def test_what_a_record_links_is_known_before_it_is_believed() -> None:
    async with a_cache() as cache:
        long = answer(content=LONG, by=BOB)
        assert cache.linked_content(long.block) == long.extra_cid
        assert cache.linked_content(answer(by=BOB).block) is None
        assert cache.linked_content(b"nothing") is None
        with pytest.raises(RecordRefused, match="content"):
            cache.remember_foreign(long.block, key_of())
        assert cache.remember_foreign(long.block, key_of(), extra=long.extra).record.content == LONG


# -- announcing --------------------------------------------------------------------------------------------------------


async def test_what_peers_may_have_is_told_for_announcing_and_nothing_else(path: Path) -> None:
    told: dict[str, list[bytes]] = {"answers": [], "ipfs": []}
    mine, private, bobs, asked = answer(ask("m")), answer(ask("p")), answer(ask("b"), by=BOB), answer(ask("i"))
    async with a_cache(path, auto_publish=False) as cache:
        cache.on_answer, cache.on_ipfs = told["answers"].append, told["ipfs"].append
        cache.remember(mine)
        cache.remember(private, public=False)
        cache.remember_foreign(bobs.block, key_of(ask("b")))
        cache.remember(asked, ipfs=True)
        assert told["answers"] == [mine.record.request, bobs.record.request, asked.record.request]
        assert told["ipfs"] == [asked.cid]
        await on_disk(cache)
        newest = [one.record.request[-32:] for one in (asked, bobs, mine)]
        assert await cache.newest(10) == newest
        assert await cache.newest(2) == newest[:2]
        assert await cache.newest_published(10) == [], "each was to be asked for"
        cache.auto_publish = True
        assert await cache.newest_published(10) == [asked.cid, mine.cid]
        gone = private.record.request[-32:]
        assert await cache.still_public([*newest, gone, bytes(32)]) == set(newest)
        assert await cache.still_kept([mine.cid, bytes(36)]) == {mine.cid}


async def test_what_is_forgotten_is_told_by_request_and_record(path: Path) -> None:
    told: list[tuple[list[bytes], list[bytes]]] = []
    signed = answer()

    def forgotten(requests: list[bytes], records: list[bytes]) -> int:
        told.append((requests, records))
        return 2

    async with a_cache(path) as cache:
        cache.on_forgotten = forgotten
        cache.remember(signed)
        await on_disk(cache)
        done = await cache.forget(signed.cid)
        assert (done.records, done.announced) == (1, 2)
        (requests, records) = told[0]
        assert signed.record.request[-32:] in requests
        assert signed.cid in records
