"""The codec: what goes in comes out, however the bytes are cut; what is wrong is refused, and cheaply."""

import contextlib
import re
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.protocols.framing import (
    CALL,
    CANCEL,
    CREDIT,
    DELTA,
    END,
    ERROR,
    GOAWAY,
    HELLO,
    LOOKUP,
    MAX_CALL_ID,
    MAX_FRAME_BYTES,
    NOTE,
    PART,
    PART_BYTES,
    PING,
    WHOLE_BODY_BYTES,
    Assembly,
    FrameParser,
    ProtocolError,
    encode_body,
    frame,
    parts,
)
from shoal.protocols.peer_id import Identity
from shoal.protocols.session import Hello

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
frames = st.lists(st.tuples(st.integers(0, 14), st.integers(0, MAX_CALL_ID), plain), max_size=6)


def feed_in_pieces(data: bytes, cuts: list[int]) -> list[tuple[int, int, object]]:
    parser, out, last = FrameParser(), [], 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        out += parser.feed(data[last:cut])
        last = cut
    return [entry[:3] for entry in out]


@given(frames, st.lists(st.integers(0, 300), max_size=8))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(sent, cuts):
    data = b"".join(frame(*entry) for entry in sent)
    assert feed_in_pieces(data, cuts) == sent


@given(plain)
def test_a_frame_is_a_length_and_plain_msgpack(body):
    data = frame(DELTA, 5, body)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert msgpack.unpackb(data[4:], strict_map_key=False) == [DELTA, 5, body]


PEER = Identity.from_seed(b"\x01" * 32).peer_id
EMBED = {
    "request": {"messages": [], "model": "minilm", "embed": {"inputs": ["hot"]}},
    "deadline_ms": 60_000,
    "hops": 0,
    "seen": [],
}
VECTORS = {
    frame(PING, 7): "ping, 7",
    frame(CALL, 1, ["echo", {"a": 1}]): "call 1",
    frame(DELTA, 300, ["t", "Hi"]): "delta 300",
    frame(END, 1, {"a": 1}): "end 1",
    frame(ERROR, 1, ["busy", "later", None]): "error 1",
    frame(CANCEL, 3): "cancel 3",
    frame(CREDIT, 1, 131072): "credit 1",
    frame(LOOKUP, 5, [b"\x01\x71"]): "lookup 5",
    frame(NOTE, 0, ["load", bytes(32)]): "note",
    frame(CALL, 5, ["generate", EMBED]): "call 5",
    frame(CALL, 7, ["lead", {"request": b"\x01\x71", "lost": []}]): "call 7",
    frame(END, 8, {"leader": PEER}): "end 8",
    frame(CALL, 9, ["join", {"request": b"\x01\x71", "deadline_ms": 60000}]): "call 9",
    frame(GOAWAY, 0, "wrong swarm"): "goaway",
    frame(HELLO, 0, Hello(swarm="home", peer=PEER, agent="shoal/0.1.0")): "hello of",
    list(parts(DELTA, 1, encode_body(bytes(65536))))[-1]: "the last is",
}


@pytest.mark.parametrize("made", VECTORS, ids=VECTORS.values())
def test_the_vectors_in_the_documentation_are_what_is_sent(made):
    row = re.search(rf"^\| {VECTORS[made]}.*\| `(.*)` \|$", PAGE.read_text(), re.MULTILINE)
    assert row is not None
    assert bytes.fromhex(row[1]) == made


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_garbage_gives_frames_or_a_protocol_error_and_nothing_else(data):
    try:
        for kind, call_id, _, size in FrameParser().feed(data):
            assert isinstance(kind, int)
            assert 0 <= call_id <= MAX_CALL_ID
            assert size <= len(data)
    except ProtocolError:
        pass


@given(st.binary(max_size=100))
@settings(max_examples=500)
def test_garbage_inside_a_well_formed_length_is_refused_or_a_frame(payload):
    with contextlib.suppress(ProtocolError):
        FrameParser().feed(len(payload).to_bytes(4, "big") + payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x90",
        b"\x92\x01\x01",
        b"\x94\x01\x01\xc0\xc0",
        b"\x93\xa1a\x01\xc0",
        b"\x93\x01\xff\xc0",
        b"\x93\x01\xcf" + b"\xff" * 8 + b"\xc0",
        b"\x93\x01\x01\xc0\xc0",
        b"\x93\x01\x01" + b"\x91" * 60_000 + b"\x01",
        b"\x93\x01\x01\xdd\xff\xff\xff\xff",
        b"\x93\x01\x01\xa1\xff",
        b"\x93\x01\x01\xc1",
    ],
    ids=[
        "nothing", "empty array", "two", "four", "text kind", "negative id", "huge id", "trailing", "deep",
        "array bomb", "bad text", "no msgpack",
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused(payload):
    with pytest.raises(ProtocolError):
        FrameParser().feed(len(payload).to_bytes(4, "big") + payload)


def test_an_oversized_frame_is_refused_by_its_length_alone():
    with pytest.raises(ProtocolError, match=str(MAX_FRAME_BYTES + 1)):
        FrameParser().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ValueError, match="parts"):
        frame(DELTA, 1, b"x" * MAX_FRAME_BYTES)


@given(st.integers(WHOLE_BODY_BYTES, 5 * PART_BYTES))
@settings(max_examples=30)
def test_a_large_body_comes_back_from_its_parts(size):
    payload = encode_body(b"\xab" * size)
    received = [entry for piece in parts(DELTA, 3, payload) for entry in FrameParser().feed(piece)]
    assert {(kind, call_id) for kind, call_id, _, _ in received} == {(PART, 3)}
    assembly = Assembly.begin(received[0][2])
    assert [assembly.add(body) for _, _, body, _ in received] == [False] * (len(received) - 1) + [True]
    assert assembly.body() == b"\xab" * size


@given(plain)
def test_a_malformed_part_is_refused(body):
    with pytest.raises(ProtocolError):
        Assembly.begin(body)


@pytest.mark.parametrize(
    "body",
    [
        [DELTA, 100_001, b"x"],
        [CALL, 100_000, b"x"],
        [DELTA, 100_000, b""],
        [DELTA, 100_000, b"x" * (PART_BYTES + 1)],
        [DELTA, 100_000, "x"],
    ],
    ids=["another total", "another kind", "empty", "too long", "text"],
)
def test_a_part_that_does_not_belong_is_refused(body):
    assembly = Assembly(DELTA, 100_000)
    assert not assembly.add([DELTA, 100_000, b"x" * PART_BYTES])
    with pytest.raises(ProtocolError):
        assembly.add(body)


def test_parts_cannot_exceed_their_total():
    assembly = Assembly(DELTA, WHOLE_BODY_BYTES + 1)
    for _ in range(2):
        assembly.add([DELTA, WHOLE_BODY_BYTES + 1, b"x" * PART_BYTES])
    with pytest.raises(ProtocolError):
        assembly.add([DELTA, WHOLE_BODY_BYTES + 1, b"xx"])


def test_a_small_body_may_not_come_in_parts():
    with pytest.raises(ProtocolError):
        Assembly.begin([DELTA, WHOLE_BODY_BYTES, b"x"])
