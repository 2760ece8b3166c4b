"""The disk tier: what is durable, what is bounded, and what happens to a damaged file or a full disk."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from shoal.cache import database, writer
from shoal.cache.cid import RAW, cid_of, holds
from shoal.cache.database import MIGRATIONS
from shoal.cache.statements import size_of
from shoal.cache.store import OPEN, Store, StoreError
from shoal.cache.writer import GROUP_JOBS

from .answers import LONG, answer, ask, key_of

TEN = [answer(ask(str(n)), content=f"{n}: " + "x" * 2000) for n in range(10)]
SIZE = size_of(TEN[0])
DIGESTS = [key_of(ask(str(n))).digest for n in range(10)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.db"


async def present(store: Store) -> list[int]:
    return [n for n in range(10) if await store.get(DIGESTS[n]) is not None]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


async def test_an_answer_is_there_after_a_restart(path: Path) -> None:
    async with Store(path).running() as store:
        assert store.put(TEN[0], public=True)
        await store.flush()
    async with Store(path).running() as store:
        found = await store.get(DIGESTS[0])
        assert found is not None
        assert (found.cid, found.block, found.public) == (TEN[0].cid, TEN[0].block, True)
        assert await store.block(TEN[0].cid) == TEN[0].block
        assert store.count() == 1


async def test_what_is_queued_when_the_store_closes_is_written(path: Path) -> None:
    async with Store(path).running() as store:
        for signed in TEN:
            store.put(signed, public=False)
    async with Store(path).running() as store:
        assert await present(store) == list(range(10))


@pytest.mark.parametrize(("queue_bytes", "count", "enough"), [(32 << 20, GROUP_JOBS + 1, GROUP_JOBS), (8 * SIZE, 6, 4)])
async def test_the_writer_waits_for_more_only_while_there_is_little_to_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, queue_bytes: int, count: int, enough: int
) -> None:
    monkeypatch.setattr(writer, "GROUP_WAIT_S", 60.0)
    answers = [answer(ask(str(n)), content=f"{n}: " + "x" * 2000) for n in range(count)]
    async with Store(path, queue_bytes=queue_bytes).running() as store:
        for signed in answers:
            assert store.put(signed, public=True)
        await until(lambda: store.count() >= enough)


async def test_a_clean_end_leaves_one_file_for_the_owners_eyes_only(path: Path) -> None:
    async with Store(path).running() as store:
        store.put(TEN[0], public=True)
        await store.flush()
        await store.get(DIGESTS[0])
        store.public_block(TEN[0].cid)
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    assert [file.name for file in path.parent.iterdir()] == ["answers.db"]


async def test_a_long_answer_comes_back_with_its_linked_block(path: Path) -> None:
    signed = answer(content=LONG)
    async with Store(path).running() as store:
        store.put(signed, public=True)
        await store.flush()
        found = await store.get(key_of().digest)
        assert found is not None
        assert found.extra == LONG.encode()
        assert await store.block(cid_of(RAW, LONG.encode())) == LONG.encode()


async def test_peers_get_public_blocks_only(path: Path) -> None:
    secret, public = answer(ask("s"), content=LONG), answer(ask("p"), content=LONG + ".")
    async with Store(path).running() as store:
        store.put(secret, public=False)
        store.put(public, public=True)
        await store.flush()
        assert store.public_block(public.cid) == public.block
        assert public.extra_cid is not None
        assert store.public_block(public.extra_cid) == public.extra
        assert secret.extra_cid is not None
        assert store.public_block(secret.cid) is None
        assert store.public_block(secret.extra_cid) is None
        store.put(secret, public=True)  # the owner changed their mind
        await store.flush()
        assert store.public_block(secret.cid) == secret.block


async def test_the_same_record_twice_is_stored_once(path: Path) -> None:
    async with Store(path).running() as store:
        store.put(TEN[0], public=True)
        store.put(TEN[0], public=True)
        await store.flush()
        assert store.count() == 1


async def test_the_newest_answer_to_a_request_is_given(path: Path) -> None:
    old, new = answer(created_ms=1000, content="Cold."), answer(created_ms=2000, content="Icy.")
    async with Store(path).running() as store:
        store.put(new, public=True)
        store.put(old, public=True)
        await store.flush()
        found = await store.get(key_of().digest)
        assert found is not None
        assert found.cid == new.cid
        assert set(await store.cids_of(key_of().cid)) == {old.cid, new.cid}
        assert await store.cids_of(old.cid) == [old.cid]


async def test_the_index_is_read_page_by_page(path: Path) -> None:
    async with Store(path).running() as store:
        for n in range(450):
            store.put(answer(ask(str(n)), created_ms=1000 + n, model="even" if n % 2 == 0 else "odd"), public=True)
        await store.flush()
        assert [row.created async for row in store.iterate()] == list(range(1000, 1450))
        rows = [row async for row in store.iterate(since_ms=1400, model="odd")]
        assert [row.created for row in rows] == list(range(1401, 1450, 2))
        assert rows[0].provider == "local_hf"


# -- bounds ------------------------------------------------------------------------------------------------------


async def test_the_least_recently_used_go_first_and_pins_stay(path: Path) -> None:
    async with Store(path, max_bytes=8 * SIZE + 100).running() as store:
        for signed in TEN[:7]:
            store.put(signed, public=True)
        await store.flush()
        assert await store.pin(TEN[1].cid)
        store.touch(DIGESTS[0])
        for signed in TEN[7:]:
            store.put(signed, public=True)
        await until(lambda: store.stats().evicted > 0)
        left = await present(store)
        assert {0, 1, 7, 8, 9} <= set(left)
        assert 2 not in left
        assert store.size() <= store.max_bytes
        for n in set(range(10)) - set(left):
            assert await store.block(TEN[n].cid) is None


async def test_a_pin_can_be_taken_back(path: Path) -> None:
    async with Store(path).running() as store:
        store.put(TEN[0], public=True)
        assert await store.pin(TEN[0].cid)
        assert not await store.pin(TEN[1].cid)
        assert [row.pinned async for row in store.iterate()] == [True]
        assert await store.unpin(TEN[0].cid)
        assert [row.pinned async for row in store.iterate()] == [False]


async def test_old_answers_expire_and_pinned_ones_do_not(path: Path) -> None:
    async with Store(path).running() as store:
        for n in range(10):
            store.put(answer(ask(str(n)), created_ms=1000 * n), public=True)
        first = [row async for row in store.iterate()] or await store.settle()
        assert first is None or first == []  # nothing is promised before a flush
        await store.pin((await store.cids_of(DIGESTS[0]))[0])
        assert await store.expire(5000) == 4
        assert await present(store) == [0, 5, 6, 7, 8, 9]


async def test_what_waits_for_the_disk_is_bounded(path: Path) -> None:
    async with Store(path, queue_bytes=3 * SIZE + 100).running() as store:
        taken = [store.put(signed, public=True) for signed in TEN]
        assert taken[:3] == [True] * 3
        with pytest.raises(StoreError, match="not stored"):
            await store.flush()
        await store.flush()  # said once
        assert store.stats().dropped == taken.count(False)


# -- deletion ----------------------------------------------------------------------------------------------------


async def test_a_deleted_answer_is_gone_from_the_files_too(path: Path) -> None:
    secret, kept = answer(ask("s"), content="the secret answer " * 300), answer(ask("k"))
    async with Store(path).running() as store:
        store.put(secret, public=True)
        store.put(kept, public=True)
        await store.flush()
        assert await store.delete(secret.cid)
        assert not await store.delete(secret.cid)
        assert await store.block(secret.cid) is None
        await store.settle()
        for file in path.parent.iterdir():
            assert b"the secret answer" not in file.read_bytes(), file.name
        assert store.count() == 1


async def test_a_shared_linked_block_stays_until_its_last_record_goes(path: Path) -> None:
    one, other = answer(ask("1"), content=LONG), answer(ask("2"), content=LONG)
    link = cid_of(RAW, LONG.encode())
    async with Store(path).running() as store:
        store.put(one, public=True)
        store.put(other, public=True)
        await store.flush()
        await store.delete(one.cid)
        assert await store.block(link) is not None
        assert await store.delete(other.cid)
        assert await store.block(link) is None
        assert (store.count(), store.size()) == (0, 0)


# -- damage ------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"this is not a database, but it may be dear to someone" * 100)
    async with Store(path).running() as store:
        store.put(TEN[0], public=True)
        await store.flush()
        assert len(store.stats().set_aside) == 1
    (aside,) = [file for file in path.parent.iterdir() if ".corrupt-" in file.name]
    assert aside.read_bytes().startswith(b"this is not a database")
    assert "set aside" in caplog.text


def root_page(path: Path, table: str) -> tuple[int, int]:
    """Offset and length of a table's first page in the file."""
    with sqlite3.connect(path) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    return (page - 1) * size, size


