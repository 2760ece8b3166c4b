"""Connections through a relay, from both ends: dialling one, and answering when a relay says that somebody calls.

    circuits = Circuits(host)
    await circuits.dial(relay_id, ["/ip4/192.0.2.7/tcp/4642"], peer_id)      # then host.open_stream(peer_id, ...)
    circuits.answer_for(relay_id)                                             # from now on its calls are answered

A relay says who is at the other end, and the handshake proves it: what does not match enters no table, and the relay is
told of by `lies`. One that was caught is not called for that peer again for a while, and not at all when it has lied
about several peers (about one, that peer may have lent its place away).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID

from ..peer_id import PeerId
from .circuit import Circuit, binary_of, peer_of, receive_hop, receive_stop, send
from .circuit_message import HOP, STOP, Hop, HopKind, Status, Stop, StopKind
from .errors import CircuitRefused, DialFailed, ProtocolViolation, RelayLied, WrongPeer
from .stream import P2pStream

if TYPE_CHECKING:
    from .host import Host

log = logging.getLogger("shoal.p2p")

CALL_S = 6.0  # for the relay's answer; it gives the other node 5 s
UNUSED_S = 1.0  # after which a relay that nobody uses is left
RELAY_S = 4.0  # for a connection with the relay itself
MAX_ANSWERED = 64  # circuits at once that others have made to this node
MAX_HANDSHAKES = 16
DISTRUST_S = 600.0
LIARS_PEERS = 2  # peers about whom a relay has lied, from which on it is not called for anybody

_WHY = {
    Status.RESERVATION_REFUSED: "the relay takes no more reservations",
    Status.RESOURCE_LIMIT_EXCEEDED: "the relay has reached one of its limits",
    Status.PERMISSION_DENIED: "the relay, or the node behind it, does not allow it",
    Status.CONNECTION_FAILED: "the node behind the relay does not answer",
    Status.NO_RESERVATION: "the node is not behind this relay now",
}


def why(status: int | None) -> str:
    """What a relay's status means, in a sentence."""
    return _WHY.get(status, f"the relay answered with status {status}")  # type: ignore[call-overload, no-any-return]


