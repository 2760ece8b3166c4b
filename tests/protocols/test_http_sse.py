"""Server-sent events: the WHATWG examples, any line ending, any cut, and nothing that was not whole."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.protocols.http.sse import SseError, SseEvent, SseParser, encode_event, plain


def parse(*pieces: bytes) -> list[SseEvent]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def test_an_event_has_its_data_type_and_id() -> None:
    assert parse(b"event: add\nid: 7\ndata: one\ndata:two\ndata\n\ndata: x\n\n") == [
        SseEvent("one\ntwo\n", "add", "7"),
        SseEvent("x", "message", "7"),
    ]


def test_the_examples_of_the_standard_read_as_it_says() -> None:
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
    assert parse(stream) == [SseEvent("first event", id="1"), SseEvent("second event"), SseEvent(" third event")]
    assert parse(b"data\n\ndata\ndata\n\ndata:") == [SseEvent(""), SseEvent("\n")]
    assert parse(b"data:test\n\ndata: test\n\n") == [SseEvent("test"), SseEvent("test")]


def test_comments_and_unknown_fields_are_skipped_and_retry_is_kept() -> None:
    parser = SseParser()
    assert parser.feed(b": PROCESSING\n\nretry: 10x\nretry: 3000\nfoo: bar\n\n:\n\ndata: a\n\n") == [SseEvent("a")]
    assert parser.retry == 3000


def test_an_event_without_its_empty_line_is_never_given() -> None:
    assert parse(b"data: [DONE]\n") == []


def test_a_byte_order_mark_is_skipped_once() -> None:
    assert parse(b"\xef", b"\xbb", b"\xbfdata: a\n\n") == [SseEvent("a")]


def test_an_endless_event_is_an_error() -> None:
    for stream in (b"data: " + b"x" * 100, b"data: x\n" * 20, b"x" * 100):
        with pytest.raises(SseError, match="longer than 64 bytes"):
            SseParser(max_event=64).feed(stream)
    assert SseParser(max_event=64).feed(b": comment\n" * 50 + b"data: a\n\n") == [SseEvent("a")]


def cut(stream: bytes, data: st.DataObject) -> list[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    return [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]


fragments = st.sampled_from(
    ["data: ", "data", ":", "event: ", "id: ", "retry: 1", "\n", "\r", "\r\n", "ä", "🐟", "x", " ", "\0"]
)


@given(st.lists(fragments, max_size=40), st.data())
def test_the_events_are_the_same_however_the_bytes_are_cut(parts: list[str], data: st.DataObject) -> None:
    stream = "".join(parts).encode()
    assert parse(*cut(stream, data)) == parse(stream)
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == parse(stream)


@given(
    st.lists(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]))),
    st.sampled_from(["\n", "\r", "\r\n"]),
)
def test_what_is_encoded_reads_back_with_any_line_ending(texts: list[str], ending: str) -> None:
    stream = b"".join(b": keep-alive\n\n" + encode_event(text.encode(), "delta") for text in texts)
    assert parse(stream.replace(b"\n", ending.encode())) == [SseEvent(text, "delta") for text in texts]


plain_fragments = st.sampled_from(
    ["data: x\n\n", "data: ä\n\n", "data: \n\n", "data: a\ndata: b\n\n", "event: e\n", "\n"]
)


@given(st.lists(st.one_of(plain_fragments, fragments), max_size=12).map("".join), st.data())
def test_the_short_way_for_plain_streams_gives_what_the_long_one_gives(text: str, data: st.DataObject) -> None:
    stream = text.encode()
    parser, given_ = SseParser(), []
    for piece in cut(stream, data):
        joined, count = (plain(piece) if parser.between else None) or (b"\n", 0)
        if b"\n" in joined:  # several lines, or other fields: the long way after all
            given_ += [event.data for event in parser.feed(piece)]
        else:
            given_ += joined.decode().split(",")
            assert joined.count(b",") == count - 1
    assert given_ == [event.data for event in parse(stream)]


def test_plain_events_take_the_short_way_and_bytes_that_are_not_utf8_do_not() -> None:
    assert plain(b"data: a\n\ndata: b\n\n") == (b"a,b", 2)
    assert plain(b"data: \xff\n\n") is None
    assert plain(b"data: a\n\ndata: b") is None
    assert plain(b": note\n\n") is None