async def filled(path: Path) -> None:
    async with Store(path).running() as store:
        for signed in TEN:
            store.put(signed, public=True)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


async def test_a_page_broken_while_nobody_looked_is_found_when_it_is_read(path: Path) -> None:
    await filled(path)
    offset, size = root_page(path, "blocks")
    overwrite(path, offset, b"\xff" * size)
    async with Store(path).running() as store:
        assert await store.get(DIGESTS[0]) is None
        await store.settle()
        assert len(store.stats().set_aside) == 1
        store.put(TEN[0], public=True)
        await store.flush()
        assert await present(store) == [0]
        assert store.public_block(TEN[0].cid) == TEN[0].block
        assert len(store.stats().set_aside) == 1


async def test_a_page_broken_under_the_index_is_found_at_the_start(path: Path) -> None:
    await filled(path)
    offset, size = root_page(path, "answers")
    overwrite(path, offset, b"\xff" * size)
    async with Store(path).running() as store:
        assert store.count() == 0
        assert len(store.stats().set_aside) == 1


async def test_after_an_unclean_end_the_file_is_checked(path: Path) -> None:
    await filled(path)
    offset, size = root_page(path, "blocks")
    overwrite(path, offset, b"\xff" * size)
    path.with_name("answers.db-wal").write_bytes(b"\0" * 32)  # a log left behind is the sign of it
    async with Store(path).running() as store:
        assert len(store.stats().set_aside) == 1


