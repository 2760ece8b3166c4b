"""Who a node is: an Ed25519 key, and the peer id that is that key in libp2p's spelling.

What belongs here: making, reading and checking identities as pure functions of bytes. Where the seed is kept is the
node's business. Format: libp2p "Peer Ids and Keys" (specs/peer-ids/peer-ids.md): an Ed25519 public key is short
enough to be its own (identity) multihash, so a peer id carries the key and a signature verifies by the id alone.

    me = Identity.generate()
    assert verify(me.peer_id, me.sign(b"hello"), b"hello")
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, NewType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PeerId = NewType("PeerId", str)  # base58btc, "12D3KooW..." (52 characters)

KEY_BYTES = 32
SIGNATURE_BYTES = 64
PEER_ID_CHARS = 52

# identity multihash (0x00), 36 bytes (0x24): protobuf PublicKey{Type: Ed25519 (08 01), Data: 32 bytes (12 20)}
_PREFIX = bytes.fromhex("002408011220")
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES = {char: value for value, char in enumerate(_ALPHABET)}


def base58_encode(data: bytes) -> str:
    """`data` in Bitcoin's base58, leading zero bytes as "1"."""
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def base58_decode(text: str) -> bytes:
    """The bytes of `text`; ValueError for a character outside the alphabet. Cost grows with the square of the length:
    bound it first."""
    number = 0
    for char in text:
        if (value := _VALUES.get(char)) is None:
            raise ValueError(f"{char!r} is not a base58 character")
        number = number * 58 + value
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a raw Ed25519 public key (32 bytes)."""
    if len(public_key) != KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {KEY_BYTES} bytes, not {len(public_key)}")
    return PeerId(base58_encode(_PREFIX + public_key))


@functools.lru_cache(maxsize=1024)
def public_key_of(peer_id: str) -> bytes:
    """The raw public key (32 bytes) inside a peer id. ValueError when it is not the id of an Ed25519 key."""
    if len(peer_id) == PEER_ID_CHARS:
        data = base58_decode(peer_id)
        if data.startswith(_PREFIX) and len(data) == len(_PREFIX) + KEY_BYTES:
            return data[len(_PREFIX) :]
    raise ValueError("not the peer id of an Ed25519 key: expected 52 characters that begin with 12D3KooW")


def parse_peer_id(text: str) -> PeerId:
    """`text` as a peer id, checked. ValueError otherwise."""
    public_key_of(text)
    return PeerId(text)


def short(peer_id: str) -> str:
    """The last six characters, for people: the first eight are the same for every node."""
    return peer_id[-6:]


def verify(peer_id: str, signature: bytes, message: bytes) -> bool:
    """Whether `signature` (64 bytes) over `message` was made by the node called `peer_id`. False for a bad id, too."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        public_key = public_key_of(peer_id)
    except ValueError:
        return False
    ed25519 = _ed25519()
    try:
        ed25519.opened(signature + message, public_key)
    except ed25519.forged:
        return False
    return True


class _Ed25519(NamedTuple):
    """libsodium's signatures. A node signs every answer that it keeps and checks every one that it gets, and OpenSSL
    takes half as long again to sign and twice as long to check. A key has one signature of a message (RFC 8032), so it
    is the same from both; a key of small order, whose signatures anybody can make, is good for none here."""

    signed: Callable[[bytes, bytes], bytes]
    opened: Callable[[bytes, bytes], bytes]
    forged: type[Exception]


@functools.cache
def _ed25519() -> _Ed25519:
    from nacl.bindings import crypto_sign, crypto_sign_open  # 3 ms: many a command needs no signature
    from nacl.exceptions import BadSignatureError

    return _Ed25519(crypto_sign, crypto_sign_open, BadSignatureError)


class Identity:
    """A node's private key. It never appears in a repr, a log line or an error."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes_raw()
        self.peer_id: PeerId = peer_id_of(self.public_key)
        self._seed_and_public = key.private_bytes_raw() + self.public_key
        self._signed = _ed25519().signed

    @classmethod
    def generate(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte seed (RFC 8032's private key); ValueError for another length."""
        if len(seed) != KEY_BYTES:
            raise ValueError(f"an Ed25519 seed has {KEY_BYTES} bytes, not {len(seed)}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The secret: 32 bytes."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._signed(message, self._seed_and_public)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"
