"""An IPFS DHT, without a daemon: this node's answers are announced there, and blocks found that others announced.

Only when the owner has named nodes of that DHT (`ipfs.dht_peers`), and not in a private swarm, whose transport no node
of IPFS can speak. This node is a client there: it asks and announces, and keeps nothing for others. Provider records go
under a CID's multihash; who finds one fetches the block over bitswap.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio

from ..protocols.peer_id import Identity, PeerId
from .config import IpfsSection

if TYPE_CHECKING:
    from ..protocols.p2p.bitswap import Bitswap
    from ..protocols.p2p.dht import Dht
    from ..protocols.p2p.host import Host

log = logging.getLogger("shoal.ipfs")

AGAIN_S = 12 * 3600.0  # IPFS nodes keep a provider record for a day or two
ROUND_S = 30.0
SETTLE_S = 1.0  # after an answer, for more of them
BATCH = 32  # announced at once
RETRY_S = 5.0  # between two attempts to reach a first node
MAX_RETRY_S = 300.0
DIAL_S = 5.0
ASKED = 4  # providers of a block that are connected to

_random = random.SystemRandom()


class IpfsDht:
    """config: with dht_peers. records: the CIDs of what may go to public IPFS, the newest first, so many at most.

    still: which of these are here still.
    """

    def __init__(
        self,
        identity: Identity,
        config: IpfsSection,
        records: Callable[[int], Awaitable[Sequence[bytes]]],
        still: Callable[[Sequence[bytes]], Awaitable[set[bytes]]],
    ) -> None:
        self._identity, self._config, self._records, self._still = identity, config, records, still
        self._due: OrderedDict[bytes, float] = OrderedDict()  # a CID -> when it was announced last (trio time)
        self._stirred = trio.Event()
        self._dht: Dht | None = None
        self._host: Host | None = None
        self._bitswap: Bitswap | None = None
        self.found = self.missed = 0

    @contextlib.asynccontextmanager
    async def taken(
        self, host: Host, bitswap: Bitswap, needs: Callable[[PeerId], bool] = lambda peer: False
    ) -> AsyncGenerator[None]:
        """needs: whether somebody else wants the connection with a peer; others are closed when a search is over."""
        from ..protocols.p2p.dht import Dht

        named = {address.rpartition("/p2p/")[2] for address in self._config.dht_peers}
        dht = Dht(
            host,
            self._identity,
            self._config.dht_protocol,
            serve=False,
            signed=False,
            keeps=lambda peer: peer in named or needs(peer),
        )
        async with dht.running(), trio.open_nursery() as nursery:
            self._dht, self._host, self._bitswap = dht, host, bitswap
            nursery.start_soon(self._run, dht, host)
            try:
                yield
            finally:
                self._dht = self._host = self._bitswap = None
                nursery.cancel_scope.cancel()

    async def _run(self, dht: Dht, host: Host) -> None:
        for cid in reversed(await self._records(self._config.dht_announced)):
            self.publish(cid)
        pause = RETRY_S
        while True:
            if not dht.known() and not await self._begin(dht, host):
                await trio.sleep(pause * _random.uniform(0.8, 1.2))
                pause = min(2 * pause, MAX_RETRY_S)
                continue
            pause = RETRY_S
            self._stirred = trio.Event()
            try:
                await self._announce(dht)
            except Exception as error:  # no reason for a node to end
                log.error("announcing in the IPFS DHT failed: %s", type(error).__name__)  # noqa: TRY400
            with trio.move_on_after(ROUND_S * _random.uniform(0.8, 1.2)):
                await self._stirred.wait()
                await trio.sleep(SETTLE_S)

    async def _begin(self, dht: Dht, host: Host) -> bool:
        """Meet the nodes that the configuration names, and those near them."""
        for address in self._config.dht_peers:
            peer = PeerId(address.rpartition("/p2p/")[2])
            with contextlib.suppress(Exception), trio.move_on_after(DIAL_S):  # whatever it is, the next one is tried
                await host.connect(peer, [address])
                dht.meet(peer, [address])
        reached = len(dht.known())
        if reached:
            await dht.refresh()
        log.info("the IPFS DHT: %d nodes known", len(dht.known()))
        return bool(dht.known())

    async def _announce(self, dht: Dht) -> None:
        from ..protocols.p2p.cids import multihash

        now = trio.current_time()
        due = [cid for cid, told in reversed(self._due.items()) if now - told > AGAIN_S][:BATCH]
        again = [cid for cid in due if self._due[cid] > float("-inf")]
        for cid in set(again) - await self._still(again):
            self._due.pop(cid, None)  # evicted
        keys = {multihash(cid): cid for cid in due if cid in self._due}
        taken = await dht.provide([(key, AGAIN_S) for key in keys])
        for key in taken:
            if keys[key] in self._due:
                self._due[keys[key]] = now
        if taken and float("-inf") in self._due.values():
            self._stirred.set()

    def publish(self, cid: bytes) -> None:
        """Announce a block from now on, by its binary CID."""
        self._due.setdefault(cid, float("-inf"))
        while len(self._due) > self._config.dht_announced:
            self._due.popitem(last=False)
        self._stirred.set()

    def withdraw(self, cid: bytes) -> bool:
        """Announce a block no more. What is announced stands at others until they let go of it, a day or two later."""
        return self._due.pop(cid, float("-inf")) > float("-inf")

    async def fetch(self, cid: str, timeout: float) -> bytes | None:
        """A block by its CID from who has announced it, its hash checked; None when nobody gives it. timeout: s."""
        from ..protocols.p2p import cids
        from ..protocols.p2p.errors import P2pError

        dht, host, bitswap = self._dht, self._host, self._bitswap
        if dht is None or host is None or bitswap is None:
            return None
        block: bytes | None = None
        used = 0

        with trio.move_on_after(timeout):
            async with trio.open_nursery() as nursery:

                async def get(peer: PeerId, told: tuple[str, ...]) -> None:
                    nonlocal block
                    with contextlib.suppress(P2pError):
                        await host.connect(peer, told or await self._where(dht, peer))
                        block = await bitswap.fetch(cid, peers=[peer], timeout=timeout)
                        nursery.cancel_scope.cancel()

                def found(peer: PeerId, told: tuple[str, ...]) -> bool:
                    nonlocal used
                    used += 1
                    nursery.start_soon(get, peer, told)
                    return used >= ASKED

                await dht.find_providers(cids.multihash(cids.parse(cid)), found)
        if block is None:
            self.missed += 1
        else:
            self.found += 1
        return block

    @staticmethod
    async def _where(dht: Dht, peer: PeerId) -> tuple[str, ...]:
        """The addresses of a provider whose record has none."""
        return await dht.find_peer(peer)

    def stats(self) -> dict[str, Any]:
        """JSON-compatible."""
        if self._dht is None:
            return {"up": False}
        announced = sum(told > float("-inf") for told in self._due.values())
        return self._dht.stats() | {"up": True, "announced": announced, "found": self.found, "missed": self.missed}
