"""Sealed blocks: what a private swarm publishes, so that who lacks its key can neither read it nor test a guess.

AES-256-GCM under a key derived from the swarm's. The nonce is a keyed hash of the text, so the same block sealed by any
member is the same sealed block with the same CID, nothing needs to be kept twice, and no nonce meets two texts
(the construction of SIV, RFC 5297, with HMAC-SHA256). The length is padded (Padmé, PURBs, PoPETs 2019/4: at most 12 %
more), so that it says little about the answer. A sealed block is a raw block to everybody else; docs/record.md has the
format with vectors.

    seal = Seal(membership.seal_key)
    cid, data = seal.seal(signed.cid, signed.block)
    assert seal.open(data) == (signed.cid, signed.block)
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .cid import DAG_CBOR, RAW, cid_of, codec_of

VERSION = 1
KEY_BYTES = 32
ID_BYTES, NONCE_BYTES, TAG_BYTES = 4, 12, 16
HEAD_BYTES = 1 + ID_BYTES + NONCE_BYTES
INNER_BYTES = 5  # codec, length
MIN_BYTES = HEAD_BYTES + INNER_BYTES + TAG_BYTES
MAX_PADDED_BYTES = 1024 * 1024 - HEAD_BYTES - TAG_BYTES  # older Kubo relays no block above 1 MiB
LEAST_PADDED_BYTES = 1024  # what is shorter looks alike


class SealError(ValueError):
    """A block that this key does not open, or that was changed."""


class Seal:
    """One swarm key's seal. key: 32 bytes, derived from the swarm's for nothing but this."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a seal's key has {KEY_BYTES} bytes")
        self._aead = AESGCM(hmac.digest(key, b"shoal seal encrypt v1", hashlib.sha256))
        self._nonce_key = hmac.digest(key, b"shoal seal nonce v1", hashlib.sha256)
        self.id = hmac.digest(key, b"shoal seal id v1", hashlib.sha256)[:ID_BYTES]

    def seal(self, cid: bytes, block: bytes) -> tuple[bytes, bytes]:
        """(CID, bytes) of the sealed block. cid: the block's own, raw or dag-cbor."""
        inner = bytes((codec_of(cid),)) + len(block).to_bytes(4, "big") + block
        inner = inner.ljust(padded(len(inner)), b"\0")
        head = bytes((VERSION,)) + self.id
        nonce = hmac.digest(self._nonce_key, inner, hashlib.sha256)[:NONCE_BYTES]
        data = head + nonce + self._aead.encrypt(nonce, inner, head)
        return cid_of(RAW, data), data

    def cid(self, cid: bytes, block: bytes) -> bytes:
        """The CID that a block has when it is sealed."""
        return self.seal(cid, block)[0]

    def knows(self, data: bytes) -> bool:
        """Whether these bytes say that they were sealed with this key; only `open` can tell."""
        return len(data) >= MIN_BYTES and data[0] == VERSION and data[1 : 1 + ID_BYTES] == self.id

    def open(self, data: bytes) -> tuple[bytes, bytes]:
        """(CID, block) of what was sealed. SealError when another key sealed it, or it was changed."""
        if not self.knows(data):
            raise SealError("the block was not sealed with this swarm's key")
        head, nonce = data[: 1 + ID_BYTES], data[1 + ID_BYTES : HEAD_BYTES]
        try:
            inner = self._aead.decrypt(nonce, data[HEAD_BYTES:], head)
        except InvalidTag:
            raise SealError("the sealed block was changed, or another key made it") from None
        codec, size = inner[0], int.from_bytes(inner[1:INNER_BYTES], "big")
        if codec not in (RAW, DAG_CBOR) or size > len(inner) - INNER_BYTES:
            raise SealError("the sealed block holds something else than a block")
        block = inner[INNER_BYTES : INNER_BYTES + size]
        return cid_of(codec, block), block


def unseal(seals: Iterable[Seal], data: bytes) -> tuple[bytes, bytes] | None:
    """(CID, block) by the first key that opens it; None when none of them sealed it. SealError when it was changed."""
    for seal in seals:
        if seal.knows(data):
            return seal.open(data)
    return None


def padded(size: int) -> int:
    """The length to which `size` bytes are padded: at least 1 KiB, and with few significant bits above."""
    if size <= LEAST_PADDED_BYTES:
        return LEAST_PADDED_BYTES
    exponent = size.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return max(size, min((size + mask) & ~mask, MAX_PADDED_BYTES))
