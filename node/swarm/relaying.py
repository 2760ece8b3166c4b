"""Relays as the swarm uses them: behind whom this node takes a place, what it tells of that, and whom it relays for.

A node that others cannot dial takes a place behind a few relays (two, so that the death of one costs nothing) and tells
these addresses beside its own. Which peers relay they say in their adverts; `relay.relays` names others. What belongs
here: the policy. Reservations are kept by protocols/p2p/reservations.py, bytes carried by protocols/p2p/relay.py.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import trio
from msgspec import Struct

from ...protocols.peer_id import PeerId
from .. import addresses
from .peer import Peer

log = logging.getLogger("shoal.swarm")

LOOK_EVERY_S = 5.0
MEMBER_WITHIN_S = 1.0  # a reservation may come a moment before the hello that shows who asks
DOUBT_S = 300.0
URGENT_RETRY_S = 0.5  # between two dials of a relay that this node has a place behind, or had
URGENT_DIAL_S = 1.0  # for one of these dials; each fourth may take as long as any


class Places(Protocol):
    """What is wanted of protocols/p2p/reservations.py."""

    held: Any
    problems: dict[PeerId, str]

    async def run(self) -> None: ...
    def want(self, relays: Iterable[PeerId], /) -> None: ...
    def addresses(self) -> list[str]: ...


class Host(Protocol):
    """What is wanted of protocols/p2p/host.py."""

    def addresses(self) -> list[str]: ...
    def public_addresses(self) -> list[str]: ...  # those that may be passed on
    def remote_ips(self, peer_id: PeerId, /) -> list[str]: ...


class Serving(Protocol):
    """What is wanted of protocols/p2p/relay.py."""

    def stats(self) -> dict[str, Any]: ...


class Offer(Struct, frozen=True):
    """A connected peer behind which a place could be taken. named: by the owner; public: it is reached over the
    internet; held: there is a place already; doubted: it has refused one, or lied."""

    peer: PeerId
    rtt_s: float
    named: bool = False
    public: bool = False
    held: bool = False
    doubted: bool = False


def behind_whom(offers: Iterable[Offer], places: int, *, reachable: bool) -> list[PeerId]:
    """The relays to use: those that the owner has named, those held, then the nearest. A node that others can dial
    uses only what its owner has named. A relay on this network would lead nobody further than this node itself does.
    """
    of_use = [offer for offer in offers if offer.named or (offer.public and not reachable)]
    of_use.sort(key=lambda offer: (not offer.named, not offer.held, offer.doubted, offer.rtt_s, offer.peer))
    return [offer.peer for offer in of_use[:places]]


class Relaying:
    """enabled: whether places are taken at all. places: how many. named: relays of the configuration. serving: this
    node as a relay for others; None: it is none. lies: how often a relay has led to another node than it said.
    """

    def __init__(
        self,
        host: Host,
        places: Places,
        *,
        enabled: bool,
        wanted: int,
        named: Iterable[PeerId] = (),
        serving: Serving | None = None,
        lies: Mapping[PeerId, int] | None = None,
    ) -> None:
        self.named = frozenset(named)
        self.serving = serving
        self._lies = lies if lies is not None else {}
        self.peers: Callable[[], Iterable[tuple[Peer, bool]]] = lambda: ()  # (peer, whether it says that it relays)
        self.reach: Callable[[], str] = lambda: "unknown"  # from the internet, as others found: "public", "private"
        self._host, self._places = host, places
        self._enabled, self._wanted = enabled, wanted
        self._used: set[PeerId] = set()
        self._refused: dict[PeerId, float] = {}  # relays that have given no place, and until when others come first
        self._stirred = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._places.run)
            while True:
                self._stirred = trio.Event()
                self._look()
                with trio.move_on_after(LOOK_EVERY_S):
                    await self._stirred.wait()

    def stir(self) -> None:
        """A peer has come, gone or said something new."""
        self._stirred.set()

    def _look(self) -> None:
        offers = []
        for peer, relays in self.peers() if self._enabled else ():
            named = peer.id in self.named
            if peer.usable and (relays or named):
                public = any(is_public(ip) for ip in self._host.remote_ips(peer.id))
                rtt_s = peer.rtt_s if peer.rtt_s is not None else math.inf
                held = peer.id in self._places.held
                offers.append(Offer(peer.id, rtt_s, named, public, held, self._is_doubted(peer.id)))
        chosen = behind_whom(offers, self._wanted, reachable=self._is_reachable())
        # One that is away for a moment is still wanted: it gets its place back with its connection.
        away = [relay for relay in self._used if relay not in {offer.peer for offer in offers}]
        self._used = {*chosen, *away[: max(0, 2 * self._wanted - len(chosen))]} if self._enabled else set()
        self._places.want(self._used)

    def _is_doubted(self, relay: PeerId) -> bool:
        now = trio.current_time()
        if relay in self._places.problems:
            self._refused[relay] = now + DOUBT_S
        return self._refused.get(relay, -math.inf) > now or bool(self._lies.get(relay))

    def _is_reachable(self) -> bool:
        """What others found counts for more than an address that looks public: there may be a firewall before it."""
        if (found := self.reach()) != "unknown":
            return found == "public"
        return any(is_public(addresses.multiaddr_host(address)) for address in self._host.addresses())

    # -- what is told --------------------------------------------------------------------------------------------

    def is_urgent(self, peer_id: PeerId) -> bool:
        """Whether to be without this peer is to be without a place, so that it is dialled in short order."""
        return peer_id in self._used or peer_id in self.named

    def announced(self) -> list[str]:
        """Where others can dial this node, what serves strangers best first. Addresses of this machine only stand there
        when there are no others."""
        own = self._host.public_addresses()
        public = [address for address in own if is_public(addresses.multiaddr_host(address))]
        return [*public, *self._places.addresses(), *(address for address in own if address not in public)]

    def view(self) -> dict[str, Any]:
        """For the status: JSON-compatible."""
        held = [
            {"relay": relay, "expires": round(place.expires, 1), "addresses": list(place.addresses)}
            for relay, place in self._places.held.items()
        ]
        return {
            "places": held,
            "problems": dict(self._places.problems),
            "lies": dict(self._lies),
            "serves": self.serving.stats() if self.serving is not None else None,
        }


def is_public(host: str) -> bool:
    """Whether an address belongs to the internet; a name does, as far as is known here."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return host != "localhost"


def relays_in(told: Sequence[str]) -> set[PeerId]:
    """The relays through which addresses lead."""
    return {PeerId(found) for address in told if (found := addresses.relay_of(address)) is not None}
