"""What a connection may cost: sizes in bytes, times in seconds. A limit that is passed has one answer, named here.

Server side, in the order a request meets them: too many connections 503 (or the connection that waits longest goes),
a slow head or body 408, a long head 431, a long body 413, a client that does not read: the connection is cut.
"""

from __future__ import annotations

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server grants its clients."""

    max_head_bytes: int = 32 * 1024
    """Request line and header lines together; the trailers of a chunked body get as much again."""
    max_headers: int = 100
    max_body_bytes: int = 32 * 1024 * 1024
    head_timeout_s: float = 10.0
    """From the first byte of a request (or of the TLS handshake) to the end of its head."""
    body_timeout_s: float = 60.0
    """From the end of the head to the end of the body."""
    idle_timeout_s: float = 75.0
    """Between requests on a kept connection, and before the first."""
    write_timeout_s: float = 30.0
    """Without any progress in sending, because the client does not read."""
    max_connections: int = 16384
    """Never more than half of what the process may open at once."""
    max_requests_per_connection: int = 1_000_000


class ClientLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client grants the servers it asks, and how long it keeps their connections."""

    max_head_bytes: int = 64 * 1024
    max_headers: int = 200
    connect_timeout_s: float = 10.0
    """For the name, the TCP connection and a proxy's CONNECT; TLS has its own."""
    tls_timeout_s: float = 10.0
    max_idle_per_origin: int = 64
    idle_s: float = 50.0
    """A kept connection unused for longer is closed; below the 60 s after which common servers close theirs."""
