"""The server's parser: what it takes, what it refuses, and that the way bytes are cut changes nothing."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shoal.protocols.http.limits import Limits
from shoal.protocols.http.message import HttpError
from shoal.protocols.http.request import Continue, Event, Request, RequestParser

LIMITS = Limits(max_head_bytes=512, max_headers=8, max_body_bytes=64)


def parse(*pieces: bytes, limits: Limits = LIMITS) -> list[Event]:
    parser = RequestParser(limits)
    return [event for piece in pieces for event in parser.feed(piece)]


def get(*lines: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", "Host: a", *lines, "", ""]).encode("latin-1")


def post(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["POST / HTTP/1.1", "Host: a", *lines, "", ""]).encode("latin-1") + body


def only_request(data: bytes) -> Request:
    (event,) = parse(data)
    assert isinstance(event, Request), event
    return event


def status_of(data: bytes, limits: Limits = LIMITS) -> int:
    """The status that the last event of `data` would be answered with."""
    event = parse(data, limits=limits)[-1]
    assert isinstance(event, HttpError), event
    return event.status


# -- what is taken ---------------------------------------------------------------------------------------------


def test_a_request_gives_its_method_path_query_headers_and_body() -> None:
    request = only_request(
        b"PUT /a%20b/c?d=e?f HTTP/1.1\r\nHOST: x\r\nX-Y:  z \t\r\nEmpty:\r\nContent-Length: 2\r\n\r\nhi"
    )
    assert (request.method, request.path, request.query, request.body) == ("PUT", "/a%20b/c", "d=e?f", b"hi")
    assert request.headers == [("host", "x"), ("x-y", "z"), ("empty", ""), ("content-length", "2")]
    assert request.keep_alive
    assert not request.http_1_0


@pytest.mark.parametrize(
    ("data", "keep"),
    [
        (get(), True),
        (get("Connection: close"), False),
        (get("Connection: foo, Close"), False),
        (get("Connection: keep-alive", "Connection: close"), False),
        (get("Connection: close", "Connection: keep-alive"), False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_a_connection_is_kept_when_the_client_agrees(data: bytes, keep: bool) -> None:
    assert only_request(data).keep_alive is keep


def test_pipelined_requests_come_in_order() -> None:
    data = (
        post("Content-Length: 3", body=b"one")
        + get()
        + post("Transfer-Encoding: chunked", body=b"3\r\ntwo\r\n0\r\n\r\n")
    )
    assert [event.body for event in parse(data) if isinstance(event, Request)] == [b"one", b"", b"two"]


def test_chunks_with_extensions_and_trailers_become_one_body() -> None:
    body = b'3;name=value\r\nabc\r\n0A ; q="x"\r\n0123456789\r\n000\r\nTrailer: dropped\r\n\r\n'
    request = only_request(post("Transfer-Encoding: Chunked", body=body))
    assert request.body == b"abc0123456789"
    assert all(name != "trailer" for name, _ in request.headers)


def test_a_client_that_expects_continue_is_told_before_its_body_comes() -> None:
    parser = RequestParser(LIMITS)
    assert parser.feed(post("Content-Length: 2", "Expect: 100-Continue")) == [Continue()]
    assert parser.state == "body"
    (request,) = parser.feed(b"hi")
    assert isinstance(request, Request)
    assert request.body == b"hi"


def test_no_continue_without_a_body_or_in_http_1_0() -> None:
    assert [type(e) for e in parse(get("Expect: 100-continue"))] == [Request]
    assert [type(e) for e in parse(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx")] == [
        Request
    ]


def test_an_absolute_target_gives_its_path() -> None:
    request = only_request(b"GET http://Example.org:80/x?y HTTP/1.1\r\nHost: example.org:80\r\n\r\n")
    assert (request.path, request.query) == ("/x", "y")
    assert only_request(b"GET http://example.org?y HTTP/1.1\r\nHost: example.org\r\n\r\n").path == "/"


def test_options_may_ask_about_the_whole_server() -> None:
    assert only_request(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path == "*"


def test_an_upgrade_is_ignored_and_the_request_stands() -> None:
    request = only_request(post("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "Content-Length: 2", body=b"hi"))
    assert request.body == b"hi"


def test_one_empty_line_before_a_request_is_let_pass() -> None:
    assert isinstance(parse(b"\r\n" + get())[0], Request)
    assert status_of(b"\r\n\r\n" + get()) == 400


# -- what is refused -------------------------------------------------------------------------------------------

REFUSED = {
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "ICE instead of HTTP": (b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n", 400),
    "an unknown method": (b"FROB / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "two spaces after the method": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a space behind the version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "a space in the target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a fragment in the target": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bytes beyond ASCII in the target": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "another scheme": (b"GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a star for anything but OPTIONS": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "another host in the target than in Host": (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a user in the target": (b"GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
    "two credentials": (get("Authorization: Bearer x", "Authorization: Bearer y"), 400),
    "two origins": (get("Origin: http://a", "Origin: http://b"), 400),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (get("Host: b"), 400),
    "line feeds alone": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "one line feed alone": (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    "a line feed alone in a head that goes on": (b"GET / HTTP/1.1\r\nHost: a\nX:", 400),
    "a carriage return alone": (get("X: a\rb"), 400),
    "a folded header": (get("X: a", " b"), 400),
    "a space before the colon": (get("X : a"), 400),
    "a space before the first header": (b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n", 400),
    "a header without a name": (get(": a"), 400),
    "a header without a colon": (get("X"), 400),
    "a name that is no token": (get("X\xe9: a"), 400),
    "a NUL in a value": (get("X: a\0b"), 400),
    "two content lengths that agree": (post("Content-Length: 1", "Content-Length: 1", body=b"x"), 400),
    "two content lengths that differ": (post("Content-Length: 1", "Content-Length: 2", body=b"xy"), 400),
    "a list of content lengths": (post("Content-Length: 1, 1", body=b"x"), 400),
    "a signed content length": (post("Content-Length: +1", body=b"x"), 400),
    "an empty content length": (post("Content-Length:", body=b"x"), 400),
    "a content length in hexadecimal": (post("Content-Length: 0x1", body=b"x"), 400),
    "both lengths": (post("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "both lengths the other way round": (post("Transfer-Encoding: chunked", "Content-Length: 5"), 400),
    "chunked in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "another coding": (post("Transfer-Encoding: gzip, chunked"), 501),
    "chunked that is not last": (post("Transfer-Encoding: chunked, identity"), 400),
    "an almost chunked coding": (post("Transfer-Encoding: xchunked"), 400),
    "chunked twice": (post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
    "an expectation we do not know": (post("Expect: tea", "Content-Length: 1"), 417),
    "a chunk size with a sign": (post("Transfer-Encoding: chunked", body=b"+1\r\nx\r\n0\r\n\r\n"), 400),
    "a chunk size with 0x": (post("Transfer-Encoding: chunked", body=b"0x1\r\nx\r\n0\r\n\r\n"), 400),
    "an empty chunk size": (post("Transfer-Encoding: chunked", body=b"\r\n\r\n"), 400),
    "a chunk size that overflows": (post("Transfer-Encoding: chunked", body=b"10000000000000001\r\nx"), 400),
    "a line feed alone after a chunk size": (post("Transfer-Encoding: chunked", body=b"1\nx\r\n0\r\n\r\n"), 400),
    "a line feed alone in an extension": (post("Transfer-Encoding: chunked", body=b"1;a\nx\r\n0\r\n\r\n"), 400),
    "a carriage return alone in an extension": (post("Transfer-Encoding: chunked", body=b"1;a\rb\r\nx\r\n"), 400),
    "a chunk longer than its size": (post("Transfer-Encoding: chunked", body=b"1\r\nxy\r\n0\r\n\r\n"), 400),
    "a malformed trailer": (post("Transfer-Encoding: chunked", body=b"0\r\nno colon\r\n\r\n"), 400),
    "an endless extension": (post("Transfer-Encoding: chunked", body=b"1;" + b"x" * 400), 400),
    "endless trailers": (post("Transfer-Encoding: chunked", body=b"0\r\n" + b"A: b\r\n" * 200), 400),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    data, status = REFUSED[name]
    assert status_of(data) == status


def test_nothing_is_read_behind_a_refusal() -> None:
    parser = RequestParser(LIMITS)
    assert [type(event) for event in parser.feed(get("X : a") + get())] == [HttpError]
    assert parser.feed(get()) == []
    assert parser.state == "refused"


# -- limits ----------------------------------------------------------------------------------------------------


def test_a_head_may_be_as_long_as_the_limit_and_no_longer() -> None:
    room = LIMITS.max_head_bytes - len(get("X: "))
    assert isinstance(parse(get("X: " + "a" * room))[0], Request)
    assert status_of(get("X: " + "a" * (room + 1))) == 431


def test_a_head_that_never_ends_is_refused_at_the_limit() -> None:
    assert parse(b"GET /" + b"a" * (LIMITS.max_head_bytes - 6)) == []
    assert status_of(b"GET /" + b"a" * (LIMITS.max_head_bytes - 5)) == 431


def test_the_number_of_headers_is_limited() -> None:
    assert isinstance(parse(get(*["X: y"] * 7))[0], Request)
    assert status_of(get(*["X: y"] * 8)) == 431


def test_a_body_longer_than_the_limit_is_refused_before_it_comes() -> None:
    assert status_of(post("Content-Length: 65")) == 413
    assert status_of(post("Content-Length: 65", "Expect: 100-continue")) == 413
    assert status_of(post("Content-Length: " + "9" * 18)) == 413
    assert status_of(post("Transfer-Encoding: chunked", body=b"20\r\n" + b"x" * 32 + b"\r\n21\r\n")) == 413
    assert only_request(post("Content-Length: 64", body=b"x" * 64)).body == b"x" * 64


# -- the same events however the bytes are cut -------------------------------------------------------------------

token = st.text("abcXYZ-_09", min_size=1, max_size=8)
value = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, or almost one."""
    line = draw(st.sampled_from(["GET / HTTP/1.1", "POST /a?b HTTP/1.1", "HEAD * HTTP/1.0", "FOO / HTTP/1.1", "x"]))
    lines = [f"{name}: {text}" for name, text in draw(st.lists(st.tuples(token, value), max_size=4))]
    body = draw(st.binary(max_size=80))
    framing = draw(st.sampled_from(["none", "length", "chunked", "wrong"]))
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        cut = draw(st.integers(0, len(body)))
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part) + b"0\r\n\r\n"
    elif framing == "wrong":
        lines.append(draw(st.sampled_from(["Content-Length: 3, 3", "Transfer-Encoding: gzip", "a\nb: c", "Expect: x"])))
    else:
        body = b""
    return "\r\n".join([line, "Host: a", *lines, "", ""]).encode("latin-1") + body


@given(
    st.lists(
        st.one_of(requests(), st.sampled_from([data for data, _ in REFUSED.values()]), st.binary(max_size=30)),
        max_size=4,
    ),
    st.data(),
)
def test_the_events_are_the_same_however_the_bytes_are_cut(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]
    whole = parse(stream)
    assert parse(*pieces) == whole
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == whole


@given(
    st.binary(max_size=600),
    st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n"]),
)
@example(b"\r" * 600, b"")
def test_no_bytes_raise_anything_and_nothing_is_kept_beyond_the_limits(noise: bytes, start: bytes) -> None:
    parser = RequestParser(LIMITS)
    for piece in (start, noise, noise):
        for event in parser.feed(piece):
            assert isinstance(event, Request | Continue | HttpError)
        assert len(parser._buffer) <= LIMITS.max_head_bytes + LIMITS.max_body_bytes
