"""A process that fills a real file system with answers, makes room again, and tells in JSON what it saw.

unshare -rm sh -c 'mount -t tmpfs -o size=4m none DIR && python -m tests.cache.full_disk DIR'
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import trio
from shoal.cache.memory import Memory
from shoal.cache.store import Store, StoreError
from shoal.cache.tiers import AnswerCache

from .answers import ALICE, answer, ask, key_of

CONTENT = "Cold and wet. " * 800


async def main(directory: Path) -> dict[str, Any]:
    filler = directory / "filler"
    filler.write_bytes(bytes(1 << 20))
    store = Store(directory / "answers.db")
    cache = AnswerCache(ALICE.peer_id, memory=Memory(64 << 20), store=store)
    durable: list[int] = []
    seen: dict[str, Any] = {}
    async with cache.running():
        for n in range(2000):
            cache.remember(answer(ask(str(n)), content=f"{n} {CONTENT}"))
            try:
                await store.flush()
            except StoreError as error:
                seen["said"] = str(error)
                break
            durable.append(n)
        seen["free"] = shutil.disk_usage(directory).free
        last = len(durable)
        seen["answered"] = sum(cache.peek(key_of(ask(str(n)))) is not None for n in range(last + 1))
        for n in range(last + 1, last + 50):  # the node goes on answering, and remembers what it can
            seen["answered"] += cache.remember(answer(ask(str(n)), content=CONTENT)).record.content == CONTENT
        seen["dropped"] = store.stats().dropped
        cache.memory.clear()
        seen["readable"] = sum([await cache.get(key_of(ask(str(n)))) is not None for n in durable])
        filler.unlink()
        store._writer._full_until = 0.0  # as if ten seconds had passed
        cache.remember(answer(ask("after"), content=CONTENT))
        with_room = True
        try:
            await store.flush()
        except StoreError:
            with_room = store.stats().reason == ""
        cache.memory.clear()
        seen["works_again"] = with_room and await cache.get(key_of(ask("after"))) is not None
        seen["set_aside"] = list(store.stats().set_aside)
    async with Store(directory / "answers.db").running() as again:
        seen["after_restart"] = sum([await again.get(key_of(ask(str(n))).digest) is not None for n in durable])
    return {"durable": len(durable), **seen}


if __name__ == "__main__":
    logging.disable()
    print(json.dumps(trio.run(main, Path(sys.argv[1]))))
