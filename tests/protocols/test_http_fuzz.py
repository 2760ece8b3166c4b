"""A small share of the fuzzing (`make fuzz` does a million), and request smuggling as it was published.

Sources of the corpus: PortSwigger's "HTTP Desync Attacks" (2019), "HTTP/1.1 must die" (2025) and its TE.TE list,
"Funky chunks" (2025), CVE-2019-18277, CVE-2020-5218, CVE-2022-26377, CVE-2025-43859 (h11).
"""

from __future__ import annotations

import pytest
from shoal.protocols.http.message import HttpError
from shoal.protocols.http.request import Request, RequestParser

from . import http_fuzz
from .http_fuzz import LIMITS, FoundError, run

HIDDEN = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED_HIDDEN = b"0\r\n\r\n" + HIDDEN


def post(*lines: bytes, body: bytes = CHUNKED_HIDDEN, version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"POST / " + version, b"Host: a", *lines, b"", b""]) + body


LONG = b"Content-Length: %d" % len(CHUNKED_HIDDEN)
OBFUSCATED = (
    *(b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b"Transfer-Encoding:\x0bchunked"),
    *(b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunkedx", b"Transfer-Encoding: chunked\x00"),
    *(b"Transfer-Encoding: \x00chunked", b"Transfer-Encoding: 'chunked'", b'Transfer-Encoding: "chunked"'),
    *(b"Transfer-Encoding: chunked;", b"Transfer-Encoding: chunked; q=1", b"Transfer-Encoding:\r\n chunked"),
    *(b"Transfer-Encoding:\n chunked", b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked"),
    *(b" Transfer-Encoding: chunked", b"\tTransfer-Encoding: chunked", b"Transfer-Encoding: identity, chunked"),
    *(b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
    *(b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked, chunked"),
    *(
        b"Transfer-Encoding: ",
        b"Transfer-Encoding: chunk\red",
        b"Transfer_Encoding: chunked",
        b"Transfer-Encoding:chunked,",
    ),
    *(b"Transfer\x00-Encoding: chunked", b"Transfer-Encoding: ch\xd5\x8fnked", b"Transfer-\xc4\x94ncoding: chunked"),
)

CORPUS: dict[str, bytes] = {
    "CL.TE": post(LONG, b"Transfer-Encoding: chunked"),
    "TE.CL": post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"5c\r\n" + HIDDEN + b"0\r\n\r\n"),
    "CL.CL": post(b"Content-Length: 0", LONG),
    "CL.CL, the same twice": post(LONG, LONG),
    "CL in a list": post(b"Content-Length: 0, %d" % len(CHUNKED_HIDDEN)),
    "CL with a sign": post(b"Content-Length: +0"),
    "CL, negative": post(b"Content-Length: -1"),
    "CL in hexadecimal": post(b"Content-Length: 0x0"),
    "CL in octal that is too short": post(b"Content-Length: 0o0"),
    "CL with a blank inside": post(b"Content-Length: 0 0"),
    "CL with an underscore": post(b"Content-Length: 0_0"),
    "CL with a vertical tab": post(b"Content-Length: 0\x0b"),
    "CL name with a blank": post(b"Content-Length : 0"),
    "CL name with a NUL": post(b"Content-Length\x00: 0"),
    "CL behind a bare LF": post(b"X: y\nContent-Length: 0"),
    "TE in HTTP/1.0": post(b"Transfer-Encoding: chunked", version=b"HTTP/1.0"),
    "TE with HTTP/1.0 and CL": post(LONG, b"Transfer-Encoding: chunked", version=b"HTTP/1.0"),
    "Expect that is obfuscated": post(b"Expect: y 100-continue", LONG),
    "Expect twice in one": post(b"Expect: 100-continue, 100-continue", LONG),
    "HTTP/0.9 in a body": b"GET /\r\n" + HIDDEN,
    "TERM.EXT: a bare LF ends an extension": post(
        b"Transfer-Encoding: chunked", body=b"2;\nxx\r\n22\r\nc\r\n0\r\n\r\n" + HIDDEN
    ),
    "EXT.TERM: a bare CR ends an extension": post(b"Transfer-Encoding: chunked", body=b"2;\rxx\r\n0\r\n\r\n" + HIDDEN),
    "TERM.SPILL: two bytes are not CRLF (h11)": post(
        b"Transfer-Encoding: chunked", body=b"3\r\nabcXX0\r\n\r\n" + HIDDEN
    ),
    "SPILL: a chunk longer than its size": post(b"Transfer-Encoding: chunked", body=b"1\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    "a chunk size of many zeros and a blank": post(b"Transfer-Encoding: chunked", body=b"0 \r\n\r\n" + HIDDEN),
    "a chunk size that wraps at 64 bits": post(b"Transfer-Encoding: chunked", body=b"10000000000000000\r\n" + HIDDEN),
    "a chunk size behind 0x": post(b"Transfer-Encoding: chunked", body=b"0x0\r\n\r\n" + HIDDEN),
    "a trailer that is a length": post(
        LONG, b"Transfer-Encoding: chunked", body=b"0\r\nContent-Length: 9\r\n\r\n" + HIDDEN
    ),
    "a line folded before the length": post(b"X: y", b" Content-Length: 0"),
    "a head that ends in bare LFs": b"POST / HTTP/1.1\nHost: a\nContent-Length: 0\n\n" + HIDDEN,
    "a head with a bare CR in front": b"\rPOST / HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN,
    "a request line with a tab": b"POST\t/\tHTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN,
    "a target with a line in it": b"GET /\r\nX: HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN,
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    **{f"TE.TE {line!r}": post(LONG, line) for line in OBFUSCATED},
    **{f"TE alone {line!r}": post(line) for line in OBFUSCATED if b"_" not in line},
}


@pytest.mark.parametrize("name", CORPUS)
def test_nothing_is_smuggled(name: str) -> None:
    """The hidden request is never one: refused with what carries it, or part of a body whose length is certain."""
    for cut in (len(CORPUS[name]), 1):
        parser = RequestParser(LIMITS)
        data = CORPUS[name]
        events = [event for at in range(0, len(data), cut) for event in parser.feed(data[at : at + cut])]
        assert not [event for event in events if isinstance(event, Request) and event.path == "/smuggled"]
        if "_" not in name:
            assert isinstance(events[-1], HttpError)


def test_random_streams_hold_the_rules() -> None:
    assert run(4000, seed=1) > 500


def test_the_rules_would_show_a_parser_that_reads_another_length(monkeypatch: pytest.MonkeyPatch) -> None:
    true_read = http_fuzz.read_requests

    def deaf(pieces: list[bytes]) -> object:
        return true_read([b"".join(pieces).replace(b"Content-Length: 1\r\n", b"")])

    monkeypatch.setattr(http_fuzz, "read_requests", deaf)
    with pytest.raises(FoundError, match="h11 reads"):
        run(20_000, seed=1)
