"""The chunked transfer coding of a request's body (RFC 9112, 7.1), pure: bytes in, body bytes and where it ended out.

Strict, because whatever another server in front of us might read differently is how requests are smuggled: sizes are
hexadecimal digits only, lines end in CRLF only, chunk extensions and trailers are checked, counted and dropped.
(The client reads its chunks with llhttp; a server needs the place where a body ends, which llhttp's binding hides.)
"""

from __future__ import annotations

import re

from .message import HttpError

# Size, then extensions without control characters; the size's digits are bounded so that no number grows large.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_MAX_SIZE_LINE = 256


class ChunkedDecoder:
    """Takes a body as it comes; `body` grows until `done`.

    max_body: bytes of decoded body. max_overhead: bytes of trailers; extensions are bounded by the chunk's line.
    """

    def __init__(self, max_body: int, max_overhead: int) -> None:
        self.body = bytearray()
        self.done = False
        self._max_body, self._max_overhead = max_body, max_overhead
        self._remaining = 0  # of the chunk being read; its CRLF is counted with it
        self._in_trailers = False

    def feed(self, buffer: bytes | bytearray, position: int) -> int:
        """Decode from `position` on; returns up to where the buffer is used up. Raises HttpError (400, 413)."""
        while not self.done:
            used = self._data(buffer, position) if self._remaining else self._line(buffer, position)
            if not used:
                break
            position += used
        return position

    def _data(self, buffer: bytes | bytearray, position: int) -> int:
        """Bytes of chunk data, then the CRLF behind them as one piece."""
        if self._remaining > 2:
            piece = buffer[position : position + self._remaining - 2]
            self.body += piece
            self._remaining -= len(piece)
            return len(piece)
        ending = buffer[position : position + 2]
        if ending != b"\r\n"[: len(ending)]:
            raise HttpError(400, "a chunk of the body is longer than its size says")
        if len(ending) < 2:
            return 0
        self._remaining = 0
        return 2

    def _line(self, buffer: bytes | bytearray, position: int) -> int:
        """A size line, or a trailer line after the last chunk."""
        limit = self._max_overhead if self._in_trailers else _MAX_SIZE_LINE
        end = buffer.find(b"\n", position, position + limit)
        if end < 0:
            if len(buffer) - position >= limit:
                raise HttpError(400, "a chunk's size line or the trailers of the body are too long")
            return 0
        line = bytes(buffer[position : end + 1])
        if not line.endswith(b"\r\n"):
            raise HttpError(400, "a line of the chunked body ends without CRLF")
        if self._in_trailers:
            self._max_overhead -= len(line)
            if line == b"\r\n":
                self.done = True
            elif self._max_overhead <= 0 or not _TRAILER_LINE.fullmatch(line, 0, len(line) - 2):
                raise HttpError(400, "the trailers of the chunked body are malformed or too long")
            return len(line)
        match = _SIZE_LINE.fullmatch(line, 0, len(line) - 2)
        if match is None:
            raise HttpError(400, "a chunk's size line is malformed")
        size = int(match[1], 16)
        if len(self.body) + size > self._max_body:
            raise HttpError(413, f"the body is longer than {self._max_body} bytes")
        if size:
            self._remaining = size + 2
        else:
            self._in_trailers = True
        return len(line)
