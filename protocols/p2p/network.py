"""The library's swarm with admission of its own, and the builder of a libp2p host on it.

What belongs here: who may connect and how many; TCP + Noise + Yamux and nothing else. `new_host()` is not used: its
defaults accept /plaintext/2.0.0, by which any peer id can be forged, and start QUIC, SECIO, TLS and a resource manager
whose stream counts leak.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.security.pnet.protector import new_protected_conn
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader

from . import sockets
from .errors import WrongPeer
from .limits import HostLimits

log = logging.getLogger("shoal.p2p")

came_in_mark: ContextVar[bool] = ContextVar("came_in", default=False)  # the task serves what a listener has accepted


class Network(Swarm):  # type: ignore[misc]
    """A swarm whose inbound side is counted per address and gives everything back when a connection ends."""

    def __init__(self, *args: Any, limits: HostLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._inbound: Counter[str] = Counter()
        self._handshakes: Counter[str] = Counter()
        self._awaited: dict[Any, trio.Event] = {}  # by peer: set when it has come in through a listener
        self._watch_handshakes()
        self.refused = 0  # inbound connections closed because a limit was reached
        self.admitting = True

    def _admits(self, address: str) -> bool:
        limits = self._limits
        return (
            self.admitting
            and self._inbound[address] < limits.connections_per_address
            and self._handshakes[address] < limits.handshakes_per_address
            and self._handshakes.total() < limits.handshakes
            and len(self.get_connections()) < limits.connections
        )

    async def _handle_inbound_connection(self, read_write_closer: Any, maddr: Any) -> None:
        # 0.8.1 parks this task, and the slot of its inbound limiter, until the whole swarm ends: after as many
        # connections as it has slots the node would accept nobody (test_p2p_host: restarts of a peer leak nothing).
        came_in_mark.set(True)
        remote = read_write_closer.get_remote_address()
        address = remote[0] if remote else "?"
        try:
            if not self._admits(address):
                self.refused += 1
                return
            self._inbound[address] += 1
            try:
                muxed = await self._upgrade(RawConnection(read_write_closer, False), maddr, address)
                if muxed is not None:
                    await muxed.event_closed.wait()
            finally:
                self._less(self._inbound, address)
        finally:
            with trio.CancelScope(shield=True), contextlib.suppress(OSError, trio.ClosedResourceError):
                await read_write_closer.close()

    async def _upgrade(self, raw: Any, maddr: Any, address: str) -> Any:
        self._handshakes[address] += 1
        try:
            return await self.upgrade_inbound_raw_conn(raw, maddr)
        except Exception as error:  # whatever a stranger sends ends that stranger's connection only
            log.debug("inbound connection from %s refused: %s", address, type(error).__name__)
            return None
        finally:
            self._less(self._handshakes, address)

    @staticmethod
    def _less(counts: Counter[str], address: str) -> None:
        counts[address] -= 1
        if counts[address] <= 0:
            del counts[address]

    def _watch_handshakes(self) -> None:
        secure = self.upgrader.upgrade_security

        async def watched(raw: Any, is_initiator: bool, peer_id: Any = None) -> Any:
            secured = await secure(raw, is_initiator, peer_id)
            # The tasks of a connection inherit the mark, so a circuit through a relay has it, too.
            came_in = came_in_mark.get() and not is_initiator and sockets.is_direct(raw)
            if came_in and (event := self._awaited.get(secured.get_remote_peer())) is not None:
                event.set()
            return secured

        self.upgrader.upgrade_security = watched

    @contextlib.contextmanager
    def awaiting(self, peer: Any) -> Iterator[trio.Event]:
        """The event is set when that peer, proved by its handshake, comes in through one of this node's listeners."""
        event = self._awaited.setdefault(peer, trio.Event())
        try:
            yield event
        finally:
            self._awaited.pop(peer, None)

    async def dial_one(self, address: Any, peer: Any) -> Any:
        """A connection to `peer` by this very address. SwarmException says why not."""
        connection = await self._dial_addr_single_attempt(address, peer)
        if connection.is_closed or connection.muxed_conn.event_shutting_down.is_set():
            raise SwarmException("the peer closed the connection at once")
        return connection

    async def carry(self, circuit: Any, peer: Any, relay: str, *, outbound: bool) -> Any:
        """A connection with `peer` over a circuit of a relay. WrongPeer when another proves itself there; then, as
        after every failure, nothing of it is left.

        The library wraps only inbound circuits in a private swarm's key, and registers whoever is behind one.
        """
        raw = circuit if self.psk is None else new_protected_conn(circuit, self.psk)
        try:
            with trio.fail_after(self._limits.handshake_s):
                secured = await self._secure(raw, peer, outbound)
                muxed = await self.upgrader.upgrade_connection(secured, peer)
                muxed.relay = relay
                connection = await self.add_conn(muxed, direction="outbound" if outbound else "inbound")
            if connection.is_closed or connection.muxed_conn.event_shutting_down.is_set():
                raise SwarmException("the peer closed the connection at once")
        except BaseException:
            with trio.CancelScope(shield=True):
                await circuit.close()
            raise
        return connection

    async def _secure(self, raw: Any, peer: Any, outbound: bool) -> Any:
        try:
            secured = await self.upgrader.upgrade_security(raw, outbound, peer if outbound else None)
        except SecurityUpgradeFailure as error:
            if isinstance(error.__cause__, PeerIDMismatchesPubkey) or "mismatch" in str(error):
                raise WrongPeer(str(peer)) from None
            raise
        if secured.get_remote_peer() != peer:
            raise WrongPeer(str(peer))
        return secured


def build(
    seed: bytes, psk: bytes | None, limits: HostLimits, addrs_factory: Callable[[list[Any]], list[Any]]
) -> tuple[Any, Network]:
    """A libp2p host and its network; `addrs_factory` turns listen addresses into advertised ones."""
    keys = ed25519_key_pair(seed)
    peer = ID.from_pubkey(keys.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer, keys)
    network = Network(
        peer,
        peerstore,
        TransportUpgrader(
            secure_transports_by_protocol={NOISE: Noise(keys, noise_privkey=x25519_key_pair().private_key)},
            muxer_transports_by_protocol={YAMUX: Yamux},
            negotiate_timeout=int(limits.negotiation_s),
        ),
        transports=[TCP()],
        connection_config=ConnectionConfig(
            max_connections=limits.connections,
            min_connections=0,
            low_watermark=0,  # the library must not dial peers of its own choice
            high_watermark=limits.connections,
            max_connections_per_peer=limits.connections_per_peer,
            inbound_upgrade_timeout=limits.handshake_s,
            outbound_upgrade_timeout=limits.handshake_s,
            inbound_stream_protocol_negotiation_timeout=limits.negotiation_s,
            outbound_stream_protocol_negotiation_timeout=limits.negotiation_s,
            auto_connect_interval=3600.0,
        ),
        psk=psk.hex() if psk is not None else None,
        limits=limits,
    )
    host = BasicHost(network=network, negotiate_timeout=int(limits.negotiation_s), addrs_factory=addrs_factory)
    return host, network
