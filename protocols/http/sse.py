"""Server-sent events (WHATWG HTML, 9.2), pure: a parser that takes bytes as they come, and the writer's side.

parser = SseParser()
for event in parser.feed(chunk):
    print(event.event, event.data)
"""

from __future__ import annotations

from msgspec import Struct


class SseEvent(Struct, frozen=True):
    """event: its type, "message" unless the stream says otherwise. id: the last one seen on the stream so far."""

    data: str
    event: str = "message"
    id: str = ""


class SseError(ValueError):
    """The stream holds an event longer than the parser's limit, or bytes that are not UTF-8."""


_BOM = b"\xef\xbb\xbf"
_NEXT_DATA = b"\n\ndata: "
MAX_EVENT_BYTES = 16 * 1024 * 1024


class SseParser:
    """Gives the same events however the bytes are cut: lines end in LF, CR or CRLF, and text is decoded by whole lines.

    max_event: bytes of one event, or of one line. strict: bytes that are not UTF-8 are an error; the standard replaces
    them, which would make a corrupted answer look like a whole one. retry: the reconnection time that the stream asked
    for, in ms, or None. An event without the empty line behind it is never given: it may have been cut.
    """

    def __init__(self, max_event: int = MAX_EVENT_BYTES, *, strict: bool = False) -> None:
        self._errors = "strict" if strict else "replace"
        self.retry: int | None = None
        self._max_event = max_event
        self._line = bytearray()  # the line that has begun, without its ending
        self._size = 0  # of the event that has begun
        self._after_cr = False  # a LF that comes now belongs to the CR before it
        self._begun = False
        self._data: list[str] = []
        self._event = ""
        self._id = ""

    @property
    def between(self) -> bool:
        """Whether no event has begun, so that the bytes that come next may be looked at alone (`plain`)."""
        return not (self._line or self._size or self._event or self._data or self._after_cr)

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that `data` completes. Raises SseError."""
        events: list[SseEvent] = []
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 0x0A:
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data[-1] == 0x0D
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        tail = lines.pop()
        if lines:
            if self._line:
                lines[0] = bytes(self._line) + lines[0]
                self._line.clear()
            try:
                for line in lines:
                    self._take(line, events)
            except UnicodeDecodeError:
                raise SseError("an event of the stream holds bytes that are not UTF-8") from None
        self._line += tail
        if self._size + len(self._line) > self._max_event:
            raise SseError(f"an event of the stream is longer than {self._max_event} bytes")
        return events

    def _take(self, line: bytes, events: list[SseEvent]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(SseEvent("\n".join(self._data), self._event or "message", self._id))
            self._data, self._event, self._size = [], "", 0
            return
        self._size += len(line)
        if self._size > self._max_event:
            raise SseError(f"an event of the stream is longer than {self._max_event} bytes")
        if line.startswith(b"data: "):
            self._data.append(line[6:].decode("utf-8", self._errors))
            return
        field, _, value = line.decode("utf-8", self._errors).partition(":")
        value = value.removeprefix(" ")
        match field:
            case "":  # a comment: ": keep-alive"
                self._size -= len(line)
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) < 12:
                self.retry = int(value)
            case _:
                pass


def plain(data: bytes) -> tuple[bytes, int] | None:
    """The data of all events in `data` with commas between, and how many they are: where these bytes are whole events
    that begin with `data: `, as nearly all streams send them. Else None: a parser is needed.

    Made for JSON, which one call decodes. Further lines of an event stay in it behind a line break, and an event
    without data leaves nothing between two commas: neither is JSON then, and a parser is needed after all.
    """
    if not data.startswith(b"data: ") or not data.endswith(b"\n\n") or b"\r" in data or len(data) > MAX_EVENT_BYTES:
        return None
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            return None
    inner = data[6:-2]
    joined = inner.replace(_NEXT_DATA, b",")
    return joined, (len(inner) - len(joined)) // (len(_NEXT_DATA) - 1) + 1


def encode_event(data: bytes, event: str | None = None) -> bytes:
    """One event on the wire; `data` is UTF-8 and may have several lines."""
    head = f"event: {event}\n".encode() if event is not None else b""
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    return b"%bdata: %b\n\n" % (head, data)
