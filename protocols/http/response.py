"""Reading an answer, pure: `ResponseParser.feed(bytes)` gives body bytes, and says when head and body are whole.

llhttp (through httptools) decides the framing: a client sends one request at a time, so nothing follows an answer.
Interim answers (1xx) are skipped; what comes behind a whole answer only means that the connection cannot be kept.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from .limits import ClientLimits
from .message import Headers, lower_name


class ClientError(Exception):
    """A request that got no usable answer. The message names the server, never the path, a header or a body."""


class ConnectFailed(ClientError):
    """No connection: the name, the address, a proxy or TLS. Nothing of the request was sent."""


class ConnectionLost(ClientError):
    """The connection ended before the answer did."""


class BadResponse(ClientError):
    """What came is not HTTP/1.1, or passes a limit."""


class ResponseParser:
    """One answer. `status` and `headers` hold when `has_head`; the body is whole when `complete`."""

    def __init__(self, method: str, limits: ClientLimits) -> None:
        self.status = 0
        self.headers: Headers = []
        self.has_head = False
        self.complete = False
        self.keep_alive = False
        """Whether another request may follow on the connection, once the answer is complete."""
        self._method, self._limits = method, limits
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._overhead = 0  # bytes since the last byte of body, or of the whole head so far
        self._until_close = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of body in `data`. Raises BadResponse."""
        parser = self._parser
        if parser is None:
            raise BadResponse("the answer was left before its end")
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            if not self.complete:
                raise BadResponse("the server switched protocols, which was not asked for") from None
        except HttpParserError as error:
            if not self.complete:
                raise BadResponse(f"the server's answer is not HTTP/1.1: {error.__context__ or error}") from None
            self.keep_alive = False
        body = self._body
        if not body:
            if not self.complete:
                self._overhead += len(data)
                if self._overhead > self._limits.max_head_bytes:
                    raise BadResponse(f"the answer's head is longer than {self._limits.max_head_bytes} bytes")
            return b""
        self._overhead = 0
        self._body = []
        return body[0] if len(body) == 1 else b"".join(body)

    def feed_end(self) -> None:
        """The connection has ended. Raises ConnectionLost unless that is how this answer ends."""
        if self._until_close and self.has_head:
            self.complete = True
        if not self.complete:
            part = "in the middle of" if self.has_head or self._overhead else "before"
            raise ConnectionLost(f"the server closed the connection {part} its answer")

    def close(self) -> None:
        """Nothing more is fed. llhttp holds this object by its callbacks: only the collector would free the two."""
        self._parser = None

    # -- llhttp's callbacks ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))
        if len(self._fields) > self._limits.max_headers:
            raise BadResponse(f"the answer has more than {self._limits.max_headers} headers")

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        status = parser.get_status_code()
        if self.complete or 100 <= status < 200:
            return
        self.status = status
        self.headers = [(lower_name(name), value.decode("latin-1").strip(" \t")) for name, value in self._fields]
        self.has_head = True
        tunnel = self._method == "CONNECT" and 200 <= status < 300
        self.keep_alive = parser.should_keep_alive() and not tunnel
        if self._method == "HEAD" or tunnel:
            self.complete = True
        elif status not in (204, 304):
            self._until_close = True
            for name, value in self.headers:
                if name == "content-length" or (name == "transfer-encoding" and value.lower().endswith("chunked")):
                    self._until_close = False

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.complete = True
