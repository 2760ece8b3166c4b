"""Nodes of a DHT to test with, on real hosts in this process."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

from shoal.protocols.p2p.dht import Dht
from shoal.protocols.p2p.host import Host
from shoal.protocols.peer_id import Identity, PeerId

PROTOCOL = "/shoal/test/kad/1.0.0"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
KEY = b"\x12\x20" + b"k" * 32


class DhtNode:
    def __init__(self, **how: Any) -> None:
        self.identity = Identity.generate()
        self.id = self.identity.peer_id
        self.host = Host(self.identity, [LOOPBACK])
        options = {"swarm": "test", "protocol": PROTOCOL} | how
        self.dht = Dht(self.host, self.identity, options.pop("protocol"), **options)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[DhtNode]:
        async with self.host.running(), self.dht.running():
            yield self

    async def knows(self, other: DhtNode) -> None:
        """Connected with the other, each with the other in its table, as two nodes of a swarm are."""
        await self.host.connect(other.id, other.host.addresses())
        self.dht.meet(other.id, other.host.addresses())
        other.dht.meet(self.id, self.host.addresses())

    async def providers(self, key: bytes = KEY) -> dict[PeerId, tuple[str, ...]]:
        found: dict[PeerId, tuple[str, ...]] = {}
        await self.dht.find_providers(key, found.__setitem__)
        return found


@contextlib.asynccontextmanager
async def nodes(count: int, **how: Any) -> AsyncIterator[list[DhtNode]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(DhtNode(**how).running()) for _ in range(count)]


@contextlib.asynccontextmanager
async def a_line(count: int, **how: Any) -> AsyncIterator[list[DhtNode]]:
    """Nodes in a row, each connected with the one before it and the one behind it alone."""
    async with nodes(count, **how) as line:
        for one, other in itertools.pairwise(line):
            await one.knows(other)
        yield line


def connected(one: DhtNode, others: Sequence[DhtNode]) -> list[int]:
    """Which of the others it has a connection with, by their numbers."""
    return [number for number, other in enumerate(others) if one.host.is_connected(other.id)]
