"""The memory tier: bounded by bytes, least recently used first out, blocks found by CID."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from shoal.cache.derived import derived_of
from shoal.cache.memory import Entry, Memory

from .answers import answer, ask, key_of

ENTRIES = [Entry.of(answer(ask(str(n)), content="x" * 1000), public=n % 2 == 0) for n in range(8)]
DIGESTS = [key_of(ask(str(n))).digest for n in range(8)]
SIZE = ENTRIES[0].size


def test_an_answer_is_found_by_its_request_and_its_block_by_its_cid() -> None:
    memory = Memory(10 * SIZE)
    memory.put(DIGESTS[0], ENTRIES[0])
    assert memory.get(DIGESTS[0]) is ENTRIES[0]
    assert memory.block(ENTRIES[0].signed.cid) == ENTRIES[0].signed.block
    assert memory.get(DIGESTS[1]) is None
    assert memory.block(ENTRIES[1].signed.cid) is None


def test_a_linked_block_is_found_too_and_leaves_with_its_record() -> None:
    memory = Memory(10 * SIZE)
    signed = answer(link_text=True)
    memory.put(key_of().digest, Entry.of(signed, public=True, derived=derived_of(signed)))
    text_cid = signed.record.text_cid
    assert text_cid is not None
    assert memory.block(text_cid) == b"Cold."
    memory.delete(key_of().digest)
    assert memory.block(text_cid) is None
    assert (memory.bytes, len(memory)) == (0, 0)


def test_the_least_recently_used_leaves_first() -> None:
    memory = Memory(4 * SIZE + 10)
    for n in range(4):
        memory.put(DIGESTS[n], ENTRIES[n])
    memory.get(DIGESTS[0])
    memory.put(DIGESTS[4], ENTRIES[4])
    assert [n for n in range(5) if memory.get(DIGESTS[n])] == [0, 2, 3, 4]
    assert memory.evicted == 1


def test_a_newer_answer_to_the_same_request_takes_the_place_of_the_old() -> None:
    memory = Memory(10 * SIZE)
    old, new = (Entry.of(answer(content=text), public=True) for text in ("Cold.", "Icy."))
    memory.put(key_of().digest, old)
    memory.put(key_of().digest, new)
    assert memory.get(key_of().digest) is new
    assert memory.block(old.signed.cid) is None
    assert memory.bytes == new.size


def test_one_answer_never_empties_the_memory_for_itself() -> None:
    memory = Memory(4 * SIZE)
    memory.put(DIGESTS[0], ENTRIES[0])
    memory.put(key_of().digest, Entry.of(answer(content="x" * 4 * SIZE), public=True))
    assert memory.get(DIGESTS[0]) is ENTRIES[0]
    assert memory.get(key_of().digest) is None


def test_a_private_block_is_not_public() -> None:
    memory = Memory(10 * SIZE)
    memory.put(DIGESTS[1], ENTRIES[1])
    assert memory.block(ENTRIES[1].signed.cid, public_only=True) is None
    assert memory.block(ENTRIES[1].signed.cid) is not None


@given(st.lists(st.tuples(st.sampled_from(["put", "get", "delete"]), st.integers(0, 7)), max_size=60))
def test_the_bound_and_the_books_hold_whatever_happens(steps: list[tuple[str, int]]) -> None:
    memory = Memory(4 * SIZE + 10)
    for do, n in steps:
        if do == "put":
            memory.put(DIGESTS[n], ENTRIES[n])
        elif do == "get":
            memory.get(DIGESTS[n])
        else:
            memory.delete(DIGESTS[n])
        here = [m for m in range(8) if memory.by_cid(ENTRIES[m].signed.cid)]
        assert memory.bytes == sum(ENTRIES[m].size for m in here) <= memory.max_bytes
        assert len(memory) == len(here)
    memory.clear()
    assert (memory.bytes, len(memory)) == (0, 0)
