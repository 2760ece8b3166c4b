"""A process that stores answers as fast as it can and says which ones are durable; made to be killed.

    python -m tests.cache.writing_node PATH FIRST

Prints the number of an answer once `flush` has returned for it. Answer n is to the request "n".
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio
from shoal.cache.derived import derived_of
from shoal.cache.sealing import Seal
from shoal.cache.store import Store

from .answers import LONG, answer, ask

GROUP = 7
SEAL = Seal(b"k" * 32)


def nth_content(n: int) -> str:
    return f"{n}" + (LONG if n % 50 == 0 else "x" * (n * 37 % 5000))


async def main(path: Path, first: int) -> None:
    async with Store(path).running() as store:
        n = first
        while True:
            group = range(n, n + GROUP)
            for m in group:
                signed = answer(ask(str(m)), content=nth_content(m), link_text=True)
                store.put(signed, public=True, derived=derived_of(signed, SEAL))
            await store.flush()
            print(*group, sep="\n", flush=True)
            n += GROUP


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
