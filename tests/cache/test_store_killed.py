"""kill -9 at any moment: nothing that was said to be durable is lost, and nothing is half there.

SHOAL_TEST_KILLS sets how many times the writing process is killed (12 when it is not set; `make durability` does 100).
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

from shoal.cache.cid import holds
from shoal.cache.record import verify
from shoal.cache.store import Store

from .answers import ask, key_of
from .writing_node import nth_content

KILLS = int(os.environ.get("SHOAL_TEST_KILLS", "12"))
ROOT = Path(__file__).parents[2]


def write_and_be_killed(path: Path, first: int, after: int) -> list[int]:
    """Numbers of the answers that the process called durable before it was killed."""
    command = [sys.executable, "-m", "tests.cache.writing_node", str(path), str(first)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = [int(process.stdout.readline()) for _ in range(after)]
        finally:
            process.kill()
        rest = process.stdout.read()  # said before the kill, and possibly cut in the middle of a line
    return said + [int(line) for line in rest.split("\n")[:-1]]


async def check(path: Path, numbers: list[int]) -> None:
    """Every one of these answers is there, whole, and signed."""
    async with Store(path).running() as store:
        assert store.stats().set_aside == ()
        for n in numbers:
            key = key_of(ask(str(n)))
            found = await store.get(key.digest)
            assert found is not None, f"answer {n} is lost"
            assert verify(found.block, found.cid, key.cid, extra=found.extra).content == nth_content(n)


async def test_a_killed_node_loses_no_answer_that_it_called_durable(tmp_path: Path) -> None:
    path, durable, chance = tmp_path / "answers.db", list[int](), random.Random(7)
    for _ in range(KILLS):
        first = durable[-1] + 1000 if durable else 0  # what was written and not said is passed over
        said = write_and_be_killed(path, first, after=chance.randrange(1, 300))
        await check(path, said)
        durable += said
    await check(path, durable)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        no_block = "SELECT count(*) FROM answers WHERE block NOT IN (SELECT id FROM blocks)"
        no_link = "SELECT count(*) FROM answers WHERE linked IS NOT NULL AND linked NOT IN (SELECT id FROM blocks)"
        no_index = "SELECT count(*) FROM blocks WHERE id NOT IN (SELECT block FROM answers)"
        no_index += " AND id NOT IN (SELECT linked FROM answers WHERE linked IS NOT NULL)"
        no_origin = "SELECT count(*) FROM derived WHERE block NOT IN (SELECT id FROM blocks)"
        for query in (no_block, no_link, no_index, no_origin):
            assert db.execute(query).fetchone() == (0,), query
        for cid, data in db.execute("SELECT cid, data FROM blocks"):
            assert holds(cid, data)
    db.close()
    assert len(durable) >= KILLS
