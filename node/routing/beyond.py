"""The caches beyond this machine, one behind the other: the connected peers, then who is found in the DHT.

All of them share one small budget. A tier is asked as soon as the one before it has nothing, and in any case after a
part of the budget, so that a slow peer does not take the time of those behind it. The first answer that verifies wins,
and the rest are cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec
import trio
from msgspec import Struct

from ...cache.cid import cid_text
from ...cache.key import Key
from ...cache.record import RecordRefused
from ...providers.base import GenerateRequest
from .recording import Cache, Far, Found, Recorder

LINKED_S = 2.0
"""Seconds for the content of an answer that was found and is too long for its record."""
GRACE_S = 0.05
"""Seconds that a look-up may take longer than it was given, before it is cancelled."""
SHARE = 0.2
"""The part of the budget after which the next tier is asked beside the one before it."""

Find = Callable[[bytes, float], Awaitable[list[bytes]]]
"""(request CID, seconds) -> blocks that other nodes offer as answers, unverified."""


class Beyond(Protocol):
    """The connected peers."""

    def anybody(self) -> bool:
        """Whether there is anybody to ask, here or in a tier farther away."""
        ...

    async def find(self, request_cid: bytes, timeout: float) -> list[bytes]:
        """Blocks that other nodes offer as answers, unverified; [] when there is none. timeout in seconds."""
        ...

    async def fetch(self, cid: str) -> bytes | None:
        """A block by its CID, its hash checked; None when nobody gives it."""
        ...


class TierCount(Struct):
    """asked, found: look-ups. seconds: in all of them."""

    asked: int = 0
    found: int = 0
    seconds: float = 0.0


class Tiers:
    """near: the tier "swarm". tiers: those behind it, by name. wait_s: seconds for a look-up in all."""

    def __init__(
        self, near: Beyond, tiers: Mapping[Far, Find], *, cache: Cache, recorder: Recorder, wait_s: float
    ) -> None:
        self._near, self._cache, self._recorder, self._wait_s = near, cache, recorder, wait_s
        self._tiers: dict[Far, Find] = {"swarm": near.find, **tiers}
        self.counts = {name: TierCount() for name in self._tiers}

    @property
    def anybody(self) -> bool:
        """Whether a look-up is worth its tasks and timers: a lone node spares them."""
        return self._near.anybody()

    async def find(
        self, key: Key, request: GenerateRequest, won: Callable[[Found], None] = lambda found: None
    ) -> Found | None:
        """The first block from another node that verifies as an answer to `key`. won: told of it at once."""
        began = trio.current_time()
        first: Found | None = None

        async def ask(name: Far, before: trio.Event, done: trio.Event) -> None:
            nonlocal first
            with trio.move_on_after(SHARE * self._wait_s):
                await before.wait()
            count, start = self.counts[name], trio.current_time()
            left = max(0.0, began + self._wait_s - start)
            count.asked += 1
            try:
                for block in await self._tiers[name](key.cid, left):
                    if (found := await self._verified(block, key, request, name, budget)) is not None:
                        if first is None:
                            first = found
                            won(found)
                        count.found += 1
                        nursery.cancel_scope.cancel()
                        return
            finally:
                count.seconds += trio.current_time() - start
                done.set()

        with trio.move_on_after(self._wait_s + GRACE_S) as budget:
            async with trio.open_nursery() as nursery:
                before = trio.Event()
                before.set()
                for name in self._tiers:
                    done = trio.Event()
                    nursery.start_soon(ask, name, before, done)
                    before = done
        return first

    async def _verified(
        self, block: bytes, key: Key, request: GenerateRequest, tier: Far, budget: trio.CancelScope
    ) -> Found | None:
        extra = None
        if (linked := self._cache.linked_content(block)) is not None:
            budget.deadline = trio.current_time() + LINKED_S + GRACE_S  # the answer is there, and only long
            with trio.move_on_after(LINKED_S):
                extra = await self._near.fetch(cid_text(linked))
        try:
            hit = self._cache.remember_foreign(block, key, extra=extra, request=request, tier=tier)
        except RecordRefused:
            return None  # counted by the cache
        return msgspec.structs.replace(self._recorder.found(hit), tier=tier)

    def stats(self) -> dict[str, dict[str, float]]:
        """By tier: how often it was asked, how often it had the answer, and the seconds that took. JSON-compatible."""
        return {name: msgspec.to_builtins(count) for name, count in self.counts.items()}
