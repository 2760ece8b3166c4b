"""One request and its answer, as a handler sees them.

    async def handler(exchange: Exchange) -> None:
        if exchange.path == "/hello":
            await exchange.respond(200, b"hello", [("content-type", "text/plain")])
        else:
            async with exchange.stream(200, [("content-type", "text/event-stream")]) as send:
                await send(encode_event(b"one"))
                await send(encode_event(b"two"), last=True)

A handler never sees the client leave as an error: it is cancelled, wherever it waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any

from .message import Header, Headers, date_line, find_header, status_line, write_head
from .request import Request

Send = Callable[[bytes], Awaitable[None]]


class Exchange:
    """`path` and `query` are percent-encoded as sent; `body` is whole; `client` is the other side's host and port."""

    __slots__ = ("_bodyless", "_keep", "_request", "_send", "always", "answered", "body", "client", "headers",
                 "headers_sent", "method", "note", "path", "query")  # fmt: skip

    def __init__(self, request: Request, client: tuple[str, int], send: Send, keep_alive: bool) -> None:
        self.method, self.path, self.query = request.method, request.path, request.query
        self.headers: Headers = request.headers
        self.body: bytes = request.body
        self.client = client
        self.headers_sent = False
        """Whether an answer has begun; from then on an error can only cut it."""
        self.answered = False
        """Whether the answer is whole."""
        self.note: Any = None
        """The handler's own; nothing here looks at it."""
        self.always: Headers = []
        """Headers of whatever answer this exchange gets, an error's too."""
        self._request = request
        self._send = send
        self._keep = keep_alive
        self._bodyless = request.method == "HEAD"

    def header(self, name: str) -> str | None:
        """The first value of a header (`name` in lower case), or None."""
        return find_header(self.headers, name)

    @property
    def keeps_connection(self) -> bool:
        """Whether another request may follow on this connection; becomes false when an answer ends by its closing."""
        return self._keep

    def close_afterwards(self) -> None:
        """Let this be the last exchange of its connection; the client is told when its headers are not sent yet."""
        self._keep = False

    @property
    def cut_looks_whole(self) -> bool:
        """The answer has begun, is not whole, and its end is the connection's: only a reset shows that it was cut."""
        return self.headers_sent and not self.answered and self._request.http_1_0

    async def respond(self, status: int, body: bytes = b"", headers: Iterable[Header] = (), lines: str = "") -> None:
        """The whole answer. A body for HEAD, 204 or 304 is left out, as HTTP demands.

        lines: more headers, as `header_lines` has written and checked them.
        """
        self._begin()
        bodyless = self._bodyless or status in (204, 304)
        length = "" if status in (204, 304) else f"content-length: {len(body)}\r\n"
        head = self._head(status, headers, lines + length)
        self.headers_sent = True
        await self._send(head if bodyless else head + body)
        self.answered = True

    def stream(self, status: int, headers: Iterable[Header] = (), lines: str = "") -> BodyStream:
        """An answer in pieces: `async with exchange.stream(...) as send: await send(piece)`.

        The head waits for the first piece and goes with it in one packet, so that until then an error can still
        become an error's answer. Leaving the context by an exception cuts the connection: never a clean end.
        """
        self._begin()
        if self._request.http_1_0:
            self._keep = False
        coding = "" if self._request.http_1_0 or status in (204, 304) else "transfer-encoding: chunked\r\n"
        head = self._head(status, headers, lines + coding)
        return BodyStream(self, self._send, head, bool(coding), self._bodyless or status in (204, 304))

    def _begin(self) -> None:
        if self.headers_sent:
            raise RuntimeError("this exchange has its answer already")

    def _head(self, status: int, headers: Iterable[Header], framing: str) -> bytes:
        if not self._keep:
            framing += "connection: close\r\n"
        elif self._request.http_1_0:
            framing += "connection: keep-alive\r\n"
        if self.always:
            headers = [*headers, *self.always]
        return write_head(status_line(status), headers, f"{framing}{date_line()}\r\n")


class BodyStream:
    """What `Exchange.stream` gives: call it with each piece."""

    __slots__ = ("_bodyless", "_chunked", "_exchange", "_head", "_send")

    def __init__(self, exchange: Exchange, send: Send, head: bytes, chunked: bool, bodyless: bool) -> None:
        self._exchange, self._send, self._head = exchange, send, head
        self._chunked, self._bodyless = chunked, bodyless

    async def __call__(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece; waits while the client does not read. `last` ends the answer in the same packet.

        An empty piece sends the head alone, if that has not gone yet.
        """
        exchange = self._exchange
        if exchange.answered:
            raise RuntimeError("this answer has ended already")
        if self._bodyless:
            data = b""
        elif self._chunked:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if last:
                data += b"0\r\n\r\n"
        if self._head:
            data = self._head + data
            self._head = b""
            exchange.headers_sent = True
        if data:
            await self._send(data)
        if last:
            exchange.answered = True

    async def __aenter__(self) -> BodyStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and not self._exchange.answered:
            await self(b"", last=True)
