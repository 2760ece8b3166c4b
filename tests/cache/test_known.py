"""What the disk is known not to have, and groups of answers that are stored by few statements."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.cache.known import Known
from shoal.cache.statements import New, Totals, count, insert, insert_many
from shoal.cache.store import Store

from .answers import LONG, answer, ask, key_of

ANSWERS = [answer(ask(str(n)), content=f"the answer {n}") for n in range(30)]


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def stored(names: list[str]) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE answers (request BLOB)")
    db.executemany("INSERT INTO answers VALUES (?)", [(digest(name),) for name in names])
    return db


@given(st.lists(st.text(max_size=3)), st.lists(st.text(max_size=3)))
def test_what_was_stored_before_or_since_is_never_taken_for_absent(before: list[str], since: list[str]) -> None:
    known = Known()
    known.load(stored(before))
    for name in since:
        known.add(digest(name))
    assert all(known.may_hold(digest(name)) for name in before + since)


def test_what_was_never_stored_is_known_to_be_absent_but_for_a_few() -> None:
    known = Known()
    known.load(stored([f"before {n}" for n in range(1000)]))
    for n in range(100_000):
        known.add(digest(f"since {n}"))
    wrong = sum(known.may_hold(digest(f"never {n}")) for n in range(10_000))
    assert wrong < 50


async def test_a_question_that_is_new_to_the_store_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    async with Store(tmp_path / "answers.db").running() as store:
        store.put(ANSWERS[0], public=True)
        await store.flush()
        store._limiter.total_tokens = 1  # who reads takes one
        with trio.fail_after(5):
            await store._limiter.acquire()
            assert await store.get(key_of(ask("1")).digest) is None
            store._limiter.release()
        assert await store.get(key_of(ask("0")).digest) is not None


async def test_answers_that_wait_together_are_all_stored_and_counted_once(tmp_path: Path) -> None:
    async with Store(tmp_path / "answers.db").running() as store:
        for signed in (*ANSWERS, *ANSWERS[:5]):
            store.put(signed, public=False)
        await store.flush()
        assert store.count() == len(ANSWERS)
        for n, signed in enumerate(ANSWERS):
            found = await store.get(key_of(ask(str(n))).digest)
            assert found is not None
            assert (found.cid, found.block) == (signed.cid, signed.block)


def test_a_group_is_stored_as_its_answers_are_one_by_one(tmp_path: Path) -> None:
    def new(at: int) -> New:
        return New(ANSWERS[at], 1000 + at, at % 2 == 0, at % 3 == 0, ())

    linked = New(answer(ask("long"), content=LONG), 5, True, False, ())
    groups = [[new(0), new(1), new(2)], [new(3)], [new(2), new(4)], [new(5), new(5)], [linked, new(6)]]
    contents = []
    for name in ("one by one", "in groups"):
        with sqlite3.connect(_made(tmp_path / name)) as db:
            totals = Totals()
            for group in groups:
                if name == "in groups":
                    insert_many(db, totals, group)
                else:
                    for one in group:
                        insert(db, totals, *one)
            recount = Totals()
            count(db, recount)
            assert (totals.answers, totals.bytes) == (recount.answers, recount.bytes)
            contents.append([db.execute(f"SELECT * FROM {t}").fetchall() for t in ("blocks", "answers", "derived")])
    assert contents[0] == contents[1]


def _made(path: Path) -> Path:
    from shoal.cache.database import open_writer

    open_writer(path).close()
    return path