async def test_one_rotten_block_costs_one_answer(path: Path) -> None:
    await filled(path)
    where = path.read_bytes().index(b"3: xxx")
    overwrite(path, where, b"4")
    async with Store(path).running() as store:
        assert await store.get(DIGESTS[3]) is None
        assert store.stats().damaged == 1
        assert store.stats().set_aside == ()
        assert await present(store) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert store.count() == 9
        assert await store.block(TEN[3].cid) is None


# -- a full disk -------------------------------------------------------------------------------------------------


async def test_a_full_disk_stops_storing_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [answer(ask(str(n)), content=f"{n}: " + "x" * 50_000) for n in range(10)]  # none fits into a page in use
    async with Store(path).running() as store:
        store.put(large[0], public=True)
        await store.flush()
        await store._ask(
            lambda db: db.execute("PRAGMA max_page_count = 1").fetchall()
        )  # it is as if the disk were full
        for signed in large[1:]:
            store.put(signed, public=True)
        with pytest.raises(StoreError, match=r"9 answers were not stored: .*full"):
            await store.flush()
        assert store.stats().reason
        assert await present(store) == [0]
        assert not store.put(large[1], public=True)  # not even tried for a while

        monkeypatch.setattr(store._writer, "_full_until", 0.0)
        await store._ask(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())
        assert store.put(large[1], public=True)
        with pytest.raises(StoreError):
            await store.flush()  # the one that was not tried
        await store.flush()
        assert store.stats().reason == ""
        assert await present(store) == [0, 1]


