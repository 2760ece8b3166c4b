"""Bitswap messages: the codec against the library's protobuf, and against nonsense."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.bitswap.pb.bitswap_pb2 import Message as Oracle
from multiformats import CID
from shoal.protocols.p2p import cids
from shoal.protocols.p2p.bitswap_message import (
    MAX_ENTRIES,
    Block,
    Message,
    Presence,
    Want,
    decode,
    encode,
    encode_varint,
    frame,
)
from shoal.protocols.p2p.errors import ProtocolViolation

some_cids = st.binary(min_size=1, max_size=128)
wants = st.builds(Want, some_cids, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**31 - 1))
blocks = st.builds(Block, st.binary(max_size=8), st.binary(max_size=300))
presences = st.builds(Presence, some_cids, st.booleans())
messages = st.builds(
    Message,
    st.lists(wants, max_size=5).map(tuple),
    st.lists(blocks, max_size=5).map(tuple),
    st.lists(presences, max_size=5).map(tuple),
    st.booleans(),
)


@given(messages)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages)
def test_the_protobuf_library_reads_the_same_message(message: Message) -> None:
    oracle = Oracle()
    oracle.ParseFromString(encode(message))
    assert [entry.block for entry in oracle.wantlist.entries] == [want.cid for want in message.wants]
    assert [entry.wantType for entry in oracle.wantlist.entries] == [int(want.have) for want in message.wants]
    assert [entry.cancel for entry in oracle.wantlist.entries] == [want.cancel for want in message.wants]
    assert [entry.sendDontHave for entry in oracle.wantlist.entries] == [want.dont_have for want in message.wants]
    assert [(block.prefix, block.data) for block in oracle.payload] == [(b.prefix, b.data) for b in message.blocks]
    assert [(p.cid, p.type == 0) for p in oracle.blockPresences] == [(p.cid, p.have) for p in message.presences]
    assert oracle.wantlist.full == message.full
    assert decode(oracle.SerializeToString()) == message


@given(messages)
def test_the_want_list_is_always_there(message: Message) -> None:
    oracle = Oracle()
    oracle.ParseFromString(encode(message))
    assert oracle.HasField("wantlist")


@given(st.binary(max_size=400))
def test_nonsense_is_a_message_or_a_violation(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        assert isinstance(decode(data), Message)


@given(messages, st.data())
def test_a_message_cut_short_raises_nothing_else(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    with contextlib.suppress(ProtocolViolation):
        decode(whole[: data.draw(st.integers(0, len(whole)))])


def test_unknown_fields_are_skipped() -> None:
    message = Message(wants=(Want(b"cid"),))
    assert decode(encode(message) + b"\x28\x07" + b"\x7a\x03abc" + b"\x85\x01abcd") == message


def test_a_block_of_the_oldest_version_has_the_prefix_of_a_cidv0() -> None:
    assert decode(b"\x12\x05hello").blocks == (Block(cids.V0_PREFIX, b"hello"),)


def test_more_entries_than_allowed_are_a_violation() -> None:
    entry = b"\x0a\x03\x0a\x01c"
    with pytest.raises(ProtocolViolation, match="entries"):
        decode(b"\x0a" + encode_varint(len(entry) * (MAX_ENTRIES + 1)) + entry * (MAX_ENTRIES + 1))


def test_a_frame_begins_with_its_length() -> None:
    message = Message(blocks=(Block(b"\x01\x55\x12\x20", bytes(300)),))
    data = encode(message)
    assert frame(message) == encode_varint(len(data)) + data
    assert frame(Message()) == b"\x02\x0a\x00"


@given(st.binary(max_size=64), st.sampled_from(["raw", "dag-cbor", "dag-pb"]), st.sampled_from(["base32", "base58btc"]))
def test_a_cid_is_read_like_the_reference_library_reads_it(data: bytes, codec: str, base: str) -> None:
    digest = hashlib.sha256(data).digest()
    cid = CID(base, 1, codec, ("sha2-256", digest))
    assert cids.parse(str(cid)) == bytes(cid)
    assert cids.multihash(bytes(cid)) == cids.multihash_of(data)
    assert cids.prefix(bytes(cid)) + digest == bytes(cid)


def test_a_cidv0_is_its_multihash() -> None:
    text = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
    assert cids.parse(text) == cids.multihash(cids.parse(text))
    assert cids.prefix(cids.parse(text)) == cids.V0_PREFIX


@pytest.mark.parametrize("text", ["", "b", "bafy", "hello", "Qm", "z6", "b" + "a" * 58, "f0155", "b" * 500])
def test_what_is_no_cid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"CID|base32|base58|varint"):
        cids.parse(text)