class Circuits:
    """lies: by relay, how often another than the promised node was behind it."""

    def __init__(self, host: Host) -> None:
        self.lies: Counter[PeerId] = Counter()
        self._host = host
        self._answering: set[PeerId] = set()
        self._answered = self._handshakes = 0
        self._distrusted: dict[tuple[PeerId, PeerId], float] = {}  # (relay, peer) -> until when, trio time
        host.handle(STOP, self._answer)

    # -- dialling ------------------------------------------------------------------------------------------------

    async def dial(
        self, relay: PeerId, relay_addresses: Sequence[str], peer: PeerId, *, after: trio.Event | None = None
    ) -> Any:
        """A connection with `peer` through `relay`. CircuitRefused, RelayLied, StreamLost; DialFailed for the relay.

        after: set when the peer may be called; the connection to the relay is made before.
        """
        if self._is_distrusted(relay, peer):
            raise CircuitRefused("this relay has led to another node than it said; it is not asked for ten minutes")
        made, connection = await self._reach(relay, relay_addresses), None
        try:
            if after is not None:
                await after.wait()
            stream = await self._host.open_stream(relay, HOP, relayed=False)
            try:
                await self._call(stream, peer)
                circuit = Circuit(stream, peer=peer, initiator=True)
                connection = await self._host.network.carry(circuit, ID.from_base58(peer), relay, outbound=True)
            except WrongPeer:
                self._lied(relay, peer)
                raise RelayLied(f"the relay {relay} has led to another node than {peer}") from None
            finally:
                if connection is None:
                    await stream.reset()
        finally:
            if made:
                self._host.beside(self._leave, relay, connection)
        return connection

    async def _call(self, stream: P2pStream, peer: PeerId) -> None:
        try:
            with trio.fail_after(CALL_S):
                await send(stream, Hop(HopKind.CONNECT, peer=binary_of(peer)))
                answer = await receive_hop(stream)
        except trio.TooSlowError:
            raise CircuitRefused(f"the relay did not answer within {CALL_S:g} s") from None
        except ProtocolViolation as error:
            raise CircuitRefused(str(error)) from None
        if answer.kind is not HopKind.STATUS or answer.status != Status.OK:
            raise CircuitRefused(why(answer.status))

    async def _reach(self, relay: PeerId, addresses: Sequence[str]) -> bool:
        """A connection to the relay itself. Whether it was made for this."""
        if self._host.connections(relay, relayed=False):
            return False
        try:
            with trio.fail_after(RELAY_S):
                await self._host.connect(relay, addresses)
        except trio.TooSlowError:
            raise DialFailed(relay, {"relay": f"no answer within {RELAY_S:g} s"}) from None
        return True

    async def _leave(self, relay: PeerId, connection: Any) -> None:
        """Close the connection to a relay that was made for one circuit, once nobody uses it any more."""
        if connection is not None:
            await connection.muxed_conn.event_closed.wait()
        await trio.sleep(UNUSED_S)
        if relay not in self._answering:
            await self._host.disconnect_unused(relay)

    # -- being called --------------------------------------------------------------------------------------------

    def answer_for(self, relay: PeerId) -> None:
        """Calls that this relay announces are answered, because this node has reserved there."""
        self._answering.add(relay)

    def answer_no_more_for(self, relay: PeerId) -> None:
        self._answering.discard(relay)

    async def _answer(self, stream: P2pStream) -> None:
        relay = stream.remote
        try:
            with trio.fail_after(CALL_S):
                call = await receive_stop(stream)
                caller = peer_of(call.peer)
        except (ProtocolViolation, trio.TooSlowError):
            await send(stream, Stop(StopKind.STATUS, status=Status.MALFORMED_MESSAGE))
            return
        status = self._verdict(call, stream, caller)
        if status is not Status.OK:
            await send(stream, Stop(StopKind.STATUS, status=status))
            return
        self._answered += 1
        try:
            muxed = await self._let_in(stream, caller)
            if muxed is not None:
                await muxed.event_closed.wait()
        except WrongPeer:
            self._lied(relay, caller)
        except (BaseLibp2pError, trio.TooSlowError) as error:
            log.debug("a call through a relay came to nothing: %s", type(error).__name__)
        finally:
            self._answered -= 1
            await stream.reset()

    def _verdict(self, call: Stop, stream: P2pStream, caller: PeerId) -> Status:
        relay = stream.remote
        if call.kind is not StopKind.CONNECT:
            return Status.UNEXPECTED_MESSAGE
        if relay not in self._answering or stream.relayed or caller in (relay, self._host.peer_id):
            return Status.PERMISSION_DENIED
        if self._is_distrusted(relay, caller) or self._host.is_barred(caller):
            return Status.PERMISSION_DENIED
        if self._answered >= MAX_ANSWERED or self._handshakes >= MAX_HANDSHAKES:
            return Status.RESOURCE_LIMIT_EXCEEDED
        return Status.OK

    async def _let_in(self, stream: P2pStream, caller: PeerId) -> Any:
        self._handshakes += 1
        try:
            await send(stream, Stop(StopKind.STATUS, status=Status.OK))
            circuit = Circuit(stream, peer=caller, initiator=False)
            connection = await self._host.network.carry(circuit, ID.from_base58(caller), stream.remote, outbound=False)
        finally:
            self._handshakes -= 1
        return connection.muxed_conn

    # -- trust ---------------------------------------------------------------------------------------------------

    def _lied(self, relay: PeerId, peer: PeerId) -> None:
        self.lies[relay] += 1
        self._distrusted[relay, peer] = trio.current_time() + DISTRUST_S
        log.warning("a relay has lied about who is behind it", extra={"peer": relay})

    def _is_distrusted(self, relay: PeerId, peer: PeerId) -> bool:
        now = trio.current_time()
        for key in [key for key, until in self._distrusted.items() if until <= now]:
            del self._distrusted[key]
        return (relay, peer) in self._distrusted or self.is_liar(relay)

    def is_liar(self, relay: PeerId) -> bool:
        """Whether the relay has lately lied about several peers, so that it is of no use to anybody."""
        return sum(who == relay for who, _ in self._distrusted) >= LIARS_PEERS
