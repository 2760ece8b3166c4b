"""The node's place in DHTs: its swarm's, and an IPFS one when the owner has named nodes of it.

What belongs here: building them around a running host and swarm, and what the rest of the node asks of them, taken or
not. Which keys are announced and what a provider is used for is swarm/discovery.py's and ipfs_dht.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio

from ..protocols.peer_id import Identity
from .config import DhtSection, IpfsSection
from .ipfs_dht import IpfsDht

if TYPE_CHECKING:
    from ..cache.tiers import AnswerCache
    from ..protocols.p2p.bitswap import Bitswap
    from ..protocols.p2p.host import Host
    from .swarm.discovery import Discovery
    from .swarm.swarm import Swarm


class DhtSeat:
    """models: the names that this node offers now. cache: its answers are announced, as far as peers may have them."""

    def __init__(
        self,
        identity: Identity,
        config: DhtSection,
        ipfs: IpfsSection,
        *,
        models: Callable[[], Sequence[str]],
        cache: AnswerCache | None,
    ) -> None:
        self._identity, self._config, self._models, self._cache = identity, config, models, cache
        self.discovery: Discovery | None = None
        self.ipfs: IpfsDht | None = None
        if cache is not None:
            if ipfs.dht_peers:
                self.ipfs = IpfsDht(identity, ipfs, cache.newest_published, cache.still_kept)
            cache.on_answer, cache.on_ipfs, cache.on_forgotten = self.answered, self.published, self.forgotten

    @contextlib.asynccontextmanager
    async def taken(
        self, host: Host, swarm: Swarm, bitswap: Bitswap, key: bytes | None, told: Callable[[], Sequence[str]]
    ) -> AsyncGenerator[None]:
        """Take part until the block is left. key: of a private swarm. told: where this node can be dialled."""
        async with contextlib.AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            if self._config.enabled:
                await stack.enter_async_context(self._in_swarm(host, swarm, key, told, nursery))
            if self.ipfs is not None and key is None:
                await stack.enter_async_context(self.ipfs.taken(host, bitswap, swarm.needs))
            yield

    @contextlib.asynccontextmanager
    async def _in_swarm(
        self, host: Host, swarm: Swarm, key: bytes | None, told: Callable[[], Sequence[str]], nursery: trio.Nursery
    ) -> AsyncGenerator[None]:
        from ..protocols.p2p.dht import Dht
        from ..protocols.p2p.kad_server import DhtLimits
        from .swarm.discovery import Discovery, DiscoveryLimits, protocol_of

        config = self._config
        dht = Dht(
            host,
            self._identity,
            protocol_of(swarm.name, key),
            swarm=swarm.name,
            addresses=told,
            admits=lambda peer: swarm.admission.admits(peer),  # a move brings another admission
            keeps=swarm.needs,
            limits=DhtLimits(
                records=config.records,
                records_per_peer=config.records_per_peer,
                providers_per_key=config.providers_per_key,
                requests_per_s=config.requests_per_s,
                stores_per_minute=config.stores_per_minute,
                streams_per_peer=config.streams_per_peer,
                message_bytes=config.message_bytes,
                replicas=config.replicas,
            ),
        )
        discovery = Discovery(
            dht,
            swarm,
            DiscoveryLimits(
                announce_every_s=config.announce_every_s,
                announce_batch=config.announce_batch,
                announced_answers=config.announced_answers,
                answer_ttl_s=config.answer_ttl_s,
                model_ttl_s=config.model_ttl_s,
                refresh_s=config.refresh_s,
                withdraw_s=config.withdraw_s,
            ),
            private=key,
            models=self._models,
            answers=self._newest,
            still=self._still,
        )
        async with dht.running():
            self.discovery = discovery
            nursery.start_soon(discovery.run)
            discovery.peers_changed()
            try:
                yield
            finally:
                self.discovery = None

    async def _newest(self, limit: int) -> list[bytes]:
        return await self._cache.newest(limit) if self._cache is not None else []

    async def _still(self, requests: Sequence[bytes]) -> set[bytes]:
        return await self._cache.still_public(requests) if self._cache is not None else set()

    # -- what the rest of the node asks ------------------------------------------------------------------------

    def peers_changed(self) -> None:
        """A peer came, went or spoke, or the swarm is another one now."""
        if self.discovery is not None:
            self.discovery.peers_changed()

    def changed(self) -> None:
        """What this node offers has changed."""
        if self.discovery is not None:
            self.discovery.changed()

    async def withdraw(self) -> None:
        """This node stops: what it has announced in the swarm's DHT is taken back, as far as that is done quickly."""
        if self.discovery is not None:
            await self.discovery.withdraw()

    def answered(self, request: bytes) -> None:
        """Peers may have the answer to a request (its CID or digest) from now on."""
        if self.discovery is not None:
            self.discovery.answered(request)

    def published(self, record: bytes) -> None:
        """A record, by its CID, may go to public IPFS."""
        if self.ipfs is not None:
            self.ipfs.publish(record)

    def forgotten(self, requests: Sequence[bytes], records: Sequence[bytes]) -> int:
        """Answers are no longer here: their announcements are taken back; how many there were."""
        count = self.discovery.forgotten(requests) if self.discovery is not None else 0
        return count + (sum(map(self.ipfs.withdraw, records)) if self.ipfs is not None else 0)

    async def find(self, request_cid: bytes, timeout: float) -> list[bytes]:
        """Blocks that nodes beyond the connected peers offer as the answer to a request, unverified. timeout: s."""
        return await self.discovery.find_answers(request_cid, timeout) if self.discovery is not None else []

    async def fetch(self, cid: str, timeout: float) -> bytes | None:
        """A block from who has announced it in the IPFS DHT; None when nobody gives it. timeout: seconds."""
        return await self.ipfs.fetch(cid, timeout) if self.ipfs is not None else None

    async def discover(self, model: str) -> bool:
        """Connect to nodes that offer a model which nobody known offers, within `find_ms`; whether there is one."""
        if self.discovery is None or not self._config.find_ms:
            return False
        return await self.discovery.find_model(model, self._config.find_ms / 1000)

    def stats(self) -> dict[str, Any]:
        """For the status; {} when this node takes part in none."""
        swarm = {"swarm": self.discovery.stats()} if self.discovery is not None else {}
        return swarm | ({"ipfs": self.ipfs.stats()} if self.ipfs is not None else {})
