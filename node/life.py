"""A node between its start and its end, or a move to a swarm with another key: every part that such a move renews.

The RPC opens before the swarm is up, because libp2p takes most of a second to load. `Life` is the `Node` of the RPC
(rpc/node_api.py) and what the swarm asks about this node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import trio

from ..cache.kubo import KuboPublisher
from ..cache.memory import Memory
from ..cache.sealing import Seal
from ..cache.store import OPEN, Store
from ..cache.tiers import AnswerCache
from ..protocols.p2p.nat_limits import NatLimits
from ..protocols.peer_id import Identity, PeerId
from ..providers.base import GenerateRequest
from ..providers.embedding import able
from . import heap, paths, state
from .config_file import Loaded
from .dht_seat import DhtSeat
from .front import Front, open_front
from .hardware import sample
from .membership import Membership, decide
from .routing.candidates import NodeCandidates
from .routing.health_file import kept
from .routing.limits import RoutingLimits
from .routing.router import Router
from .routing.routes import Routes
from .rpc.app import Rpc
from .rpc.metrics_otlp import Otlp
from .swarm.advert import AdvertContent, Load, OfferedModel, SharedProvider, offered
from .swarm.invite import Invite
from .swarm.rules import SUBSCRIPTION_NOTE, SUBSCRIPTIONS
from .swarm.serving import PeersAnswer
from .swarm.sharing import Sharing
from .swarm_seat import SwarmSeat
from .tokens import TokenBook, Tokens
from .trials import Trials

if TYPE_CHECKING:
    from .daemon import Daemon

from .version import version

log = logging.getLogger("shoal.daemon")

LAST_SPANS_S = 2.0
"""Seconds at the node's end in which the collector is told what it has not heard yet."""
LAST_WORDS_S = 0.25
"""Seconds behind `drain_s` in which the callers of what has not ended by then are told so."""


