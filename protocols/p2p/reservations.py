"""Places behind relays: a node that cannot be dialled reserves with some that can, and keeps its reservations.

    reservations = Reservations(host, changed=tell_everybody)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reservations.run)
        reservations.want([relay_id])
        reservations.addresses()      # ["/ip4/192.0.2.7/tcp/4642/p2p/RELAY/p2p-circuit/p2p/ME"]

A reservation lives with its connection. So nothing here polls: it is made when there is a connection to a wanted relay,
made again before it expires, and given up the moment that the connection is gone. Whom to want, and seeing to it that
there are connections, is the business of node/swarm/relaying.py.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections.abc import Callable, Iterable

import trio
from msgspec import Struct
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from ..peer_id import PeerId
from . import addresses, circuits, sockets
from .circuit import receive_hop, send
from .circuit_message import HOP, Hop, HopKind, Status
from .errors import CircuitRefused, P2pError, ProtocolViolation
from .host import Host

log = logging.getLogger("shoal.p2p")

ASK_S = 5.0
FIRST_RETRY_S, MAX_RETRY_S = 0.25, 60.0
MIN_TTL_S, MAX_TTL_S = 2.0, 3600.0  # between two renewals; a relay that grants less or more is not obeyed
RELAY_ADDRESSES = 2  # that are told of one relay


class Reservation(Struct, frozen=True):
    """expires: Unix time in seconds. addresses: of the relay, each with /p2p/RELAY."""

    relay: PeerId
    expires: float
    addresses: tuple[str, ...]


class Reservations:
    """changed: called when `held` has changed. held: by relay. problems: why a wanted relay has none."""

    def __init__(self, host: Host, *, changed: Callable[[], None]) -> None:
        self.held: dict[PeerId, Reservation] = {}
        self.problems: dict[PeerId, str] = {}
        self._host, self._changed = host, changed
        self._wanted: dict[PeerId, trio.CancelScope] = {}
        self._stirred: dict[PeerId, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        host.on_connect(self._stir)
        host.on_disconnect(self._lose)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def want(self, relays: Iterable[PeerId]) -> None:
        """From now on these, and no others. Before `run` it does nothing."""
        wanted = set(relays)
        for relay in set(self._wanted) - wanted:
            self._wanted.pop(relay).cancel()
        for relay in wanted - set(self._wanted):
            if self._nursery is not None:
                self._wanted[relay] = scope = trio.CancelScope()
                self._nursery.start_soon(self._keep, relay, scope)

    def addresses(self) -> list[str]:
        """Where this node can be dialled through its relays: of each relay one address before the second of any."""
        rounds = [[held.addresses[i : i + 1] for held in self.held.values()] for i in range(RELAY_ADDRESSES)]
        relays = [at for addresses_at in rounds for told in addresses_at for at in told]
        return [f"{at}/p2p-circuit/p2p/{self._host.peer_id}" for at in relays]

    def _stir(self, peer: PeerId) -> None:
        if (event := self._stirred.get(peer)) is not None:
            event.set()

    def _lose(self, peer: PeerId) -> None:
        if self.held.pop(peer, None) is not None:
            self._changed()
        self._stir(peer)

    async def _keep(self, relay: PeerId, scope: trio.CancelScope) -> None:
        failures = 0
        try:
            with scope:
                self._host.circuits.answer_for(relay)
                while True:
                    stirred = self._stirred[relay] = trio.Event()
                    if not self._host.connections(relay, relayed=False):
                        failures, wait_s = 0, math.inf
                    else:
                        try:
                            wait_s = await self._reserve(relay)
                            failures = 0
                        except (P2pError, trio.TooSlowError) as error:
                            self._failed(relay, str(error) or f"no answer within {ASK_S:g} s")
                            wait_s = min(FIRST_RETRY_S * 2.0**failures, MAX_RETRY_S)
                            failures = min(failures + 1, 16)
                    with trio.move_on_after(wait_s):
                        await stirred.wait()
        finally:
            self._host.circuits.answer_no_more_for(relay)
            self._stirred.pop(relay, None)
            self.problems.pop(relay, None)
            if self.held.pop(relay, None) is not None:
                self._changed()

    def _failed(self, relay: PeerId, why: str) -> None:
        self.problems[relay] = why
        held = self.held.get(relay)
        if held is not None and held.expires <= time.time():
            del self.held[relay]
            self._changed()

    async def _reserve(self, relay: PeerId) -> float:
        """Ask once; the seconds until it should be asked again."""
        with trio.fail_after(ASK_S):
            stream = await self._host.open_stream(relay, HOP, relayed=False)
            try:
                await send(stream, Hop(HopKind.RESERVE))
                answer = await receive_hop(stream)
            finally:
                await stream.reset()
        if answer.status != Status.OK or answer.expires is None:
            raise CircuitRefused(circuits.why(answer.status))
        left_s = min(max(answer.expires - time.time(), MIN_TTL_S), MAX_TTL_S)
        told = self._told(relay, answer.addresses)
        if not told:
            raise ProtocolViolation("the relay names no address that others could dial")
        before = self.held.get(relay)
        self.held[relay] = Reservation(relay, time.time() + left_s, told)
        self.problems.pop(relay, None)
        if before is None or before.addresses != told:
            log.info("reserved a place behind a relay", extra={"peer": relay})
            self._changed()
        return max(left_s / 2, 1.0)

    def _told(self, relay: PeerId, said: Iterable[bytes]) -> tuple[str, ...]:
        """Addresses of the relay: the one that it was dialled at first, for that has worked, then what it says."""
        found, local = dict[str, None](), True
        for connection in self._host.connections(relay, relayed=False):
            if (endpoint := sockets.endpoint(connection.muxed_conn)) is not None:
                local = local and ipaddress.ip_address(endpoint.remote_ip).is_loopback
                if endpoint.dialled:
                    found[addresses.to_text(endpoint.remote_ip, endpoint.remote_port)] = None
        for binary in said:
            try:
                text, _ = addresses.split(str(Multiaddr(binary)))
                ip = ipaddress.ip_address(addresses.host_port(addresses.parse_dialable(text, relay))[0])
            except (MultiaddrError, ValueError):
                continue
            if ip.is_global or (not found and (local or not ip.is_loopback)):
                found[text] = None
        return tuple(f"{text}/p2p/{relay}" for text in found)[:RELAY_ADDRESSES]