async def test_one_failing_job_takes_no_other_with_it(path: Path) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise ZeroDivisionError

    async with Store(path).running() as store:
        store.put(TEN[0], public=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_failure, lambda: store._ask(fail))
            store.put(TEN[1], public=True)
        await store.settle()
        assert await present(store) == [0, 1]
        assert store.count() == 2


async def expect_failure(call: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(StoreError):
        await call()


# -- versions ----------------------------------------------------------------------------------------------------


async def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path) -> None:
    db = sqlite3.connect(path)
    for statement in MIGRATIONS[0]:
        db.execute(statement)
    db.execute("PRAGMA user_version = 1")
    db.execute("INSERT INTO blocks VALUES (1, ?, ?)", (TEN[0].cid, TEN[0].block))
    db.execute("INSERT INTO answers VALUES (1, ?, 1, NULL, 'm', 'p', 'n', 1, 1, 1, 100, 0, 1, 0)", (DIGESTS[0],))
    db.commit()
    db.close()
    async with Store(path).running() as store:
        assert await present(store) == [0]
        assert store.outbox_add(TEN[0].cid)
        await store.flush()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    db.close()


async def test_a_newer_shoals_file_is_refused_and_kept(path: Path) -> None:
    await filled(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer Shoal"):
        async with Store(path).running():
            pytest.fail("opened")
    assert [file.name for file in path.parent.iterdir()] == ["answers.db"]


async def test_a_migration_that_fails_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(path)
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE more (x)", "NONSENSE")))
    with pytest.raises(StoreError):
        async with Store(path).running():
            pytest.fail("opened")
    monkeypatch.undo()
    async with Store(path).running() as store:
        assert await present(store) == list(range(10))


async def test_a_place_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises((StoreError, OSError)):
        async with Store(tmp_path / "missing" / "answers.db").running():
            pytest.fail("opened")


# -- whom it is for ----------------------------------------------------------------------------------------------


async def public_in(path: Path, *audience: str) -> bool:
    async with Store(path, audience=audience).running() as store:
        assert await store.get(DIGESTS[0]) is not None  # whoever else may have it, it is here
        return store.public_block(TEN[0].cid) is not None


async def test_what_was_for_a_private_swarm_is_not_for_the_next_one(path: Path) -> None:
    async with Store(path, audience=("one",)).running() as store:
        store.put(TEN[0], public=True)
        store.outbox_add(TEN[0].cid)
        await store.flush()
    assert await public_in(path, "one")
    assert await public_in(path, "two", "one")  # the same swarm with a new key
    assert not await public_in(path, OPEN)
    assert not await public_in(path, "one")  # who has left has left
    async with Store(path, audience=("one",)).running() as store:
        assert await store.outbox_due(9) == []
        store.put(TEN[0], public=True)  # said again in the swarm
        await store.flush()
    assert await public_in(path, "one")


async def test_what_was_for_everybody_stays_so(path: Path) -> None:
    async with Store(path, audience=(OPEN,)).running() as store:
        store.put(TEN[0], public=True)
        await store.flush()
    assert await public_in(path, "one")


# -- cancellation ------------------------------------------------------------------------------------------------


async def test_a_read_given_up_leaves_a_store_that_works(path: Path) -> None:
    await filled(path)
    async with Store(path).running() as store:
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                await store.get(DIGESTS[0])
        assert await present(store) == list(range(10))
    assert [file.name for file in path.parent.iterdir()] == ["answers.db"]


async def test_a_closed_store_answers_nothing_and_breaks_nothing(path: Path) -> None:
    store = Store(path)
    assert await store.get(DIGESTS[0]) is None
    assert store.public_block(TEN[0].cid) is None
    with pytest.raises(StoreError, match="closed"):
        await store.flush()


def test_every_test_block_is_what_it_claims() -> None:
    assert all(holds(signed.cid, signed.block) for signed in TEN)
