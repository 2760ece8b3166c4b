"""The HTTP/1.1 client: requests over pooled connections, answers as they come.

    client = Client()
    async with client.running():
        async with client.request("POST", url, headers=[("content-type", "application/json")], body=data) as response:
            if response.status == 200:
                async for chunk in response:
                    ...

Deadlines for an answer are the caller's scopes; connecting and TLS have limits of their own. Leaving the context before
the answer's end closes the connection, which is how a server learns that nobody listens any more.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping
from types import TracebackType

import trio
import truststore

from .dial import dial
from .limits import ClientLimits
from .message import Header, Headers, find_header, write_head
from .proxy import Proxies, Proxy
from .response import BadResponse, ClientError, ConnectFailed, ConnectionLost, ResponseParser
from .url import Origin, Url, parse_url
from .wire import Wire

__all__ = ["BadResponse", "Call", "Client", "ClientError", "ConnectFailed", "ConnectionLost", "Response"]


@functools.lru_cache(maxsize=256)
def _head_of(method: str, url: Url, headers: tuple[Header, ...], user_agent: str, proxy: Proxy | None) -> bytes:
    """A request's head but for its length: a caller's requests to one place have the same."""
    origin, target, tail = url.origin, url.target, ""
    if not method.isalpha() or not method.isascii():
        raise ValueError("a method consists of letters")
    if proxy is not None and not origin.tls:
        target = f"{origin}{target}"
        if proxy.authorization is not None:
            tail = f"proxy-authorization: {proxy.authorization}\r\n"
    if find_header(headers, "user-agent") is None:
        tail += f"user-agent: {user_agent}\r\n"
    return write_head(f"{method} {target} HTTP/1.1\r\nhost: {origin.authority}\r\n", headers, tail)


_BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "CONNECT", "TRACE"})


class _Idle:
    __slots__ = ("since", "wire")

    def __init__(self, wire: Wire, since: float) -> None:
        self.wire, self.since = wire, since


class Client:
    """Connections to any number of origins. One client serves many tasks; nothing is limited but idle connections.

    ssl_context: for https; by default the system's trust store decides. environ: where proxies are looked up.
    Raises ValueError when the environment names a proxy that cannot be used.
    """

    def __init__(
        self,
        limits: ClientLimits | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        environ: Mapping[str, str] | None = None,
        user_agent: str = "shoal",
    ) -> None:
        self.limits = limits or ClientLimits()
        self._ssl_context = ssl_context
        self._proxies = Proxies(os.environ if environ is None else environ)
        self._user_agent = user_agent
        self._idle: dict[Origin, list[_Idle]] = {}
        self._open = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The pool's life: idle connections are closed in time, and all of them at the end."""
        self._open = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_expired)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._open = False
            for idle in [idle for pooled in self._idle.values() for idle in pooled]:
                idle.wire.close()
            self._idle.clear()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[Header] = (),
        body: bytes | None = None,
        connect_timeout: float | None = None,
    ) -> Call:
        """`async with client.request(...) as response:` sends the request and waits for the answer's head.

        headers: names in lower case; Host, Content-Length and User-Agent are added. connect_timeout: seconds, instead
        of the limits'. Raises ValueError for a URL or header that cannot be sent; on entry ConnectFailed,
        ConnectionLost, BadResponse. A kept connection that turns out dead before a byte of the answer came is
        replaced by a new one, once: servers close idle connections whenever they like.
        """
        return Call(self, method, parse_url(url), tuple(headers), body or b"", connect_timeout)

    @property
    def idle_connections(self) -> int:
        return sum(len(pooled) for pooled in self._idle.values())

    async def _close_expired(self) -> None:
        while True:
            await trio.sleep(self.limits.idle_s / 4)
            oldest = trio.current_time() - self.limits.idle_s
            for origin, pooled in list(self._idle.items()):
                for idle in pooled:
                    if idle.since <= oldest:
                        idle.wire.close()
                pooled[:] = [idle for idle in pooled if idle.since > oldest]
                if not pooled:
                    del self._idle[origin]

    def _take(self, origin: Origin) -> Wire | None:
        """The most recently used connection that is still quiet: bytes or an end waiting on it mean it is stale."""
        pooled = self._idle.get(origin)
        while pooled:
            wire = pooled.pop().wire
            if not wire.is_readable():
                return wire
            wire.close()
        return None

    def _give(self, origin: Origin, wire: Wire) -> None:
        pooled = self._idle.setdefault(origin, [])
        if not self._open or len(pooled) >= self.limits.max_idle_per_origin:
            wire.close()
        else:
            pooled.append(_Idle(wire, trio.current_time()))

    def _trust(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._ssl_context.set_alpn_protocols(["http/1.1"])
        return self._ssl_context


class Call:
    """A request on its way; a context that gives the Response."""

    __slots__ = ("_body", "_client", "_connect_timeout", "_dialling", "_headers", "_method", "_response", "_severed",
                 "_url")  # fmt: skip

    def __init__(
        self,
        client: Client,
        method: str,
        url: Url,
        headers: tuple[Header, ...],
        body: bytes,
        connect_timeout: float | None,
    ) -> None:
        self._client, self._method, self._url, self._headers, self._body = client, method, url, headers, body
        self._connect_timeout = connect_timeout
        self._response: Response | None = None
        self._dialling: trio.CancelScope | None = None
        self._severed = False

    def sever(self) -> None:
        """End this request from outside: whoever waits for it, or for its answer, gets ConnectionLost at once."""
        self._severed = True
        if self._dialling is not None:
            self._dialling.cancel()
        elif self._response is not None:
            self._response.sever()

    async def __aenter__(self) -> Response:
        client, origin = self._client, self._url.origin
        proxy = client._proxies.for_origin(origin)
        data = self._encode(proxy)
        self._check_not_left()
        wire = client._take(origin)
        if wire is not None:
            response = self._response = Response(client, origin, wire, self._method)
            try:
                await response._begin(data)
            except ConnectionLost:
                if response._received or self._severed:
                    raise
            else:
                return response
        trust = client._trust() if origin.tls or (proxy is not None and proxy.origin.tls) else None
        dialled: Wire | None = None
        with trio.CancelScope() as self._dialling:
            dialled = await dial(origin, proxy, trust, client.limits, self._connect_timeout)
        self._dialling = None
        if dialled is None:
            raise ConnectionLost(self._left())
        response = self._response = Response(client, origin, dialled, self._method)
        if self._severed:  # at the moment when the connection was there
            dialled.close()
        await response._begin(data)
        return response

    def _check_not_left(self) -> None:
        if self._severed:
            raise ConnectionLost(self._left())

    def _left(self) -> str:
        return f"{self._url.origin}: the request was left before it was sent"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._response is not None:
            self._response._close()

    def _encode(self, proxy: Proxy | None) -> bytes:
        head = _head_of(self._method, self._url, self._headers, self._client._user_agent, proxy)
        if self._body or self._method not in _BODILESS:
            return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(self._body), self._body)
        return b"%b\r\n" % head


