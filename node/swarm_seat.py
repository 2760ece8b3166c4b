"""The node's place in its swarm. libp2p takes most of a second to load, so the place is empty when the RPC opens.

What belongs here: building host, bitswap and swarm from a membership, and what the rest of the node sees of them, seat
taken or not. The router gets candidates and look-ups, the RPC peers and blocks; an empty seat has none.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from msgspec import Struct

from ..protocols.p2p.nat_limits import NatLimits
from ..protocols.peer_id import Identity, PeerId
from ..providers.base import Provider
from . import addresses, paths
from .config import RelaySection
from .identity import load
from .membership import EVERYWHERE, LOOPBACK, Membership
from .state import P2pState
from .swarm.relaying import Relaying

if TYPE_CHECKING:
    from ..protocols.p2p.bitswap import Bitswap
    from ..protocols.p2p.host import Host
    from .dht_seat import DhtSeat
    from .swarm.advert import AdvertContent
    from .swarm.joining import Generations
    from .swarm.lookup import FindBlocks
    from .swarm.nat import Nat
    from .swarm.serving import AnswerForPeer
    from .swarm.swarm import Swarm

log = logging.getLogger("shoal.swarm")

FETCH_S = 5.0
"""Seconds in which a peer must give a block that is asked for by its CID."""
SEATED_S = 20.0
"""Seconds that a join waits for the swarm to be up."""


def _load(module: str) -> None:
    """Import libp2p (0.7 s of computing), in a thread, while the RPC answers already."""
    importlib.import_module(f"..protocols.p2p.{module}", __package__)


class ListenError(Exception):
    """An address for peers cannot be listened on. One line with the option to change."""


class _SwarmSection(Struct, frozen=True):
    """What swarm/swarm.py reads of the configuration, after the membership has been decided."""

    name: str
    listen: tuple[str, ...]
    peers: tuple[str, ...]
    key: str | None


def _owner_key(data: Path) -> Identity | None:
    """The key that owns the swarms created on this machine."""
    try:
        return load(paths.owner_file(data))
    except FileNotFoundError:
        return None


@contextlib.asynccontextmanager
async def _beside(task: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Runs a task until the block is left."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: task)
        yield
        nursery.cancel_scope.cancel()


GATHERING_S = 4.0
"""Seconds after the start in which peers are still expected to come up."""


def told_in_dht(host: Host, relaying: Relaying) -> list[str]:
    """Where this node says that it can be dialled, to whoever keeps its records: loopback among its machine's alone."""
    from .swarm.advert import beyond_machine

    told = relaying.announced()
    return told if all(host.is_here(peer) for peer in host.connected()) else list(beyond_machine(told))


class PublicBlocks:
    """The block source of bitswap over the cache's public blocks."""

    def __init__(self, get: Callable[[bytes], bytes | None] | None) -> None:
        self._get = get

    def get(self, cid_bytes: bytes) -> bytes | None:
        return self._get(cid_bytes) if self._get is not None else None


