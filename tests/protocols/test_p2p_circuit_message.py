"""What goes between a relay and its users, as bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from shoal.protocols.p2p.circuit_message import (
    MAX_ADDRESSES,
    MAX_ID_BYTES,
    Hop,
    HopKind,
    Limit,
    Status,
    Stop,
    StopKind,
    decode_hop,
    decode_stop,
    encode,
    frame,
)
from shoal.protocols.p2p.errors import ProtocolViolation

peers = st.binary(min_size=1, max_size=MAX_ID_BYTES)
limits = st.builds(Limit, st.integers(0, 2**32 - 1), st.integers(0, 2**63))
statuses = st.sampled_from([int(status) for status in Status])
hops = st.builds(
    Hop,
    st.sampled_from(HopKind),
    st.none() | peers,
    st.none() | st.integers(0, 2**62),
    st.just(()),
    st.none() | limits,
    st.none() | statuses,
)
stops = st.builds(Stop, st.sampled_from(StopKind), st.none() | peers, st.none() | limits, st.none() | statuses)


@given(hops)
def test_what_a_relay_is_asked_comes_back_from_its_bytes(hop: Hop) -> None:
    assert decode_hop(encode(hop)) == hop


@given(stops)
def test_what_a_relay_asks_comes_back_from_its_bytes(stop: Stop) -> None:
    assert decode_stop(encode(stop)) == stop


@given(hops)
def test_another_implementation_reads_the_same(hop: Hop) -> None:
    read = HopMessage()
    read.ParseFromString(encode(hop))
    assert (read.type, read.HasField("peer")) == (hop.kind, hop.peer is not None)
    assert hop.peer is None or read.peer.id == hop.peer
    assert hop.expires is None or read.reservation.expire == hop.expires
    assert hop.limit is None or (read.limit.duration, read.limit.data) == (hop.limit.duration_s, hop.limit.data)
    assert hop.status is None or read.status == hop.status
    assert decode_hop(read.SerializeToString()) == hop


@given(stops)
def test_another_implementation_reads_the_other_message(stop: Stop) -> None:
    read = StopMessage()
    read.ParseFromString(encode(stop))
    assert decode_stop(read.SerializeToString()) == stop


def test_addresses_of_a_relay_are_bounded() -> None:
    hop = Hop(HopKind.STATUS, expires=1, addresses=tuple(bytes([n]) for n in range(100)), status=Status.OK)
    assert len(decode_hop(encode(hop)).addresses) == MAX_ADDRESSES


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_violation(data: bytes) -> None:
    for decode in (decode_hop, decode_stop):
        with contextlib.suppress(ProtocolViolation):
            decode(data)


@pytest.mark.parametrize("data", [b"\x08\x63", b"\x0a\x01a", b"\x12\x00", b"\x12\x02\x0a\x00", b"\x12\x03\x0a\x05a"])
def test_what_breaks_the_format_is_told(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_hop(data)


def test_the_bytes_are_those_of_the_documentation() -> None:
    assert frame(Hop(HopKind.RESERVE)).hex() == "020800"
    assert frame(Hop(HopKind.STATUS, status=Status.NO_RESERVATION)).hex() == "05080228cc01"
    assert frame(Stop(StopKind.STATUS, status=Status.OK)).hex() == "0408012064"