class Response:
    """An answer whose head has come. Iterate over it for its body, once; chunks are as they arrive, decoded.

    Iterating and reading raise ConnectionLost when the connection ends before the body does, and BadResponse.
    """

    __slots__ = ("_client", "_early", "_origin", "_parser", "_received", "_wire")

    def __init__(self, client: Client, origin: Origin, wire: Wire, method: str) -> None:
        self._client, self._origin = client, origin
        self._wire: Wire | None = wire
        self._parser = ResponseParser(method, client.limits)
        self._received = False
        self._early = b""  # body that came with the head

    @property
    def status(self) -> int:
        return self._parser.status

    @property
    def headers(self) -> Headers:
        return self._parser.headers

    def header(self, name: str) -> str | None:
        """The first value of a header (`name` in lower case), or None."""
        return find_header(self._parser.headers, name)

    @property
    def whole(self) -> bool:
        """Whether the body has come to its end and was read: iterating would not wait, and give nothing more."""
        return self._parser.complete and not self._early

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        if self._early:
            early, self._early = self._early, b""
            return early
        while not self._parser.complete:
            chunk = await self._more()
            if chunk:
                return chunk
        self._release()
        raise StopAsyncIteration

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BadResponse when it is longer than `limit` bytes."""
        parts, size = [], 0
        async for chunk in self:
            size += len(chunk)
            if size > limit:
                self._close()
                raise BadResponse(f"{self._origin}: the answer is longer than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)

    def sever(self) -> None:
        """Whoever waits for more of it gets ConnectionLost."""
        if self._wire is not None:
            self._wire.close()

    async def _begin(self, data: bytes) -> None:
        """Send the request and read the answer's head; closes the connection when that fails."""
        assert self._wire is not None
        try:
            try:  # noqa: SIM105 (contextlib.suppress costs as much as the system call)
                await self._wire.send(data)
            except trio.BrokenResourceError:
                pass  # a server may refuse a long request before its end: what it said then is worth reading
            while not self._parser.has_head:
                self._early = await self._more()
        except BaseException:
            self._close()
            raise

    async def _more(self) -> bytes:
        """Feed the parser what comes next; the bytes of body in it. Any failure closes the connection."""
        wire = self._wire
        if wire is None:
            raise ConnectionLost(f"{self._origin}: the answer was left before its end")
        try:
            data = await wire.receive()
            if data:
                self._received = True
                return self._parser.feed(data)
            self._parser.feed_end()
        except ClientError as error:
            self._close()
            raise type(error)(f"{self._origin}: {error}") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._close()
            raise ConnectionLost(f"{self._origin}: the connection broke before the end of the answer") from None
        return b""

    def _release(self) -> None:
        """The answer is whole: keep its connection for another request, where the server agrees."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        self._parser.close()
        if self._parser.keep_alive:
            self._client._give(self._origin, wire)
        else:
            wire.close()

    def _close(self) -> None:
        """Nobody reads on. An answer that is whole leaves its connection in order."""
        if self._parser.complete:
            self._release()
        elif self._wire is not None:
            self._wire.close()
            self._wire = None
            self._parser.close()
