"""CIDs as Shoal makes them: version 1, sha2-256, codec raw or dag-cbor; 36 bytes, or 59 characters of base32.

On the hot path a CID is a hash and a fixed prefix; `multiformats` is asked only for spellings other than base32.
Format: github.com/multiformats/cid (version, codec, multihash); multibase "b" (RFC 4648 base32, lower case, unpadded).

    cid = cid_of(RAW, b"hello")
    assert parse_cid(cid_text(cid)) == cid and holds(cid, b"hello")
"""

from __future__ import annotations

import base64
import binascii
import hashlib

RAW = 0x55
DAG_CBOR = 0x71

DIGEST_BYTES = 32
CID_BYTES = 36
CID_CHARS = 59

_SHA2_256 = b"\x12\x20"  # multihash: code, length
_PREFIXES = {codec: bytes((1, codec)) + _SHA2_256 for codec in (RAW, DAG_CBOR)}


class CidError(ValueError):
    """Not a CID, or not one of the kind that Shoal makes; the text says which."""


def cid_of(codec: int, data: bytes) -> bytes:
    """The binary CID (36 bytes) of a block. codec: RAW or DAG_CBOR."""
    return _PREFIXES[codec] + hashlib.sha256(data).digest()


def codec_of(cid: bytes) -> int:
    """RAW or DAG_CBOR. CidError for anything else, so this is also the check of a binary CID from outside."""
    if len(cid) == CID_BYTES and cid[2:4] == _SHA2_256 and cid[0] == 1 and cid[1] in _PREFIXES:
        return cid[1]
    raise CidError("not a version 1 CID with codec raw or dag-cbor and a sha2-256 digest")


def digest_of(cid: bytes) -> bytes:
    """The sha2-256 digest (32 bytes) inside a CID."""
    return cid[-DIGEST_BYTES:]


def multihash_of(cid: bytes) -> bytes:
    """What a DHT files provider records under (34 bytes); asked with the whole CID, Kubo finds nothing."""
    return cid[2:]


def holds(cid: bytes, data: bytes) -> bool:
    """Whether `data` is the block that `cid` names."""
    return hashlib.sha256(data).digest() == cid[-DIGEST_BYTES:]


# The base32 of one number at once: its 64 digits of 5 bits are halved six times, each time the upper halves move away,
# until every digit has a byte of its own. A quarter of the time that base64.b32encode takes, which goes by 5 bytes.
_DIGITS, _PADDED_BYTES = 64, 40
_LETTERS = b"abcdefghijklmnopqrstuvwxyz234567".ljust(256, b"\0")


def _every(bits: int, apart: int, count: int) -> int:
    """`count` times `bits` ones, `apart` bits from each other."""
    return sum(((1 << bits) - 1) << (apart * i) for i in range(count))


_HALVINGS = tuple(
    (
        _every(5 * digits, 16 * digits, 32 // digits),
        _every(5 * digits, 16 * digits, 32 // digits) << 5 * digits,
        3 * digits,
    )
    for digits in (32, 16, 8, 4, 2, 1)
)


def cid_text(cid: bytes) -> str:
    """The CID in base32: "bafyrei..." for dag-cbor, "bafkrei..." for raw."""
    if len(cid) != CID_BYTES:
        return "b" + base64.b32encode(cid).decode("ascii").rstrip("=").lower()
    number = int.from_bytes(cid) << 8 * (_PADDED_BYTES - CID_BYTES)
    for low, high, away in _HALVINGS:
        number = number & low | (number & high) << away
    return "b" + number.to_bytes(_DIGITS).translate(_LETTERS)[: CID_CHARS - 1].decode("ascii")


def parse_cid(text: str) -> bytes:
    """The binary form of a CID in any multibase spelling. CidError says what is wrong with it."""
    if len(text) == CID_CHARS and text[0] == "b":
        try:
            cid = base64.b32decode(text[1:].upper() + "======")
        except (binascii.Error, ValueError):
            raise CidError("not a CID: a character outside base32") from None
        codec_of(cid)
        if cid_text(cid) != text:  # capitals after a lower-case "b", or stray bits in the last character
            raise CidError("not a CID: its base32 is not in canonical form")
        return cid
    return _parse_other(text)


def _parse_other(text: str) -> bytes:
    """CIDs in base58, base36, upper case and so on: rare, so the slow and complete library reads them."""
    if not 10 <= len(text) <= 200:
        raise CidError('not a CID: expected about 59 characters that begin with "bafy" or "bafk"')
    from multiformats import CID  # slow to import: only who passes an unusual spelling pays

    try:
        cid = bytes(CID.decode(text))
    except Exception:  # the library raises KeyError, ValueError, AssertionError and its own errors for bad input
        raise CidError('not a CID: expected about 59 characters that begin with "bafy" or "bafk"') from None
    codec_of(cid)
    return cid
