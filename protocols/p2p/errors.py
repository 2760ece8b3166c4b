"""What can go wrong between two peers. Nothing here imports libp2p, so that everyone may name these errors."""

from __future__ import annotations

from collections.abc import Mapping


class P2pError(Exception):
    """Base of everything this folder raises."""


class StreamLost(P2pError):
    """A stream ended before its time: reset, the connection is gone, or the peer takes no data. Not a clean end."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotConnected(StreamLost):
    """There is no live connection to that peer: connect first."""


class ProtocolRefused(StreamLost):
    """The peer is there but does not speak the protocol asked for."""


class DialFailed(P2pError):
    """No address of a peer worked.

    `reasons`: one sentence per address tried, in the order given.
    """

    def __init__(self, peer: str, reasons: Mapping[str, str]) -> None:
        self.peer = peer
        self.reasons = dict(reasons)
        tried = "; ".join(f"{address}: {reason}" for address, reason in self.reasons.items())
        super().__init__(f"cannot reach {peer}: {tried or 'no address of it is known'}")


class CircuitRefused(P2pError):
    """A relay, or the node behind it, does not make the connection. The message says why."""


class RelayLied(P2pError):
    """A relay has led to another node than it said. No connection was made."""


class WrongPeer(P2pError):
    """Another than the expected peer has proved itself at the other end."""


class ListenFailed(P2pError):
    """An address cannot be listened on."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot listen on {address}: {reason}")
        self.address = address
        self.reason = reason


class BlockNotFound(P2pError):
    """No peer gave the block in time."""


class ProtocolViolation(P2pError):
    """A message breaks a format or one of our limits; its sender loses the stream it came on."""
