"""Messages about holes and about reachability: what is sent is what the page says, and what comes is read with care."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch as Theirs
from multiaddr import Multiaddr
from shoal.protocols.p2p import autonat
from shoal.protocols.p2p.autonat import Ask, DialledBack, Seen
from shoal.protocols.p2p.dcutr_message import CONNECT, MAX_PAIRS, NATS, REACHES, SYNC, HolePunch, decode, encode, frame
from shoal.protocols.p2p.errors import ProtocolViolation
from shoal.protocols.p2p.reachability import Facts

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
pairs = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))
facts = st.builds(Facts, reach=st.sampled_from(REACHES), nat=st.sampled_from(NATS))
messages = st.builds(
    HolePunch, st.sampled_from((CONNECT, SYNC)), st.lists(pairs, max_size=MAX_PAIRS).map(tuple), st.none() | facts
)
VECTORS = {
    "ask, port 4001": autonat.encode(Ask(4001)),
    "seen, 11.22.33.1 port 40022": autonat.encode(Seen("11.22.33.1", 40022)),
    "dialled back": autonat.encode(DialledBack(True)),
    "not dialled back, connection refused": autonat.encode(DialledBack(False, "connection refused")),
    "CONNECT, 11.22.33.1 port 4001, private, keeps ports": frame(
        HolePunch(CONNECT, (("11.22.33.1", 4001),), Facts(reach="private", nat="keeps-ports"))
    ),
    "SYNC": frame(HolePunch(SYNC)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_vectors_in_the_documentation_are_what_is_sent(name: str) -> None:
    documented = dict(re.findall(r"^\| ([^|]+?) \| `([0-9a-f ]+)` \|$", PAGE.read_text(), re.MULTILINE))
    assert documented[name].replace(" ", "") == VECTORS[name].hex()


@given(messages)
def test_what_is_sent_is_what_is_read(message: HolePunch) -> None:
    assert decode(encode(message)) == message


@given(messages)
def test_another_implementation_reads_it_and_skips_what_is_ours(message: HolePunch) -> None:
    read = Theirs.FromString(encode(message))
    assert read.type == message.kind
    told = [f"/ip{6 if ':' in ip else 4}/{ip}/tcp/{port}" for ip, port in message.pairs]
    assert list(read.ObsAddrs) == [Multiaddr(text).to_bytes() for text in told]


def test_what_another_implementation_sends_is_read() -> None:
    told = [
        "/ip4/11.22.33.1/tcp/4001",
        "/ip4/1.2.3.4/udp/4001/quic-v1",
        "/dns4/example.org/tcp/1",
        "/ip6/2a00::1/tcp/9",
    ]
    message = Theirs(type=Theirs.CONNECT, ObsAddrs=[Multiaddr(text).to_bytes() for text in told])
    assert decode(message.SerializeToString()) == HolePunch(CONNECT, (("11.22.33.1", 4001), ("2a00::1", 9)))


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_be_refused(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolViolation:
        return
    assert message.kind in (CONNECT, SYNC)
    assert len(message.pairs) <= MAX_PAIRS


@given(messages, st.data())
def test_a_message_cut_short_or_changed_does_no_worse_either(message: HolePunch, data: st.DataObject) -> None:
    whole = bytearray(encode(message))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    test_no_bytes_do_worse_than_be_refused.hypothesis.inner_test(bytes(whole))
    test_no_bytes_do_worse_than_be_refused.hypothesis.inner_test(bytes(whole[:position]))


def test_a_number_that_nobody_knows_yet_counts_as_unknown() -> None:
    data = bytearray(encode(HolePunch(CONNECT, (), Facts(reach="private", nat="keeps-ports"))))
    data[-1] = data[-3] = 9
    assert decode(bytes(data)).facts == Facts()
