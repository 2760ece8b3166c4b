"""Random HTTP against the three parsers, with another implementation's opinion (h11) about where messages end.

    python -m tests.protocols.http_fuzz --count 1000000 --seed 1

Inputs are streams of requests, well-formed and then broken in one of the ways that requests are smuggled by. Each must
hold what follows; the first that does not is printed, with the seed and number that make it again:
- no exception leaves a parser but the errors that it is documented to raise;
- the events are the same when the bytes come in other pieces;
- after a refusal there is nothing more, and no message ever has two lengths;
- whatever our parser takes, h11 reads in the same way, or refuses: two servers in a row never disagree.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import h11
from shoal.protocols.http.limits import ClientLimits, Limits
from shoal.protocols.http.message import HttpError
from shoal.protocols.http.request import Event, Request, RequestParser
from shoal.protocols.http.response import BadResponse, ConnectionLost, ResponseParser
from shoal.protocols.http.sse import SseError, SseEvent, SseParser

LIMITS = Limits(max_head_bytes=1024, max_headers=20, max_body_bytes=256)
CLIENT_LIMITS = ClientLimits(max_head_bytes=1024, max_headers=20)

METHODS = (b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"get", b"G", b"PRI", b"")
TARGETS = (b"/", b"/a?b=c", b"*", b"http://a/b", b"//x", b"/%00", b"/a b", b"/#f", b"a:1", b"", b"/\x80", b"/\x00")
VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"HTTP/1.2",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"",
)
NAMES = (
    *(
        b"Content-Length",
        b"content-length",
        b"Content-Length ",
        b" Content-Length",
        b"Content_Length",
        b"Content-Length\t",
    ),
    *(
        b"Transfer-Encoding",
        b"transfer-encoding",
        b"Transfer-Encoding ",
        b"Transfer-Encoding\x00",
        b"\x0bTransfer-Encoding",
    ),
    *(b"Connection", b"Expect", b"Host", b"X", b"X\x80", b"", b"Upgrade", b"Trailer", b"Cookie"),
)
VALUES = (
    *(
        b"0",
        b"1",
        b"3",
        b"10",
        b"+3",
        b"-1",
        b"3, 3",
        b"0x3",
        b"3 ",
        b"\t3",
        b"3\x0b",
        b"00003",
        b"99999999999999999999",
    ),
    *(
        b"chunked",
        b"Chunked",
        b"chunked, identity",
        b"identity",
        b"gzip, chunked",
        b"chunked\x00",
        b"xchunked",
        b"chun\rked",
    ),
    *(
        b"close",
        b"keep-alive",
        b"100-continue",
        b"a",
        b"\x7f",
        b"\x00",
        b"x\n y",
        b"x\r\n y",
        b"\xff",
        b"",
        b"websocket",
    ),
)
BODIES = (
    *(b"", b"abc", b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n", b"3\nabc\n0\n\n"),
    *(b"03\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n", b"+3\r\nabc\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n"),
    *(
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"ffffffffffffffff1\r\nabc\r\n0\r\n\r\n",
        b"3\r\r\nabc\r\n0\r\n\r\n",
        b"0\r\n\r\nGET /x HTTP/1.1\r\n",
    ),
    *(
        b"3;a\x00\r\nabc\r\n0\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\n x\r\n\r\n",
        b"\r\n",
        b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
    ),
)
ENDS = (b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\x00\r\n", b"\r\n ")


class FoundError(AssertionError):
    """An input that breaks a rule."""


def stream_of(rng: random.Random) -> bytes:
    """One to three requests; half of the streams are then broken further by bytes."""
    parts: list[bytes] = []
    for _ in range(rng.randint(1, 3)):
        tame = rng.random() < 0.5
        pick = (lambda options: options[0]) if tame else rng.choice
        parts += (rng.choice(METHODS[:6]) if tame else rng.choice(METHODS), b" ", pick(TARGETS), b" ", pick(VERSIONS))
        parts.append(b"\r\n" if tame else rng.choice(ENDS))
        if rng.random() < 0.9:
            parts.append(b"Host: a\r\n")
        body = b""
        if tame and rng.random() < 0.6:
            body = rng.choice(BODIES)
            framed = rng.random() < 0.5
            parts.append(b"Transfer-Encoding: chunked\r\n" if framed else b"Content-Length: %d\r\n" % len(body))
        if rng.random() < 0.5:
            for _ in range(rng.randint(1, 3)):
                parts += (
                    rng.choice(NAMES),
                    rng.choice((b": ", b":", b" : ", b"")),
                    rng.choice(VALUES),
                    rng.choice(ENDS),
                )
            body = body or rng.choice(BODIES)
        parts += (b"\r\n" if rng.random() < 0.95 else rng.choice(ENDS), body)
    data = b"".join(parts)
    return broken(rng, data) if rng.random() < 0.5 else data


def broken(rng: random.Random, data: bytes) -> bytes:
    """The same with a few bytes changed, left out, doubled or put elsewhere."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not found:
            break
        at = rng.randrange(len(found))
        match rng.randrange(4):
            case 0:
                found[at] = rng.choice(b"\r\n\x00 \t:;,0123\x80\xffAz")
            case 1:
                del found[at : at + rng.randint(1, 8)]
            case 2:
                found[at:at] = found[at : at + rng.randint(1, 16)]
            case _:
                found[at:at] = rng.choice((b"\r\n", b"\n", b"\r", b"\x00", b" ", b"Content-Length: 1\r\n"))
    return bytes(found)


