"""As much of a content identifier as moving blocks needs: which hash must the bytes have, and what precedes it.

Spec: https://github.com/multiformats/cid. Only sha2-256 is accepted: it is what IPFS uses, and a block that we cannot
check is a block that we do not take. Making CIDs is the business of whoever makes the blocks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from ..peer_id import base58_decode

SHA2_256 = 0x12
DIGEST_BYTES = 32
MAX_CID_BYTES = 64  # two varint headers and a sha2-256 multihash are at most 48
V0_PREFIX = bytes.fromhex("00701220")  # go-cid's Prefix bytes of a CIDv0, which itself is the bare multihash
_MULTIHASH = bytes([SHA2_256, DIGEST_BYTES])


def multihash(cid: bytes) -> bytes:
    """The sha2-256 multihash (34 bytes) of a binary CID. ValueError when it is no CID or has another hash."""
    if len(cid) > MAX_CID_BYTES:
        raise ValueError("too long for a CID")
    if cid[:2] == _MULTIHASH:  # version 0
        tail = cid
    else:
        version, rest = varint(cid)
        if version != 1:
            raise ValueError("not a CID of version 0 or 1")
        _, tail = varint(rest)
    if tail[:2] != _MULTIHASH or len(tail) != len(_MULTIHASH) + DIGEST_BYTES:
        raise ValueError("not a sha2-256 CID")
    return tail


def prefix(cid: bytes) -> bytes:
    """What stands before the digest: version, codec, hash, length."""
    return V0_PREFIX if cid[:2] == _MULTIHASH else cid[:-DIGEST_BYTES]


def multihash_of(data: bytes) -> bytes:
    return _MULTIHASH + hashlib.sha256(data).digest()


def parse(text: str) -> bytes:
    """The binary CID of its text: base32 ("b..."), base58 ("z...") or version 0 ("Qm..."). ValueError otherwise."""
    if len(text) > 2 * MAX_CID_BYTES:
        raise ValueError("too long for a CID")
    if text.startswith("Qm") and len(text) == 46:
        cid = base58_decode(text)
    elif text.startswith("z"):
        cid = base58_decode(text[1:])
    elif text.startswith("b"):
        try:
            cid = base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8))
        except binascii.Error:
            raise ValueError(f"not base32: {text}") from None
    else:
        raise ValueError(f"not a CID in base32 or base58: {text}")
    multihash(cid)
    return cid


def varint(data: bytes) -> tuple[int, bytes]:
    """(an unsigned varint, the rest). ValueError when it is cut short or longer than 9 bytes."""
    value = 0
    for index, byte in enumerate(data[:9]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, data[index + 1 :]
    raise ValueError("a varint is cut short or too long")