class SwarmSeat:
    """describe, serve, find_blocks: as for Swarm. public_block: what bitswap may hand out; None: nothing.

    on_reach: called when others can reach this node at other addresses than before. generations: what peers may join,
    set before the seat is taken. dht: what is found beyond the peers; None: nothing.
    neighbours, heard: as for Swarm. silent_line_s: as in HostLimits.
    """

    def __init__(
        self,
        identity: Identity,
        data: Path,
        *,
        describe: Callable[[list[str]], AdvertContent],
        serve: AnswerForPeer,
        find_blocks: FindBlocks,
        public_block: Callable[[bytes], bytes | None] | None = None,
        on_change: Callable[[], None] | None = None,
        mdns: bool = False,
        relay: RelaySection | None = None,
        nat_limits: NatLimits | None = None,
        dht: DhtSeat | None = None,
        neighbours: int = 32,
        heard: int = 1024,
        silent_line_s: float = 6.0,
    ) -> None:
        self._mdns, self._relay = mdns, relay or RelaySection(use=False)
        self._dht, self._neighbours, self._heard = dht, neighbours, heard
        self._silent_line_s = silent_line_s
        self._identity, self._data = identity, data
        self._describe, self._serve, self._find_blocks = describe, serve, find_blocks
        self._blocks = PublicBlocks(public_block)
        self._on_change = on_change
        self._since = trio.current_time()
        self.on_reach: Callable[[], None] = lambda: None
        self.generations: Generations | None = None
        self.host: Host | None = None
        self.swarm: Swarm | None = None
        self.relaying: Relaying | None = None
        self.nat: Nat | None = None
        self._nat_limits = nat_limits or NatLimits()
        self.bitswap: Bitswap | None = None
        self._met_before: frozenset[str] = frozenset()
        self._seated = trio.Event()

    # -- taking it ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def taken(self, membership: Membership) -> AsyncGenerator[None]:
        """Listen, look for the peers, serve them, until the block is left. Raises ListenError."""
        await trio.to_thread.run_sync(_load, "bitswap", abandon_on_cancel=True)
        from ..protocols.p2p.bitswap import Bitswap
        from ..protocols.p2p.errors import ListenFailed
        from ..protocols.p2p.host import Host
        from ..protocols.p2p.limits import HostLimits
        from ..protocols.p2p.reservations import Reservations
        from .swarm.admission import Admission
        from .swarm.nat import Nat
        from .swarm.peerbook import PeerBook
        from .swarm.swarm import Swarm

        host = Host(self._identity, [], membership.key, limits=HostLimits(silent_line_s=self._silent_line_s))
        # The swarm opens up by itself when it is joined later on, unless where to listen is settled already.
        settled = membership.listen if membership.chosen or membership.opened else ()
        section = _SwarmSection(
            name=membership.name,
            listen=settled,
            peers=(*(invite.text for invite in membership.invites), *self._relay.relays),
            key=membership.key.hex() if membership.key is not None else None,
        )
        book = PeerBook(paths.peers_file(self._data))
        admission = Admission(
            membership.name,
            self._identity.peer_id,
            owner=membership.owner,
            ticket=list(membership.ticket) if membership.ticket is not None else None,
            path=paths.roster_file(self._data, membership.owner) if membership.owner is not None else None,
            owner_key=_owner_key(self._data),
        )
        relaying = Relaying(
            host,
            Reservations(host, changed=lambda: self._reached(swarm)),
            enabled=self._relay.use,
            wanted=self._relay.places,
            named=[PeerId(address.rpartition("/p2p/")[2]) for address in self._relay.relays],
            lies=host.circuits.lies,
        )
        swarm = Swarm(
            host,
            self._identity,
            section,
            describe=lambda: self._describe(relaying.announced()),
            serve=self._serve,
            find_blocks=self._find_blocks,
            book=book,
            admission=admission,
            generations=self.generations,
            on_change=self._peers_changed,
            neighbours=self._neighbours,
            heard=self._heard,
            relaying=relaying,
        )
        self._wire(relaying, host, swarm)
        nat = Nat(host, swarm, self._nat_limits, on_change=lambda: self.on_reach())
        relaying.reach = nat.reach
        bitswap = Bitswap(host, self._blocks, may_read=lambda peer: swarm.admission.may(peer, "cache"))
        async with host.running():
            for address in membership.listen:
                try:
                    await host.listen(address)
                except ListenFailed as error:
                    if membership.chosen:
                        raise ListenError(f"{error}; change swarm.listen or --listen") from None
                    log.info("%s; taking another port", error)
                    await host.listen((EVERYWHERE if membership.opened else LOOPBACK).format(0))
            async with (
                bitswap.running(),
                nat.running(),
                swarm.running(),
                _beside(self._discovery(host, swarm, membership.key)),
                self._in_dhts(host, swarm, bitswap, membership.key, lambda: told_in_dht(host, relaying)),
            ):
                self.host, self.swarm, self.bitswap, self.nat = host, swarm, bitswap, nat
                self.relaying = relaying
                # Their answers are kept here, and stay good when they are away or gone for ever.
                self._met_before = frozenset(remembered.peer for remembered in await book.known(membership.name))
                self._seated.set()
                try:
                    yield
                finally:
                    self.host = self.swarm = self.bitswap = self.nat = self.relaying = None

    def _reached(self, swarm: Swarm) -> None:
        """Others can reach this node at other addresses than before."""
        swarm.changed()
        self.on_reach()

    def _wire(self, relaying: Relaying, host: Host, swarm: Swarm) -> None:
        """Who relays for this node, and for whom it relays when its owner says so."""
        relaying.peers = swarm.offers_of_relays
        host.on_connect(lambda peer: swarm.relay_came(peer) if relaying.is_urgent(peer) else None)
        host.on_upgrade(swarm.went_direct)
        if self._relay.serve:
            from ..protocols.p2p.relay import Relay, RelayLimits

            limits = RelayLimits(**{name: getattr(self._relay, name) for name in RelayLimits.__struct_fields__})
            anyone = self._relay.serve_for == "anyone"
            relaying.serving = Relay(host, limits, may_reserve=None if anyone else swarm.shows_itself)

    def _in_dhts(self, *around: Any) -> AbstractAsyncContextManager[None]:
        return self._dht.taken(*around) if self._dht is not None else nullcontext()

    def _peers_changed(self) -> None:
        if self._dht is not None:
            self._dht.peers_changed()
        if self._on_change is not None:
            self._on_change()

    async def _discovery(self, host: Host, swarm: Swarm, key: bytes | None) -> None:
        """Nodes on the local network, as long as the swarm keeps its name."""
        from ..protocols.p2p.mdns import Mdns, tag_of

        if self._mdns:
            tag = tag_of(swarm.name, key)
            await Mdns(self._identity.peer_id, tag, addresses=host.addresses, found=swarm.heard_of).run()

    # -- what the rest of the node sees ------------------------------------------------------------------------

    def candidates_for(self, model: str | None) -> Sequence[Provider]:
        """The connected peers that offer the model (None: any)."""
        return self.swarm.candidates_for(model) if self.swarm is not None else ()

    def gathering(self) -> bool:
        """Whether this node has just come up, and peers that it knows of are not connected, or have not said yet
        what they offer."""
        if trio.current_time() - self._since > GATHERING_S:
            return False
        if self.swarm is None:
            return True
        views = self.swarm.peers()
        heard = {view.peer for view in views if view.connected and view.told_at is not None}
        return len(heard) < len(views) or not heard >= self._met_before

    def anybody(self) -> bool:
        """Whether any other node is connected."""
        return self.host is not None and bool(self.host.connected())

    async def find(self, request_cid: bytes, timeout: float) -> list[bytes]:
        """Blocks that peers offer as the answer to a request, unverified. timeout in seconds."""
        return await self.swarm.find(request_cid, timeout) if self.swarm is not None else []

    def members(self) -> Sequence[PeerId]:
        """The connected peers with which generations are shared."""
        return self.swarm.members() if self.swarm is not None else ()

    async def lead(self, owner: PeerId, cid: bytes, lost: Collection[PeerId]) -> PeerId | None:
        """Who makes the answer to a request, as the owner of its key says; None when it does not say."""
        return await self.swarm.lead(owner, cid, lost) if self.swarm is not None else None

    def joined(self, leader: PeerId, cid: bytes) -> Provider | None:
        """What a connected peer makes under that key, as a provider."""
        return self.swarm.joined(leader, cid) if self.swarm is not None else None

    def is_member(self, peer: str) -> bool:
        """Whether the peer is, or was in an earlier run, one of the swarm, and was not put out of it since."""
        if self.swarm is None:
            return False
        met = peer in self._met_before and not self.swarm.is_barred(PeerId(peer))
        return met or self.swarm.is_member(PeerId(peer))

    async def fetch(self, cid: str) -> bytes | None:
        """A block by its CID from a connected peer, its hash checked; None when nobody gives it within 5 s.

        Where the owner has named nodes of an IPFS DHT, those are looked for that have announced it there.
        """
        if self.bitswap is None:
            return None
        from ..protocols.p2p.errors import BlockNotFound

        try:
            return await self.bitswap.fetch(cid, timeout=FETCH_S)
        except BlockNotFound:
            return await self._dht.fetch(cid, FETCH_S) if self._dht is not None else None
        except ValueError:
            return None

    def announce(self, cids: Sequence[bytes]) -> None:
        """Blocks that peers may have from now on: who has asked for one over bitswap before gets it."""
        if self.bitswap is not None:
            for cid in cids:
                self.bitswap.announce(cid)

    def peers(self) -> list[dict[str, Any]]:
        """Every peer as a table."""
        if self.swarm is None or self.nat is None:
            return []
        return [msgspec.to_builtins(view) | {"via_note": self.nat.note(view.peer)} for view in self.swarm.peers()]

    def reachability(self) -> dict[str, Any]:
        """What others see of this node, for the status."""
        return self.nat.view() if self.nat is not None else {}

    def relays(self) -> dict[str, Any]:
        """The places behind relays, and what is relayed here; empty while the seat is."""
        return self.relaying.view() if self.relaying is not None else {}

    def addresses(self) -> list[str]:
        return self.host.addresses() if self.host is not None else []

    def invite(self) -> str:
        """What another machine needs to join; "" while there is nothing to join. A secret in a private swarm."""
        if self.swarm is None:
            return ""
        from .swarm.invite import InviteError

        try:
            return self.swarm.invite()
        except InviteError:
            return ""

    def ports(self, known: P2pState) -> P2pState:
        """The ports in use, for the next start."""
        for address in self.addresses():
            port = int(address.split("/")[4])
            if addresses.is_local_multiaddr(address):
                known = msgspec.structs.replace(known, loopback=port)
            else:
                known = msgspec.structs.replace(known, everywhere=port)
        return known

    def changed(self) -> None:
        """What this node offers has changed: tell the peers."""
        if self.swarm is not None:
            self.swarm.changed()
        if self._dht is not None:
            self._dht.changed()

    async def seated(self) -> Swarm:
        """The swarm, as soon as it is up. ValueError when it is not within 20 s."""
        with trio.move_on_after(SEATED_S):
            await self._seated.wait()
        if self.swarm is None:
            raise ValueError("the node is still starting or already stopping; try again in a moment")
        return self.swarm
