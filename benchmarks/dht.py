"""The DHT beside py-libp2p's own: nodes in this process, each connected with a few others; provide, and find from afar.

Found by nodes that do not hold the record themselves.

    python -m benchmarks.dht 40

Both sides run over the same host. CPU is that of all nodes together, so the ratio of two rows of one run counts.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import trio
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from shoal.protocols.p2p.dht import Dht
from shoal.protocols.p2p.host import Host
from shoal.protocols.p2p.kad_server import DhtLimits
from shoal.protocols.peer_id import Identity

from benchmarks.table import show

LINKS = 3
KEYS = 8


@contextlib.asynccontextmanager
async def hosts(count: int) -> AsyncGenerator[list[tuple[Identity, Host]]]:
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            identity = Identity.generate()
            host = Host(identity, ["/ip4/127.0.0.1/tcp/0"])
            await stack.enter_async_context(host.running())
            made.append((identity, host))
        yield made


def links(count: int, rng: random.Random) -> list[tuple[int, int]]:
    """A ring, and a few chords."""
    pairs = {(n, (n + 1) % count) for n in range(count)}
    while len(pairs) < count * LINKS // 2:
        one, other = rng.sample(range(count), 2)
        pairs.add((min(one, other), max(one, other)))
    return sorted(pairs)


async def ours(count: int) -> list[object]:
    async with hosts(count) as made, contextlib.AsyncExitStack() as stack:
        limits = DhtLimits(requests_per_s=1000.0)
        nodes = [Dht(host, identity, "/shoal/bench/kad/1.0.0", swarm="b", limits=limits) for identity, host in made]
        for node in nodes:
            await stack.enter_async_context(node.running())
        for one, other in links(count, random.Random(1)):
            await made[one][1].connect(made[other][0].peer_id, made[other][1].addresses())
            nodes[one].meet(made[other][0].peer_id, made[other][1].addresses())
            nodes[other].meet(made[one][0].peer_id, made[one][1].addresses())
        for node in nodes:
            await node.refresh()

        async def provide(number: int, key: bytes) -> None:
            await nodes[number].provide([(key, 600.0)])

        async def find(number: int, key: bytes) -> int:
            found: list[object] = []
            await nodes[number].find_providers(key, lambda peer, at: found.append(peer) or True)
            return len(found)

        def holds(number: int, key: bytes) -> bool:
            return bool(nodes[number].records.get(key, time.time()))

        return await measured("shoal", count, provide, find, holds)


async def theirs(count: int) -> list[object]:
    async with hosts(count) as made, contextlib.AsyncExitStack() as stack:
        nodes = [KadDHT(host._libp2p, DHTMode.SERVER) for _, host in made]
        for node in nodes:
            await stack.enter_async_context(background_trio_service(node))
        for one, other in links(count, random.Random(1)):
            await made[one][1].connect(made[other][0].peer_id, made[other][1].addresses())
            for near, far in ((one, other), (other, one)):
                peer = ID.from_base58(made[far][0].peer_id)
                at = [Multiaddr(address.partition("/p2p/")[0]) for address in made[far][1].addresses()]
                made[near][1]._libp2p.get_peerstore().add_addrs(peer, at, 3600)
                await nodes[near].add_peer(peer, skip_server_mode_check=True)
        for (identity, _), node in zip(made, nodes, strict=True):
            await node.peer_routing.find_closest_peers_network(ID.from_base58(identity.peer_id).to_bytes())

        async def provide(number: int, key: bytes) -> None:
            await nodes[number].provide(key.hex())

        async def find(number: int, key: bytes) -> int:
            return len(await nodes[number].find_providers(key.hex(), 1))

        def holds(number: int, key: bytes) -> bool:
            return bool(nodes[number].provider_store.get_providers(key))

        return await measured("py-libp2p 0.8.1", count, provide, find, holds)


async def measured(
    name: str,
    count: int,
    provide: Callable[..., Any],
    find: Callable[..., Any],
    holds: Callable[[int, bytes], bool],
) -> list[object]:
    rng = random.Random(2)
    keys = [b"\x12\x20" + rng.randbytes(32) for _ in range(KEYS)]
    provided, sought, hits = list[float](), list[float](), 0
    cpu = time.process_time()
    for number, key in enumerate(keys):
        began = time.perf_counter()
        await provide(number % count, key)
        provided.append(time.perf_counter() - began)
    cpu_provide, cpu = (time.process_time() - cpu) / KEYS, time.process_time()
    for number, key in enumerate(keys):
        seeker = next(n for n in (*range(number + 1, count), *range(number)) if not holds(n, key))
        began = time.perf_counter()
        hits += bool(await find(seeker, key))
        sought.append(time.perf_counter() - began)
    cpu_find = (time.process_time() - cpu) / KEYS
    return [
        name,
        f"{statistics.median(provided) * 1000:.0f} ms",
        f"{cpu_provide * 1000:.0f} ms",
        f"{statistics.median(sought) * 1000:.0f} ms",
        f"{cpu_find * 1000:.0f} ms",
        f"{hits}/{KEYS}",
    ]


def main(arguments: Sequence[str] = ()) -> None:
    count = int(arguments[0]) if arguments else 40
    rows = [trio.run(ours, count), trio.run(theirs, count)]
    columns = ("DHT", "provide p50", "CPU, all nodes", "find p50", "CPU, all nodes", "found")
    show(f"one DHT of {count} nodes in one process", columns, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
