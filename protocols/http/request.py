"""Reading requests, pure: `RequestParser.feed(bytes)` gives events, the same ones however the bytes are cut.

What a head may look like is llhttp's verdict (through httptools) on one whole head at a time; where a message begins
and ends is decided here, and only here, so that two opinions about a boundary cannot exist. llhttp alone is not
strict enough: httptools 0.9 lets pass HTTP/0.9 and 2.0, ICE/1.0, two spaces after the method, a fragment in the
target, Transfer-Encoding in HTTP/1.0 and codings other than chunked. tests/protocols/test_http_request.py has each.

    for event in parser.feed(data):
        match event:
            case Request(): ...    # whole, with its body
            case Continue(): ...   # the client waits for "100 Continue" before it sends the body
            case HttpError(): ...  # answer it and close; the parser takes nothing more
"""

from __future__ import annotations

import functools
import re
from typing import Literal

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser
from msgspec import Struct

from .chunked import ChunkedDecoder
from .limits import Limits
from .message import Header, Headers, HttpError, lower_name


class Request(Struct):
    """A request: `path` and `query` as they were sent (percent-encoded), without the "?" between them."""

    method: str
    path: str
    query: str
    headers: Headers
    keep_alive: bool
    http_1_0: bool
    body: bytes = b""


class Continue(Struct, frozen=True):
    """The client announced a body and waits for leave to send it."""


Event = Request | Continue | HttpError
State = Literal["idle", "head", "body", "refused"]

_SINGLE = frozenset({"authorization", "origin", "content-type", "content-encoding", "proxy-authorization"})
"""Fields with one value: of two, one program would believe the first and another the last (RFC 9110, 5.3)."""
_FRAMING = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"}) | _SINGLE
_UNKNOWN_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} [^ ]+ HTTP/1\.[01]\r\n")
_SCHEME = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)


class _Head(Struct, frozen=True):
    """What a head says, framing included. size: bytes of the body, None when it is chunked."""

    method: str
    path: str
    query: str
    headers: tuple[Header, ...]
    keep_alive: bool
    http_1_0: bool
    size: int | None
    expect: bool


