"""Keys: two modes of one name, and the keyed names of private swarms."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID, multihash
from shoal.cache.canonical import canonical_bytes
from shoal.cache.cid import CidError, cid_text
from shoal.cache.key import Key, check_mode, parse_key, request_key, same_request

from .answers import ask


def test_mode_cid_names_the_canonical_block() -> None:
    expected = CID("base32", 1, "dag-cbor", multihash.digest(canonical_bytes(ask()), "sha2-256"))
    key = request_key(ask(), "cid")
    assert key.text == str(expected)
    assert key.cid == bytes(expected) == key.reference


def test_mode_sha256_is_the_whole_digest_of_the_same_bytes() -> None:
    key = request_key(ask(), "sha256")
    assert key.text == hashlib.sha256(canonical_bytes(ask())).hexdigest()
    assert key.reference == key.digest == bytes.fromhex(key.text)


def test_the_modes_know_each_others_keys() -> None:
    one, other = request_key(ask(), "cid"), request_key(ask(), "sha256")
    assert one == other
    assert hash(one) == hash(other)
    assert same_request(one.reference, other.reference)


@pytest.mark.parametrize("mode", ["", "CID", "sha512", "auto"])
def test_a_mode_that_cannot_be_honoured_is_an_error(mode: str) -> None:
    with pytest.raises(ValueError, match="sha256"):
        request_key(ask(), mode)
    with pytest.raises(ValueError, match="cid"):
        check_mode(mode)


def test_a_keyed_name_depends_on_the_key_and_on_the_request() -> None:
    names = {
        request_key(ask(prompt), "cid", key).cid
        for prompt in ("a", "b")
        for key in (None, b"one swarm's cache key", b"another one's, longer")
    }
    assert len(names) == 6
    assert request_key(ask(), "cid", b"k" * 16) == request_key(ask(), "sha256", b"k" * 16)


def test_a_short_swarm_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        request_key(ask(), "cid", b"short")


@given(st.binary(max_size=40).map(lambda b: ask(b.hex())), st.sampled_from(["cid", "sha256"]))
def test_a_key_is_read_back_from_its_text(request_: object, mode: str) -> None:
    key = request_key(request_, mode)  # type: ignore[arg-type]
    again = parse_key(key.text)
    assert again == key
    assert again.text == key.text


@pytest.mark.parametrize("text", ["", "z" * 64, "ab" * 31, " " + "ab" * 31 + " ", "bafy"])
def test_what_is_not_a_key_is_refused(text: str) -> None:
    with pytest.raises(CidError):
        parse_key(text)


def test_references_of_odd_sizes_never_match() -> None:
    digest = request_key(ask()).digest
    assert not same_request(digest + b"\0", digest)
    assert not same_request(b"", b"")


def test_a_key_is_made_of_a_real_cid_only() -> None:
    with pytest.raises(CidError):
        Key(b"\0" * 36)
    assert Key(request_key(ask()).cid).text == cid_text(request_key(ask()).cid)