class Life:
    """See the module."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.membership = daemon.membership
        config, data = daemon.loaded.config, daemon.loaded.data_dir
        self.cache = build_cache(daemon.loaded, daemon.identity, self.membership, self._is_member)
        self.dht = DhtSeat(
            daemon.identity,
            config.dht,
            config.ipfs,
            models=lambda: [offered.model.name for offered in self._describe([]).models],
            cache=self.cache,
        )
        self.seat = SwarmSeat(
            daemon.identity,
            data,
            describe=self._describe,
            serve=self._serve_peer,
            find_blocks=self._find_blocks,
            mdns=config.swarm.mdns,
            relay=config.relay,
            nat_limits=msgspec.convert(config.nat, NatLimits, from_attributes=True),
            dht=self.dht,
            neighbours=config.swarm.neighbours,
            heard=config.swarm.heard_adverts,
            silent_line_s=config.swarm.silent_line_s,
            public_block=self.cache.public_block if self.cache is not None else None,
        )
        if self.cache is not None:
            self.cache.on_public = self.seat.announce
        self.sharing = Sharing(config.share, path=paths.sharing_file(data), on_change=self.seat.changed)
        self.source = NodeCandidates(
            daemon.registry,
            self.seat,
            order=config.router.order,
            provider=config.router.provider,
            model=config.router.model,
            forward=config.router.forward,
            routes=Routes(config.routes),
            on_change=self.seat.changed,
            lend=self.sharing.lend,
            rated=daemon.rates.rated,
            discover=self.dht.discover,
            gathering=self.seat.gathering,
        )
        self.router = Router(
            self.source,
            self.cache,
            self.seat,
            daemon.identity,
            limits=RoutingLimits(
                deadline_s=config.router.deadline_s,
                first_token_s=config.router.first_token_s,
                idle_s=config.router.idle_s,
                hops=config.router.hops,
                hedge=config.router.hedge,
                swarm_wait_s=config.cache.swarm_wait_ms / 1000,
                join_wait_s=config.router.join_wait_ms / 1000 if config.cache.swarm_wait_ms else 0.0,
                join_near_s=config.router.join_near_ms / 1000,
                join_first_s=config.router.join_first_s,
            ),
            farther={"dht": self.dht.find} if config.dht.enabled else None,
            others=self.seat,
        )
        self.seat.generations = self.router
        self.router.watchers.append(daemon.rates)
        daemon.rates.on_news = self.seat.changed
        self.tokens = Tokens(TokenBook(data))
        self.rpc = Rpc(
            self.router,
            node=self,
            source=self.source,
            registry=daemon.registry,
            cache=self.cache,
            hosts=config.rpc.hosts,
            origins=config.rpc.cors_origins,
            tokens=self.tokens,
        )
        self._collector: Otlp | None = None
        self.url = ""
        self._tell_invite: Callable[[str], None] = lambda invite: None
        self.seat.on_reach = self._tell_reach
        self._seconds: dict[str, float] = {}

    # -- from its beginning to its end -------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the node ends or moves to another swarm; requests under way get `drain_s` seconds then."""
        daemon = self.daemon
        async with contextlib.AsyncExitStack() as stack:
            if self.cache is not None:
                await stack.enter_async_context(self.cache.running())
            await stack.enter_async_context(self.source.running())
            await stack.enter_async_context(kept(self.router.health, paths.health_file(daemon.loaded.data_dir)))
            await stack.enter_async_context(self.router.running())
            await stack.enter_async_context(self.tokens.running())
            if daemon.listener is None:
                raise RuntimeError("the RPC's socket is opened before the first life begins")
            front = await stack.enter_async_context(open_front(self.rpc, daemon.listener, daemon.loaded.config.rpc))
            self.url = front.url
            self._tell_invite = stack.enter_context(
                state.rpc_announced(daemon.loaded.data_dir, front.local, daemon.identity.peer_id, version())
            )
            self._seconds["rpc"] = _age_s()
            daemon.announce.rpc(self.url, self._seconds["rpc"])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sit)
                nursery.start_soon(daemon.machine.run, self.seat.changed)
                nursery.start_soon(self.sharing.run)
                nursery.start_soon(self._trials().run)
                stack.callback(self.sharing.close)
                if daemon.loaded.config.telemetry.otlp is not None:
                    nursery.start_soon(self._tell_collector, daemon.loaded.config.telemetry.otlp)
                await self._until_the_end()
                await self._drain(front)
                if self._collector is not None:
                    with trio.move_on_after(LAST_SPANS_S):
                        await self._collector.flush()
                nursery.cancel_scope.cancel()

    def _trials(self) -> Trials:
        """Of engines here that have the same model; an order that the owner has set needs none."""
        config, registry = self.daemon.loaded.config, self.daemon.registry
        after_s = 0.0 if config.router.order else config.engines.compare_after_s
        idle = lambda: self.router.in_flight == 0  # noqa: E731
        return Trials(self.source, registry.providers, self.daemon.rates, idle=idle, after_s=after_s)

    async def _tell_collector(self, endpoint: str) -> None:
        """Send metrics and traces on, until cancelled."""
        telemetry, me = self.daemon.loaded.config.telemetry, self.daemon.identity.peer_id
        self._collector = otlp = Otlp(
            endpoint,
            self.rpc.telemetry.collect,
            node=me,
            interval_s=telemetry.interval_s,
            max_waiting=telemetry.max_waiting,
        )
        self.router.watchers.append(otlp)
        self.router.traced = True
        await otlp.run()

    async def _sit(self) -> None:
        """Be one of the swarm, until cancelled."""
        async with self.seat.taken(self.membership):
            for note in self.membership.notes:
                self.daemon.announce.note(note)
            self._tell_swarm(opened=self.membership.opened)
            self._tell_ready()
            await trio.sleep_forever()

    async def _until_the_end(self) -> None:
        async with trio.open_nursery() as either:
            for event in (self.daemon.stopping, self.daemon.moving):
                either.start_soon(_end_with, event, either.cancel_scope)

    async def _drain(self, front: Front) -> None:
        """Take nothing new, and give what is under way its time. Peers are told, so that they ask others."""
        drain_s = self.daemon.loaded.config.node.drain_s
        front.stop(drain_s + LAST_WORDS_S)
        if self.daemon.stopping.is_set() and self.daemon.listener is not None:
            self.daemon.listener.close()  # or who connects now would wait for nobody
        with trio.move_on_after(drain_s):
            async with trio.open_nursery() as nursery:
                if self.seat.swarm is not None:
                    nursery.start_soon(self.dht.withdraw)
                    nursery.start_soon(self.seat.swarm.drain, drain_s)
                await front.ended()
                return
        self.router.stop()
        with trio.move_on_after(LAST_WORDS_S):
            await front.ended()

    # -- what it says at its beginning -------------------------------------------------------------------------

    def _tell_reach(self) -> None:
        """The invite names the addresses at which this node is reached, through relays, too."""
        if invite := self.seat.invite():
            self._tell_invite(invite)

    def _tell_swarm(self, *, opened: bool) -> None:
        """After the swarm is up, and whenever its addresses have changed."""
        swarm = self.seat.swarm
        name = swarm.name if swarm is not None else self.membership.name
        told = self.seat.addresses()
        private = self.membership.key is not None
        self.daemon.announce.swarm(name=name, private=private, addresses=told, opened=opened)
        self._tell_invite(self.seat.invite())
        data = self.daemon.loaded.data_dir
        state.remember_ports(data, self.seat.ports(state.last_ports(data)))

    def _tell_ready(self) -> None:
        daemon, shared = self.daemon, self.daemon.registry.shared
        providers: dict[str, dict[str, Any]] = {}
        for name, status in self.source.statuses.items():
            models = [model.name for model in status.models]
            share = name in shared
            about = {"ready": status.ready, "reason": status.reason, "models": models, "share": share}
            providers[name] = {"configured": True, **about}
        for name, reason in sorted(daemon.registry.refused.items()):
            providers[name] = {"configured": False, "ready": False, "reason": reason, "models": [], "share": False}
        daemon.announce.providers(providers)
        for name in sorted(SUBSCRIPTIONS & shared):
            daemon.announce.note(SUBSCRIPTION_NOTE.format(name))
        self._seconds["ready"] = _age_s()
        swarm = self.seat.swarm
        daemon.announce.ready(
            {
                "rpc": self.url,
                "peer_id": daemon.identity.peer_id,
                "invite": self.seat.invite(),
                "swarm": swarm.name if swarm is not None else self.membership.name,
                "addresses": self.seat.addresses(),
                "providers": providers,
                "data_dir": str(daemon.loaded.data_dir),
                "version": version(),
                "pid": os.getpid(),
                "seconds": self._seconds,
            }
        )
        heap.set_aside()

    # -- what the RPC asks (rpc/node_api.py, Node) -------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The node at a glance. A private swarm's invite is a secret and stays in rpc.json, for its owner alone."""
        daemon, swarm = self.daemon, self.seat.swarm
        private = self.membership.key is not None
        load = sample()
        return {
            "version": version(),
            "peer_id": daemon.identity.peer_id,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - daemon.started, 1),
            "rpc": self.url,
            "data_dir": str(daemon.loaded.data_dir),
            "swarm": {
                "up": swarm is not None,
                "name": swarm.name if swarm is not None else self.membership.name,
                "private": private,
                "peers": swarm.stats()["peers"] if swarm is not None else 0,
                "counts": swarm.stats() if swarm is not None else {},
                "addresses": self.seat.addresses(),
                "reachability": self.seat.reachability(),
                "relays": self.seat.relays(),
                "invite": "" if private else self.seat.invite(),
            },
            "dht": self.dht.stats(),
            "cache": {"enabled": self.cache is not None, "mode": daemon.loaded.config.cache.mode},
            "hardware": msgspec.to_builtins(daemon.hardware),
            "rates": daemon.rates.view(),
            "load": msgspec.to_builtins(load),
        }

    def peers(self) -> list[dict[str, Any]]:
        """The peers, each with what it has had here."""
        return [peer | {"consumed": self.sharing.consumed(peer["peer"])} for peer in self.seat.peers()]

    def swarm_view(self) -> dict[str, Any]:
        """The swarm, and who belongs to it where it has an owner."""
        membership, swarm = self.membership, self.seat.swarm
        facts: dict[str, Any] = {"name": swarm.name if swarm is not None else membership.name}
        facts |= {"private": membership.key is not None, "owner": membership.owner, "up": swarm is not None}
        return facts | (swarm.roster_view() if swarm is not None else {})

    async def take_roster(self, wire: list[bytes]) -> bool:
        return (await self.seat.seated()).take_roster(wire)

    def sharing_view(self) -> dict[str, Any]:
        return self.sharing.view()

    def pause(self, seconds: float | None) -> dict[str, Any]:
        self.sharing.pause(seconds)
        return self.sharing.view()

    def resume(self) -> dict[str, Any]:
        self.sharing.resume()
        return self.sharing.view()

    async def fetch(self, cid: str) -> bytes | None:
        return await self.seat.fetch(cid)

    async def join(self, invite: str) -> dict[str, Any]:
        """Join now, and at every start. A swarm with another key begins a new life; see `Daemon.move`."""
        parsed = Invite.parse(invite)
        wanted = decide(self.daemon.loaded.config.swarm, joined=[invite])
        own = set(parsed.peers) == {self.daemon.identity.peer_id} and parsed.swarm is not None
        if wanted.key != self.membership.key or wanted.owner != self.membership.owner or own:
            moved = self.daemon.move(invite)
            return {"swarm": moved.name, "private": moved.key is not None, "moving": True}
        swarm = await self.seat.seated()
        before = self.seat.addresses()
        try:
            peer = await swarm.join(parsed)
        finally:  # the port is open, whoever was reached
            opened = [address for address in self.seat.addresses() if address not in before]
            self._tell_swarm(opened=bool(opened))
        state.remember_swarm(self.daemon.loaded.data_dir, invite)
        return {"swarm": swarm.name, "private": self.membership.key is not None, "moving": False, "peer": peer}

    # -- what the swarm asks -----------------------------------------------------------------------------------

    def _is_member(self, peer: PeerId) -> bool:
        return self.seat.is_member(peer)

    def _serve_peer(
        self, request: GenerateRequest, peer: PeerId, deadline_s: float, hops: int, seen: Sequence[PeerId]
    ) -> AbstractAsyncContextManager[PeersAnswer]:
        shared = {
            name: request.model or status.default_model
            for name, status in self.source.statuses.items()
            if name in self.daemon.registry.shared and status.offers(request.model)
        }
        self.sharing.check(shared, peer)
        return self.router.answer_for_peer(request, peer, deadline_s, hops, seen)

    async def _find_blocks(self, requests: list[bytes]) -> list[bytes | None]:
        if self.cache is None:
            return [None] * len(requests)
        answers = [await self.cache.public_answer(request) for request in requests]
        return [answer.block if answer is not None else None for answer in answers]

    def _describe(self, told: list[str]) -> AdvertContent:
        """What this node offers to peers: its shared providers that are ready, and the machine."""
        registry, models, providers = self.daemon.registry, list[OfferedModel](), list[SharedProvider]()
        for name, status in self.source.statuses.items():
            if status.ready and name in registry.shared and self.sharing.lends(name):
                provider, most = registry.providers[name], registry.settings[name].max_concurrent
                embeds, completes = able(provider) is not None, provider.completes
                lent = [model for model in status.models if self.sharing.lends(name, model.name)]
                models += [offered(name, model, embeds=embeds, completes=completes) for model in lent]
                providers.append(SharedProvider(name, status.any_model, status.default_model, most, embeds, completes))
        return AdvertContent(
            models=tuple(models),
            providers=tuple(providers),
            hardware=msgspec.to_builtins(self.daemon.hardware),
            limits={p.name: limits for p in providers if (limits := self.sharing.told(p.name))},
            addresses=tuple(told),
            version=version(),
            load=Load(running=self.router.in_flight, cpu=sample().cpu_percent / 100),
            relay=self.daemon.loaded.config.relay.serve,
        )