def pieces_of(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def check_requests(rng: random.Random, data: bytes) -> int:
    """The rules for a server's parser; returns how many requests it took."""
    whole = read_requests([data])
    if read_requests(pieces_of(rng, data)) != whole:
        raise FoundError("the events depend on how the bytes are cut")
    if any(isinstance(event, HttpError) for event in whole[:-1]):
        raise FoundError("there is something behind a refusal")
    taken = [event for event in whole if isinstance(event, Request)]
    for request in taken:
        names = [name for name, _ in request.headers]
        if names.count("content-length") + names.count("transfer-encoding") > 1 or names.count("host") > 1:
            raise FoundError("a request with two lengths or two hosts was taken")
        if len(request.body) > LIMITS.max_body_bytes:
            raise FoundError("a body is longer than the limit")
    ours = [(request.method, request.body) for request in taken]
    theirs = read_by_h11(data, len(ours))
    if theirs != ours[: len(theirs)]:
        raise FoundError(f"h11 reads {theirs!r}, we read {ours!r}")
    return len(taken)


def read_requests(pieces: list[bytes]) -> list[Event]:
    parser = RequestParser(LIMITS)
    return [event for piece in pieces for event in parser.feed(piece)]


def read_by_h11(data: bytes, count: int) -> list[tuple[str, bytes]]:
    """The first `count` requests as h11 reads them, up to where it refuses or wants more."""
    found: list[tuple[str, bytes]] = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=4096)
    connection.receive_data(data)
    method, body = "", b""
    try:
        while len(found) < count:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, body = event.method.decode(), b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((method, body))
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    break  # it would close the connection here: what follows is nobody's
                connection.start_next_cycle()
            else:
                break
    except h11.ProtocolError:
        pass
    return found


def check_answers(rng: random.Random, data: bytes) -> None:
    """The rules for the client's parser, fed with an answer made of the same stuff."""
    answer = rng.choice(
        (
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.0 200\r\n",
            b"HTTP/1.1 204 x\r\n",
            b"HTTP/1.1 100 c\r\n\r\nHTTP/1.1 200 OK\r\n",
        )
    )
    data = answer + data.partition(b"\r\n")[2]
    if read_answer([data]) != read_answer(pieces_of(rng, data)):
        raise FoundError("an answer depends on how its bytes are cut")


def read_answer(pieces: list[bytes]) -> object:
    parser, body = ResponseParser("GET", CLIENT_LIMITS), b""
    try:
        for piece in pieces:
            if piece and not parser.complete:
                body += parser.feed(piece)
        if not parser.complete:
            parser.feed_end()
    except (BadResponse, ConnectionLost) as error:
        return type(error)
    return parser.status, parser.headers, body


def check_events(rng: random.Random, data: bytes) -> None:
    """The rules for server-sent events."""
    lines = (
        b"data: a\n",
        b"data:b\r\n",
        b"\n",
        b"\r\n",
        b"event: x\r",
        b": c\n",
        b"id: 1\n",
        b"retry: 5\n",
        b"data\n",
        b"\xff",
    )
    data = b"".join(rng.choice(lines) for _ in range(rng.randint(1, 12))) + data[:64]
    if read_events([data]) != read_events(pieces_of(rng, data)):
        raise FoundError("events depend on how their bytes are cut")


def read_events(pieces: list[bytes]) -> list[SseEvent] | None:
    parser = SseParser(max_event=256)
    try:
        return [event for piece in pieces for event in parser.feed(piece)]
    except SseError:
        return None


def run(count: int, seed: int, *, first: int = 0) -> int:
    """Checks `count` inputs; returns how many requests were taken in all. Raises FoundError with the input."""
    taken = 0
    for number in range(first, first + count):
        rng = random.Random(f"{seed}/{number}")
        data = stream_of(rng)
        try:
            taken += check_requests(rng, data)
            if number % 4 == 0:
                check_answers(rng, data)
                check_events(rng, data)
        except Exception as error:
            raise FoundError(f"seed {seed}, number {number}: {error}\n{data!r}") from error
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    start, taken, step = time.monotonic(), 0, 10_000
    for first in range(0, options.count, step):
        taken += run(min(step, options.count - first), options.seed, first=first)
    seconds = time.monotonic() - start
    sys.stdout.write(
        f"{options.count} inputs, {taken} requests taken, no fault found (seed {options.seed}, {seconds:.0f} s)\n"
    )


if __name__ == "__main__":
    main()
