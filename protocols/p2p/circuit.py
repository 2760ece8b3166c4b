"""A circuit: the connection between two nodes that runs over streams of a relay between them.

What belongs here: talking to a relay over a stream, and dressing what is left of that stream as the raw connection that
libp2p secures. Who offers circuits is relay.py, who dials and answers them circuits.py. Noise and Yamux run end to end:
the relay sees only how much goes over it.
"""

from __future__ import annotations

from typing import Any

from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from ..peer_id import PeerId
from .circuit_message import MAX_MESSAGE_BYTES, Hop, Stop, decode_hop, decode_stop, frame
from .errors import ProtocolViolation, StreamLost
from .stream import P2pStream

READ_BYTES = 256 * 1024


async def send(stream: P2pStream, message: Hop | Stop) -> None:
    await stream.write(frame(message))


async def receive_hop(stream: P2pStream) -> Hop:
    """ProtocolViolation when it is none, StreamLost when nothing comes any more. Not a byte beyond it is read."""
    return decode_hop(await _receive(stream))


async def receive_stop(stream: P2pStream) -> Stop:
    return decode_stop(await _receive(stream))


async def _receive(stream: P2pStream) -> bytes:
    size = shift = 0
    while True:
        byte = (await _exactly(stream, 1))[0]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 14:
            raise ProtocolViolation("a message about a circuit is too long")
    if size > MAX_MESSAGE_BYTES:
        raise ProtocolViolation("a message about a circuit is too long")
    return await _exactly(stream, size)


async def _exactly(stream: P2pStream, n: int) -> bytes:
    data = b""
    while len(data) < n:
        if not (more := await stream.read(n - len(data))):
            raise StreamLost("the stream ended in the middle of a message about a circuit")
        data += more
    return data


class Circuit:
    """The raw connection under a relayed one; libp2p's IRawConnection by shape.

    carrier: the stream to the relay. relay: whose. peer: who is at the other end, as far as was said.
    """

    def __init__(self, carrier: P2pStream, *, peer: PeerId, initiator: bool) -> None:
        self.is_initiator = initiator
        self.relay = carrier.remote
        self._carrier = carrier
        self._address = Multiaddr(f"/p2p/{carrier.remote}/p2p-circuit/p2p/{peer}")

    async def read(self, n: int | None = None) -> bytes:
        try:
            return await self._carrier.read(n or READ_BYTES)
        except StreamLost as error:
            raise ConnectionClosedError(error.reason, transport="circuit") from None

    async def write(self, data: bytes) -> None:
        try:
            await self._carrier.write(data)
        except StreamLost as error:
            raise ConnectionClosedError(error.reason, transport="circuit") from None

    async def close(self) -> None:
        await self._carrier.close()

    def get_remote_address(self) -> None:
        """There is none: the relay's would be taken for the peer's."""

    def get_transport_addresses(self) -> list[Any]:
        return [self._address]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.RELAYED


def peer_of(binary: bytes | None) -> PeerId:
    """The peer that a message names. ProtocolViolation when it names none."""
    if binary is None or len(binary) not in (34, 38):
        raise ProtocolViolation("a message about a circuit names no peer")
    return PeerId(str(ID(binary)))


def binary_of(peer: PeerId) -> bytes:
    data: bytes = ID.from_base58(peer).to_bytes()
    return data