def build_cache(
    loaded: Loaded, identity: Identity, membership: Membership, is_member: Callable[[PeerId], bool]
) -> AnswerCache | None:
    """The answer cache as configured; None when it is switched off."""
    section, ipfs = loaded.config.cache, loaded.config.ipfs
    if not section.enabled:
        return None
    publisher = None
    seals = [Seal(key) for key in membership.seal_keys]
    store = Store(paths.answers_file(loaded.data_dir), max_bytes=section.disk_bytes, audience=audience_of(seals))
    if ipfs.kubo_api is not None and seals and membership.name not in ipfs.private_swarms:
        log.warning("answers of this private swarm do not go to IPFS; ipfs.private_swarms allows it, sealed")
    elif ipfs.kubo_api is not None:
        seal = seals[0] if seals else None
        publisher = KuboPublisher(ipfs.kubo_api, store, timeout_s=ipfs.timeout_s, seal=seal)
    return AnswerCache(
        identity.peer_id,
        memory=Memory(section.memory_bytes),
        store=store,
        mode=section.mode,
        trust=section.trust,
        is_member=is_member,
        ttl_s=section.ttl_s or None,
        hmac_key=membership.cache_key,
        older_keys=membership.old_cache_keys,
        seals=seals,
        publish=section.publish,
        publisher=publisher,
        auto_publish=ipfs.publish == "always",
    )


def audience_of(seals: Sequence[Seal]) -> tuple[str, ...]:
    """Whom this node's public answers are for: the private swarm by its key, earlier ones after it, or everybody."""
    return tuple(seal.id.hex() for seal in seals) or (OPEN,)


async def _end_with(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _age_s() -> float:
    """Seconds since this process began; psutil knows it to the second only (proc(5), stat, field 22)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 3)
    with contextlib.suppress(psutil.Error, OSError):
        return round(time.time() - psutil.Process().create_time(), 3)
    return 0.0  # /proc is hidden
