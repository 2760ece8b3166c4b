"""The HTTP/1.1 server: listens, bounds its connections, watches their deadlines, and ends without losing an answer.

async with trio.open_nursery() as nursery:
    server = await nursery.start(serve, handler, ("127.0.0.1", 0))
    print(server.addresses)
    ...
    server.stop(grace_s=2)   # no new connections; `serve` returns when the requests at hand are answered
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import resource
import ssl
from collections.abc import Sequence
from typing import Protocol

import trio

from .connection import Connection, Gate, Handler, OnError, describe, render_refusal
from .hangup import HangupWatch
from .limits import Limits
from .message import Header, HttpError
from .wire import TcpWire, TlsWire, Wire

Address = tuple[str, int]
"""Host (a name or an IP address) and port; port 0 lets the system choose."""

logger = logging.getLogger(__name__)

_TICK_S = 0.5  # deadlines are looked at this often, so a limit may be passed by as much
_BACKLOG = 1024
_NO_ROOM_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_ROOM_PAUSE_S = 0.05
_NO_TLS = HttpError(400, "this port speaks HTTPS; ask it with https://")
_OVERFULL = HttpError(503, "the server has no room for another connection; try again shortly", [("retry-after", "1")])


def plain_error(error: Exception) -> tuple[int, list[Header], bytes]:
    """Renders an error as plain text; of anything but an HttpError, nothing is told, and its place is logged."""
    if not isinstance(error, HttpError):
        logger.error("a handler failed: %s", describe(error))
        error = HttpError(500, "the server failed to answer this request")
    return error.status, [("content-type", "text/plain; charset=utf-8"), *error.headers], error.message.encode()


class Started(Protocol):
    """What `nursery.start` passes as task_status; trio's own name for it differs between its versions' stubs."""

    def started(self, value: Server) -> None: ...


class Server:
    """A server that listens; `serve` makes it and hands it out."""

    def __init__(self, handler: Handler, limits: Limits, on_error: OnError, gate: Gate | None = None) -> None:
        self.handler, self.limits, self.on_error, self.gate = handler, limits, on_error, gate
        self.addresses: list[Address] = []
        """Where it listens, with the ports that the system chose."""
        self.stopping = False
        self._connections: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # in order: who waits longest for its client comes first
        self._hangups = HangupWatch()
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = min(limits.max_connections, math.inf if soft == resource.RLIM_INFINITY else soft // 2)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def stop(self, grace_s: float = 5.0) -> None:
        """Accept no more, close what is idle, and let requests at hand finish for `grace_s` seconds; then cut them."""
        self.stopping = True
        self._accepting.cancel()
        self._serving.deadline = min(self._serving.deadline, trio.current_time() + grace_s)
        for connection in self._connections:
            connection.finish()

    def busy(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)

    def waiting(self, connection: Connection) -> None:
        self._waiting[connection] = None

    async def _run(self, listeners: Sequence[trio.SocketListener], tls: ssl.SSLContext | None) -> None:
        with self._serving:
            async with trio.open_nursery() as watch:
                watch.start_soon(self._watch_deadlines)
                watch.start_soon(self._hangups.run)
                async with trio.open_nursery() as connections:
                    with self._accepting:
                        async with trio.open_nursery() as accepting:
                            for listener in listeners:
                                accepting.start_soon(self._accept, listener, tls, connections)
                    for listener in listeners:
                        listener.socket.close()
                watch.cancel_scope.cancel()

    async def _watch_deadlines(self) -> None:
        while True:
            await trio.sleep(_TICK_S)
            now = trio.current_time()
            for connection in self._connections:
                connection.check(now)

    async def _accept(
        self, listener: trio.SocketListener, tls: ssl.SSLContext | None, connections: trio.Nursery
    ) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _NO_ROOM_ERRNOS:
                    raise
                self._make_room()
                await trio.sleep(_NO_ROOM_PAUSE_S)
                continue
            connections.start_soon(self._serve_connection, stream, tls)

    def _make_room(self) -> bool:
        """Let go of the connection that has waited longest for its client, so that many idle ones stop no busy one."""
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.cut()
        return True

    async def _serve_connection(self, stream: trio.SocketStream, tls: ssl.SSLContext | None) -> None:
        tcp = TcpWire(stream)
        try:
            client = stream.socket.getpeername()[:2]
            if len(self._connections) >= self._room and not self._make_room():
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await tcp.send(render_refusal(_OVERFULL, self.on_error))
                return
            wire: Wire = tcp
            if tls is not None:
                secure = trio.SSLStream(stream, tls, server_side=True)
                try:
                    with trio.fail_after(self.limits.head_timeout_s):
                        await secure.do_handshake()
                except trio.BrokenResourceError as error:
                    if getattr(error.__cause__, "reason", None) == "HTTP_REQUEST":  # OpenSSL knows one when it sees it
                        await tcp.send(render_refusal(_NO_TLS, self.on_error))
                    return
                wire = TlsWire(secure, tcp)
            connection = Connection(self, wire, client)
            self._connections.add(connection)
            self._waiting[connection] = None
            fd = stream.socket.fileno()
            self._hangups.add(fd, connection.client_left)
            try:
                await connection.run()
            finally:
                self._hangups.remove(fd, connection.client_left)
                connection.close()
                self._connections.discard(connection)
                self._waiting.pop(connection, None)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # gone before it asked anything
        except Exception as error:
            logger.error("a connection failed: %s", describe(error))  # noqa: TRY400 (a traceback may quote a user)
        finally:
            tcp.close()


async def serve(
    handler: Handler,
    where: Address | str | Sequence[trio.SocketListener],
    *,
    limits: Limits | None = None,
    on_error: OnError = plain_error,
    gate: Gate | None = None,
    tls: ssl.SSLContext | None = None,
    task_status: Started = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `Server.stop` or cancelled. Raises OSError when an address cannot be listened on.

    where: an address, the same as "host:port" ("[::1]:80" for IPv6), or listeners that are open already.
    on_error: gives (status, headers, body) for an HttpError of the protocol or of a handler, and for whatever else a
    handler raises; it logs what it did not expect. It is also told of what ended an answer that had begun.
    gate: asked before a body is waited for; one that came along with its head is the handler's to refuse.
    tls: a server's context with its certificate; without one the server speaks plain HTTP.
    """
    server = Server(handler, limits or Limits(), on_error, gate)
    if isinstance(where, str):
        where = parse_address(where)
    if isinstance(where, tuple) and len(where) == 2 and isinstance(where[0], str):
        host, port = where
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    else:
        listeners = list(where)
    try:
        server.addresses = [listener.socket.getsockname()[:2] for listener in listeners]
        task_status.started(server)
        await server._run(listeners, tls)
    finally:
        for listener in listeners:
            listener.socket.close()


def parse_address(text: str) -> Address:
    """ "127.0.0.1:8642" or "[::1]:8642" as host and port. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address; write it as host:port, for example 127.0.0.1:8642")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is not an address; write IPv6 as [::1]:8642")
    return host, int(port)
