"""Identify: a peer asks who this node is, what it speaks and where it listens, and is told what concerns it.

Protocol: https://github.com/libp2p/specs/blob/master/identify/README.md. The library's answer is the same for
everybody, loopback included, and falls back to the listeners' own addresses (0.0.0.0) when it is given none; hence this
one. It holds no signed peer record: that is one for all, too.

    host.handle(PROTOCOL, Identify(host).answer)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from libp2p.identity.identify.identify import AGENT_VERSION, PROTOCOL_VERSION
from libp2p.identity.identify.pb.identify_pb2 import Identify as Message
from libp2p.utils import encode_uvarint
from multiaddr import Multiaddr

from . import addresses
from .stream import P2pStream

if TYPE_CHECKING:
    from .host import Host

PROTOCOL = "/ipfs/id/1.0.0"


class Identify:
    def __init__(self, host: Host) -> None:
        self._host = host

    async def answer(self, stream: P2pStream) -> None:
        """StreamLost when the peer does not wait for it."""
        end = stream.endpoint
        observed = b"" if end is None else Multiaddr(addresses.to_text(end.remote_ip, end.remote_port)).to_bytes()
        told = self._host.told(end.remote_ip if end is not None else None)
        message = Message(
            protocol_version=PROTOCOL_VERSION,
            agent_version=AGENT_VERSION,
            public_key=self._host.public_key(),
            listen_addrs=[Multiaddr(addresses.to_text(*pair)).to_bytes() for pair in told],
            observed_addr=observed,
            protocols=self._host.protocols(),
        ).SerializeToString()
        await stream.write(encode_uvarint(len(message)) + message)
