"""How much one peer, one address and all strangers together may take of a host. Every bound of it is named here."""

from __future__ import annotations

from msgspec import Struct


class HostLimits(Struct, frozen=True, kw_only=True):
    """Counts unless the name says otherwise; `_s` is seconds."""

    connections: int = 256
    connections_per_peer: int = 4  # two when both sides dial at once, and the remains of a line that died silently
    connections_per_address: int = 64  # inbound, from one IP address; a swarm on one machine has them all from one
    handshakes: int = 128  # inbound, unfinished
    handshakes_per_address: int = 32
    handshake_s: float = 5.0
    streams_per_connection: int = 256  # open at once, both directions
    inbound_streams_per_connection: int = 128  # with a handler running
    negotiation_s: float = 5.0  # for the protocol of one stream
    dial_s: float = 8.0  # for one address
    connect_s: float = 15.0  # for all addresses of a peer
    dial_stagger_s: float = 0.25  # before the next address is tried beside a slow one (RFC 8305)
    dial_addresses: int = 16
    dial_circuits: int = 4  # addresses through relays, besides
    circuit_lag_s: float = 0.1  # what direct addresses are ahead of those through relays
    silent_line_s: float = (
        6.0  # an idle line beyond this machine that delivers nothing is closed after; 0: by the kernel
    )
    close_s: float = 3.0  # for the whole host
