"""Peer ids: the key in libp2p's spelling, and signatures that verify by the id alone."""

import base58
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from shoal.protocols.peer_id import (
    Identity,
    base58_decode,
    base58_encode,
    parse_peer_id,
    peer_id_of,
    public_key_of,
    verify,
)


def test_a_seed_gives_the_peer_id_that_libp2p_gives():
    # made with libp2p.peer.id.ID.from_pubkey of py-libp2p 0.8.1
    assert Identity.from_seed(b"\x07" * 32).peer_id == "12D3KooWRawPbxPtP1eZaJpumGnyWX2DcUyd3RQnydr3eAto4Az7"


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_carries_its_key(key):
    assert public_key_of(peer_id_of(key)) == key


@given(st.binary(max_size=64))
def test_base58_is_what_the_base58_package_writes(data):
    assert base58_encode(data) == base58.b58encode(data).decode()
    assert base58_decode(base58_encode(data)) == data


@pytest.mark.parametrize("text", ["", "12D3KooW", "0" * 52, "Q" * 52, "1" * 52, "12D3KooW" + "I" * 44, "é" * 52])
def test_what_is_not_an_ed25519_peer_id_is_refused(text):
    with pytest.raises(ValueError):
        parse_peer_id(text)


def test_the_seed_brings_the_identity_back():
    identity = Identity.generate()
    assert Identity.from_seed(identity.seed).peer_id == identity.peer_id


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_a_signature_is_the_one_that_openssl_makes(seed, message):
    assert Identity.from_seed(seed).sign(message) == Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def test_a_signature_holds_for_its_message_and_its_signer_only():
    identity, other = Identity.generate(), Identity.generate()
    signature = identity.sign(b"message")
    assert verify(identity.peer_id, signature, b"message")
    assert not verify(identity.peer_id, signature, b"massage")
    assert not verify(other.peer_id, signature, b"message")
    assert not verify(identity.peer_id, signature[:-1], b"message")
    assert not verify("not a peer id", signature, b"message")


@given(st.binary(max_size=100), st.integers(0, 64 * 8 - 1))
def test_a_signature_with_another_bit_holds_for_nothing(message, bit):
    identity = Identity.from_seed(b"\x07" * 32)
    signature = bytearray(Ed25519PrivateKey.from_private_bytes(identity.seed).sign(message))
    assert verify(identity.peer_id, bytes(signature), message)
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(identity.peer_id, bytes(signature), message)


def test_a_key_whose_signatures_anybody_can_make_is_good_for_none():
    nothing = b"\x01" + bytes(31)  # the neutral point: with it R = B * S holds for every message
    assert not verify(peer_id_of(nothing), nothing + bytes(32), b"whatever")


def test_the_secret_is_not_in_the_repr():
    identity = Identity.generate()
    assert repr(identity) == f"Identity({identity.peer_id})"
