"""CIDs: stdlib against the reference library, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID, multihash
from shoal.cache.cid import (
    DAG_CBOR,
    RAW,
    CidError,
    cid_of,
    cid_text,
    codec_of,
    digest_of,
    holds,
    multihash_of,
    parse_cid,
)

NAMES = {RAW: "raw", DAG_CBOR: "dag-cbor"}


def oracle(codec: int, data: bytes) -> CID:
    return CID("base32", 1, NAMES[codec], multihash.digest(data, "sha2-256"))


@given(st.sampled_from([RAW, DAG_CBOR]), st.binary(max_size=300))
def test_a_cid_is_the_one_that_the_reference_library_makes(codec: int, data: bytes) -> None:
    cid, expected = cid_of(codec, data), oracle(codec, data)
    assert cid == bytes(expected)
    assert cid_text(cid) == str(expected)
    assert multihash_of(cid) == bytes(expected.digest)
    assert digest_of(cid) == expected.raw_digest
    assert codec_of(cid) == codec


@given(
    st.sampled_from([RAW, DAG_CBOR]),
    st.binary(max_size=50),
    st.sampled_from(["base32", "base58btc", "base36", "base64url"]),
)
def test_every_spelling_of_a_cid_is_read(codec: int, data: bytes, base: str) -> None:
    assert parse_cid(oracle(codec, data).encode(base)) == cid_of(codec, data)


def test_capitals_are_a_spelling_too() -> None:
    assert parse_cid(GOOD.upper()) == cid_of(RAW, b"x")  # multibase "B"


def test_a_known_block_has_its_known_name() -> None:
    assert cid_text(cid_of(RAW, b"")) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


def test_a_cid_holds_its_block_and_no_other() -> None:
    cid = cid_of(RAW, b"one")
    assert holds(cid, b"one")
    assert not holds(cid, b"two")


V0 = str(CID("base58btc", 0, "dag-pb", multihash.digest(b"x", "sha2-256")))
SHA512 = str(CID("base32", 1, "raw", multihash.digest(b"x", "sha2-512")))
JSON = str(CID("base32", 1, "dag-json", multihash.digest(b"x", "sha2-256")))
GOOD = cid_text(cid_of(RAW, b"x"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "hello",
        V0,
        SHA512,
        JSON,
        GOOD[:-1],
        GOOD + "a",
        "b" + GOOD[1:].upper(),
        GOOD[:-1] + "1",
        "b" * 500,
        "b" * 59,
        "é" * 59,
    ],
)
def test_what_is_not_one_of_our_cids_is_refused(text: str) -> None:
    with pytest.raises(CidError):
        parse_cid(text)


@pytest.mark.parametrize("value", range(32))
def test_stray_bits_in_the_last_character_are_refused(value: int) -> None:
    text = GOOD[:-1] + "abcdefghijklmnopqrstuvwxyz234567"[value]
    if value % 4 == 0:  # 58 characters hold 290 bits, a CID has 288: the last two must be zero
        assert cid_text(parse_cid(text)) == text
    else:
        with pytest.raises(CidError, match="canonical"):
            parse_cid(text)


@pytest.mark.parametrize(
    "cid", [b"", bytes(36), cid_of(RAW, b"")[:-1], cid_of(RAW, b"") + b"\0", b"\x01\x70\x12\x20" + bytes(32)]
)
def test_a_binary_cid_of_another_kind_is_refused(cid: bytes) -> None:
    with pytest.raises(CidError):
        codec_of(cid)
