"""What requests and answers share: header lists, the errors a server answers with, and how a head is written.

Headers are a list of (name, value) pairs, names in lower case, values as latin-1 text without white space around them.
"""

from __future__ import annotations

import functools
import http
import re
import time
from collections.abc import Iterable
from email.utils import formatdate

Header = tuple[str, str]
Headers = list[Header]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in http.HTTPStatus}


class HttpError(Exception):
    """A request that gets an error as its answer: raised by the protocol for bad input, or by a handler.

    status: 400 to 599. message: one sentence for the person who asked. headers: sent besides those of the renderer.
    """

    def __init__(self, status: int, message: str, headers: Iterable[Header] = ()) -> None:
        super().__init__(status, message)
        self.status, self.message, self.headers = status, message, tuple(headers)

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HttpError) and (self.status, self.message) == (other.status, other.message)

    def __hash__(self) -> int:
        return hash((self.status, self.message))


def find_header(headers: Iterable[Header], name: str) -> str | None:
    """The first value of a header (`name` in lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


@functools.lru_cache(maxsize=512)
def lower_name(raw: bytes) -> str:
    """A header's name as it came, in lower case."""
    return raw.decode("latin-1").lower()


def status_line(status: int) -> str:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} -\r\n"


@functools.lru_cache(maxsize=1024)
def _is_token(name: str) -> bool:
    return _TOKEN.fullmatch(name) is not None


def write_head(first_line: str, headers: Iterable[Header], tail: str) -> bytes:
    """A head on the wire: `first_line` and `tail` come from this package and end with CRLF, the headers from callers.

    Raises ValueError for a header that would not arrive as it is: a line break in it must never become a new line.
    """
    parts = [first_line]
    for name, value in headers:
        if not _is_token(name):
            raise _unfit(name)
        parts.append(f"{name}: {value}\r\n")
    added = len(parts) - 1
    parts.append(tail)
    head = "".join(parts)
    lines = first_line.count("\n") + tail.count("\n") + added
    if head.count("\n") != lines or head.count("\r") != lines or "\0" in head:
        raise _unfit(next((name for name, value in headers if {"\n", "\r", "\0"} & set(value)), ""))
    return head.encode("latin-1")


def header_lines(*headers: Header) -> str:
    """Headers as lines of a head, to keep and use again. Raises ValueError as `write_head` does."""
    return write_head("", headers, "").decode("latin-1")


def _unfit(name: str) -> ValueError:
    return ValueError(f"the header {name!r} has characters that HTTP does not allow")


class _DateLine:
    """The Date header (RFC 9110, 6.6.1), written once a second."""

    def __init__(self) -> None:
        self._second, self._line = 0, ""

    def __call__(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._line = second, f"date: {formatdate(second, usegmt=True)}\r\n"
        return self._line


date_line = _DateLine()
