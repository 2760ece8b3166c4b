"""The TCP connections under libp2p's: where one begins and ends, one from a fresh port, one from the listener's own.

What belongs here: sockets that the library would not open by itself. Dialling back (autonat.py) has to leave from a
port that no NAT has seen, punching (punching.py) from the very port that the node listens on.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from typing import Any

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.net_stream import NetStream
from libp2p.security.pnet.protector import new_protected_conn
from msgspec import Struct

from .errors import ListenFailed

_INNER = ("secured_conn", "conn", "_raw", "_conn", "_wrapped", "stream")
PROBES = 3
_DEEPEST = 12  # wrappers between a muxed connection and its socket


class Endpoint(Struct, frozen=True):
    """Both ends of a TCP connection, and who dialled."""

    local_ip: str
    local_port: int
    remote_ip: str
    remote_port: int
    dialled: bool


def endpoint(muxed: Any) -> Endpoint | None:
    """Where a muxed connection runs; None for one through a relay, or whose socket is gone."""
    found = _socket_under(muxed)
    if found is None:
        return None
    try:
        local, remote = found.getsockname(), found.getpeername()
    except OSError:
        return None
    plain = (str(local[0]).removeprefix("::ffff:"), local[1], str(remote[0]).removeprefix("::ffff:"), remote[1])
    return Endpoint(*plain, dialled=bool(muxed.is_initiator))


def is_direct(muxed: Any) -> bool:
    """Whether a connection has a socket of its own under it; else it runs through a relay."""
    return _socket_under(muxed) is not None


def let_go(muxed: Any) -> None:
    """Before the close of a connection that is dead: what was not taken is dropped with it.

    Else the kernel goes on sending to nobody for minutes, and no connection between the same two ports can be made
    meanwhile (a punched one is always between the same two).
    """
    found = _socket_under(muxed)
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def notice_silence(muxed: Any, after_s: float) -> None:
    """From now on the kernel ends a connection over which nothing comes through for so many seconds, idle or not.

    Half of the time without a word, then three probes (RFC 9293, section 3.8.4); what was sent and is not taken counts
    by the same time (RFC 5482). Costs no wake-up here, and two packets of 52 bytes a line each after_s / 2 seconds.
    Nothing is done on a connection within the machine, which cannot be cut, or when after_s is 0.
    """
    found, end = _socket_under(muxed), endpoint(muxed)
    if found is None or end is None or after_s <= 0 or ipaddress.ip_address(end.remote_ip).is_loopback:
        return
    probe_s = max(1, round(after_s / 6))
    settings = (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", max(1, round(after_s) - PROBES * probe_s)),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", probe_s),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", round(after_s * 1000)),
    )
    for level, name, value in settings:
        with contextlib.suppress(OSError, AttributeError):  # not every system has each of them
            found.setsockopt(level, getattr(socket, name), value)


def _socket_under(muxed: Any) -> Any:
    # 0.8.1 has get_connection_type() for this, which fails under a private swarm's key and is late on relayed ones.
    layer = muxed
    for _ in range(_DEEPEST):
        if isinstance(layer, trio.SocketStream):
            return layer.socket
        if isinstance(layer, NetStream):
            return None
        name = next((name for name in _INNER if getattr(layer, name, None) is not None), None)
        if name is None:
            return None
        layer = getattr(layer, name)
    return None


async def fresh(ip: str, port: int) -> trio.SocketStream:
    """A connection from a port that was not used before. OSError when there is none."""
    return await _connect(ip, port, None)


async def from_port(ip: str, port: int, source: tuple[str, int]) -> trio.SocketStream:
    """A connection that leaves from `source`, which a listener with SO_REUSEPORT may hold. OSError otherwise."""
    return await _connect(ip, port, source)


async def _connect(ip: str, port: int, source: tuple[str, int] | None) -> trio.SocketStream:
    made = trio.socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if source is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(AttributeError):  # no SO_REUSEPORT: the bind below says so
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            await made.bind(source)
        await made.connect((ip, port))
    except BaseException:
        made.close()
        raise
    return trio.SocketStream(made)


def raw(stream: trio.SocketStream, psk: str | None, *, initiator: bool) -> Any:
    """The library's form of a connection, under the key (64 hex digits) of a private swarm."""
    made = RawConnection(TrioTCPStream(stream), initiator)
    return made if psk is None else new_protected_conn(made, psk)


def check_free(address: str, host: str, port: int) -> None:
    """ListenFailed when somebody listens there: 0.8.1 sets SO_REUSEPORT, by which two nodes would share a port."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ListenFailed(address, f"{error.strerror or error}; choose another with `listen`") from None
