"""Making a client's connection: directly or through a proxy, with or without TLS, each step under its time limit."""

from __future__ import annotations

import os
import socket
import ssl

import trio

from .limits import ClientLimits
from .message import write_head
from .proxy import Proxy
from .response import BadResponse, ConnectFailed, ConnectionLost, ResponseParser
from .url import Origin
from .wire import RECEIVE_BYTES, TcpWire, TlsWire, Wire


async def dial(
    origin: Origin,
    proxy: Proxy | None,
    trust: ssl.SSLContext | None,
    limits: ClientLimits,
    connect_timeout: float | None,
) -> Wire:
    """A connection on which requests for `origin` can be sent. Raises ConnectFailed, which says at which step.

    trust: needed when the origin or the proxy speaks TLS. connect_timeout: seconds, instead of the limits'.
    """
    via = origin if proxy is None else proxy.origin
    whom = str(origin) if proxy is None else f"{origin} by the proxy {proxy.origin}"
    seconds = limits.connect_timeout_s if connect_timeout is None else connect_timeout
    tcp: TcpWire | None = None
    try:
        with trio.fail_after(seconds):
            stream = await trio.open_tcp_stream(via.host, via.port)
        tcp = TcpWire(stream)
        secure: trio.abc.Stream | None = None
        if via.tls:
            secure = await _handshake(stream, via, trust, limits)
        if proxy is not None and origin.tls:
            with trio.fail_after(seconds):
                await _tunnel(secure or stream, origin, proxy, limits)
            secure = await _handshake(secure or stream, origin, trust, limits)
    except BaseException as error:
        if tcp is not None:
            tcp.close()
        if isinstance(error, trio.TooSlowError):
            raise ConnectFailed(f"{whom}: no connection in time") from None
        if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError | OSError | ExceptionGroup):
            raise ConnectFailed(f"{whom}: {_reason(error)}") from error
        raise
    return tcp if secure is None else TlsWire(secure, tcp)


async def _handshake(
    stream: trio.abc.Stream, origin: Origin, trust: ssl.SSLContext | None, limits: ClientLimits
) -> trio.abc.Stream:
    if trust is None:
        raise ConnectFailed(f"{origin}: no TLS context")
    # Python 3.11.2 (Debian 12) sets this by itself, and a cut connection would look like a finished answer.
    trust.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    secure = trio.SSLStream(stream, trust, server_hostname=origin.host)
    with trio.fail_after(limits.tls_timeout_s):
        await secure.do_handshake()
    return secure


async def _tunnel(stream: trio.abc.Stream, origin: Origin, proxy: Proxy, limits: ClientLimits) -> None:
    """Ask the proxy for a connection to the origin (RFC 9110, 9.3.6)."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    where = f"{host}:{origin.port}"
    headers = [("host", where)]
    if proxy.authorization is not None:
        headers.append(("proxy-authorization", proxy.authorization))
    await stream.send_all(write_head(f"CONNECT {where} HTTP/1.1\r\n", headers, "\r\n"))
    parser = ResponseParser("CONNECT", limits)
    while not parser.has_head:
        data = await stream.receive_some(RECEIVE_BYTES)
        try:
            if data:
                parser.feed(bytes(data))
            else:
                parser.feed_end()
        except (BadResponse, ConnectionLost) as error:
            raise ConnectFailed(f"{origin}: the proxy {proxy.origin} did not answer CONNECT: {error}") from None
    if not 200 <= parser.status < 300:
        raise ConnectFailed(f"{origin}: the proxy {proxy.origin} refused CONNECT with status {parser.status}")


def _reason(error: BaseException) -> str:
    """Why, in the system's words; TLS hides its reason in the cause."""
    while error.__cause__ is not None and getattr(error, "errno", None) is None:
        error = error.__cause__
    if isinstance(error, ExceptionGroup):
        return "; ".join(sorted({_reason(each) for each in error.exceptions}))
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError):
        if error.errno is not None and not isinstance(error, ssl.SSLError | socket.gaierror):
            return os.strerror(error.errno)  # trio puts "Error connecting to (...)" before it
        return error.strerror or str(error)
    return str(error) or type(error).__name__