class _Fields:
    """What llhttp's callbacks leave while they read one head."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.heads = 0

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.heads += 1


def _parse_head(head: bytes, max_headers: int, max_body: int) -> _Head:
    """What one whole head says. Raises HttpError."""
    found = _Fields()
    # A parser for each head: 0.3 us, and no state of an earlier message can bear on this one.
    parser = HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:
        pass  # an Upgrade we do not follow: the request is answered as it stands (RFC 9110, 7.8)
    except HttpParserInvalidMethodError:
        if _UNKNOWN_METHOD.match(head):
            raise HttpError(501, "this method is not known here") from None
        raise HttpError(400, "the request line is malformed") from None
    except HttpParserError as error:
        raise HttpError(400, f"the request's head is malformed: {error}") from None
    method = parser.get_method()
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise HttpError(505, f"HTTP/{version} is not spoken here, only HTTP/1.1")
    line = b"%b %b HTTP/%b\r\n" % (method, found.target, version.encode())
    if found.heads != 1 or not head.startswith(line):
        raise HttpError(400, "the request line is malformed")
    if len(found.fields) > max_headers:
        raise HttpError(431, f"the request has more than {max_headers} headers")
    headers = tuple((lower_name(name), value.decode("latin-1").strip(" \t")) for name, value in found.fields)
    path, query, authority = _split_target(method, found.target)
    http_1_0 = version == "1.0"
    keep_alive, size, expect = _framing(headers, http_1_0, max_body, authority)
    return _Head(method.decode("ascii"), path, query, headers, keep_alive, http_1_0, size, expect)


_REMEMBERED_BYTES = 2048
_remembered_head = functools.lru_cache(maxsize=512)(_parse_head)
"""Clients send the same head again and again, and what it says depends on nothing else: 12 us become one."""


def _split_target(method: bytes, target: bytes) -> tuple[str, str, str | None]:
    """Path and query of a request's target, in any of its four forms (RFC 9112, 3.2), and the authority in it."""
    if b"#" in target:
        raise HttpError(400, "the request's target must not have a fragment")
    if method == b"CONNECT":
        return target.decode("ascii"), "", None
    authority = None
    if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        absolute = _SCHEME.match(target)
        if absolute is None:
            raise HttpError(400, "the request's target must be a path")
        authority = absolute[1].decode("ascii").lower()
        target = target[absolute.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    path, _, query = target.decode("ascii").partition("?")
    return path, query, authority


def _framing(
    headers: tuple[Header, ...], http_1_0: bool, max_body: int, authority: str | None
) -> tuple[bool, int | None, bool]:
    """How the message is framed (RFC 9112, 6.3): keep_alive, size and expect of `_Head`.

    What could be read in two ways is refused. authority: the host in the target, which Host has to repeat.
    """
    length = coding = None
    expect = False
    keep_alive = not http_1_0
    hosts = 0
    options: set[str] = set()
    single: set[str] = set()
    for name, value in headers:
        if name not in _FRAMING:
            continue
        if name == "host":
            hosts += 1
            if authority is not None and value.lower() != authority:
                raise HttpError(400, "the host in the request's target is not the one in its Host header")
        elif name == "content-length":
            if length is not None or not (value.isascii() and value.isdigit()):
                raise HttpError(400, "Content-Length must be one number")
            length = value
        elif name == "transfer-encoding":
            if coding is not None or value.lower() != "chunked":
                raise HttpError(501, "Transfer-Encoding can only be chunked")
            coding = value
        elif name == "connection":
            options.update(option.strip() for option in value.lower().split(","))
        elif name in _SINGLE:
            if name in single:
                raise HttpError(400, f"the header {name} can stand only once in a request")
            single.add(name)
        else:
            if value.lower() != "100-continue":
                raise HttpError(417, "Expect can only be 100-continue")
            expect = not http_1_0
    if options:
        keep_alive = "close" not in options and (keep_alive or "keep-alive" in options)
    if hosts > 1 or (not hosts and not http_1_0):
        raise HttpError(400, "the request needs exactly one Host header")
    if coding is not None:
        if length is not None or http_1_0:
            raise HttpError(400, "Transfer-Encoding can stand neither beside Content-Length nor in HTTP/1.0")
        return keep_alive, None, expect
    size = int(length) if length is not None and len(length) < 20 else 0 if length is None else max_body + 1
    if size > max_body:
        raise HttpError(413, f"the body is longer than {max_body} bytes")
    return keep_alive, size, expect


class RequestParser:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer: bytes | bytearray = b""
        self._scanned = 0  # of the buffer: no end of head before here
        self._blank_skipped = False
        self._request: Request | None = None  # whose body is being read
        self._remaining = 0
        self._chunks: ChunkedDecoder | None = None
        self._refused = False

    @property
    def state(self) -> State:
        """What the next byte would belong to; "idle" before the first byte of a request."""
        if self._refused:
            return "refused"
        if self._request is not None:
            return "body"
        return "head" if self._buffer or self._blank_skipped else "idle"

    @property
    def pending(self) -> Request | None:
        """The request whose body is awaited."""
        return self._request

    def refuse(self) -> None:
        """Take nothing more, and let go of what is there."""
        self._refused = True
        self._buffer = b""
        self._request = self._chunks = None

    def feed(self, data: bytes) -> list[Event]:
        """What `data` completes. An HttpError is the last event there will be."""
        events: list[Event] = []
        if self._refused:
            return events
        buffer: bytes | bytearray = data
        if self._buffer:
            buffer = self._buffer = bytearray(self._buffer) if isinstance(self._buffer, bytes) else self._buffer
            buffer += data
        position = 0
        try:
            while position < len(buffer):
                start = position
                if self._request is None:
                    position = self._read_head(buffer, position, events)
                else:
                    position = self._read_body(buffer, position, events)
                if position == start:
                    break
        except HttpError as error:
            self.refuse()
            events.append(error)
            return events
        if position == len(buffer):
            self._buffer = b""
        elif position or buffer is data:
            self._buffer = buffer[position:]
        return events

    # -- heads -------------------------------------------------------------------------------------------------

    def _read_head(self, buffer: bytes | bytearray, start: int, events: list[Event]) -> int:
        """Read a head if it is whole; returns where it ends, or `start`."""
        first = buffer[start]
        if first == 0x0D and not self._blank_skipped:  # one empty line before a request is let pass: RFC 9112, 2.2
            blank = buffer[start : start + 2]
            if len(blank) < 2:
                return start
            if blank == b"\r\n":
                self._blank_skipped = True
                return start + 2
        if not 0x41 <= first <= 0x5A:
            raise HttpError(400, "this is not an HTTP/1.1 request (is the client speaking TLS or another protocol?)")
        limit = start + self._limits.max_head_bytes
        end = buffer.find(b"\r\n\r\n", max(start, self._scanned - 3), limit)
        seen = end + 4 if end >= 0 else min(len(buffer), limit)
        unseen = max(start, self._scanned)
        if unseen > start and buffer[unseen - 1] == 0x0D:
            unseen -= 1
        if buffer.count(b"\n", unseen, seen) != buffer.count(b"\r\n", unseen, seen):
            raise HttpError(400, "a line of the request's head ends without CRLF")
        if end < 0:
            if len(buffer) >= limit:
                raise HttpError(431, f"the request's head is longer than {self._limits.max_head_bytes} bytes")
            self._scanned = len(buffer) - start
            return start
        self._scanned = 0
        self._blank_skipped = False
        self._begin_body(bytes(buffer[start : end + 4]), events)
        return end + 4

    # -- bodies ------------------------------------------------------------------------------------------------

    def _begin_body(self, head: bytes, events: list[Event]) -> None:
        limits = self._limits
        read = _remembered_head if len(head) <= _REMEMBERED_BYTES else _parse_head
        said = read(head, limits.max_headers, limits.max_body_bytes)
        request = Request(said.method, said.path, said.query, list(said.headers), said.keep_alive, said.http_1_0)
        if said.size == 0:
            events.append(request)
            return
        if said.size is None:
            self._chunks = ChunkedDecoder(limits.max_body_bytes, limits.max_head_bytes)
        else:
            self._remaining = said.size
        self._request = request
        if said.expect:
            events.append(Continue())

    def _read_body(self, buffer: bytes | bytearray, start: int, events: list[Event]) -> int:
        """Take body bytes; those of a sized body stay in the buffer until it is whole, so they are copied once."""
        request = self._request
        assert request is not None
        if self._chunks is None:
            if len(buffer) - start < self._remaining:
                return start
            end = start + self._remaining
            request.body = bytes(memoryview(buffer)[start:end])
        else:
            end = self._chunks.feed(buffer, start)
            if not self._chunks.done:
                return end
            request.body = bytes(self._chunks.body)
            self._chunks = None
        self._request = None
        events.append(request)
        return end
