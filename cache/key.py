"""The cache key: the name of a canonical request.

Mode "cid": the CIDv1 of the canonical bytes (dag-cbor, sha2-256), written in base32. Mode "sha256": the bare digest
of the same bytes, written in hexadecimal. Both carry the same 32 bytes, so nodes of either mode know each other's keys.
In a private swarm the name is keyed: it is the CID of the raw block HMAC-SHA256(hmac_key, canonical bytes). Who lacks
the key can neither read a request out of its name nor test a guess, and the CID still names a block truthfully.

    request_key(GenerateRequest.of("What is the opposite of hot?"), "cid").text  # "bafyrei..."
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Literal

from ..providers.base import GenerateRequest
from .canonical import canonical_bytes
from .cid import CID_BYTES, DAG_CBOR, DIGEST_BYTES, RAW, CidError, cid_of, cid_text, codec_of, parse_cid

Mode = Literal["cid", "sha256"]
MODES: tuple[Mode, ...] = ("cid", "sha256")
MIN_HMAC_KEY_BYTES = 16


class Key:
    """A request's name. `cid`: 36 bytes in either mode; `text`: how the mode writes it. Equal when the digests are.

    older: the names that the request had under earlier keys of a private swarm, and before there was one; answers from
    then are found by them, on this machine alone.
    """

    __slots__ = ("_text", "cid", "digest", "mode", "older")

    def __init__(self, cid: bytes, mode: Mode = "cid", older: tuple[Key, ...] = ()) -> None:
        codec_of(cid)
        self.cid, self.mode, self.older = cid, mode, older
        self.digest = cid[-DIGEST_BYTES:]
        """The 32 bytes that both modes share; the store's index is by them."""
        self._text: str | None = None

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = cid_text(self.cid) if self.mode == "cid" else self.digest.hex()
        return self._text

    @property
    def reference(self) -> bytes:
        """How a record refers to its request: the CID in mode cid, the digest in mode sha256."""
        return self.cid if self.mode == "cid" else self.digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Key({self.text})"


def check_mode(mode: str) -> Mode:
    """`mode` as a Mode. ValueError for an unknown one: a mode that cannot be honoured is never replaced by another."""
    for known in MODES:
        if mode == known:
            return known
    raise ValueError(f'unknown cache key mode {mode!r}: use "cid" or "sha256"')


def request_key(
    request: GenerateRequest, mode: str = "cid", hmac_key: bytes | None = None, older_keys: Sequence[bytes] = ()
) -> Key:
    """The key of a request. hmac_key: the private swarm's, at least 16 bytes; older_keys: its earlier ones.

    CanonicalError when the request has no canonical form; ValueError for an unknown mode or a short hmac_key.
    """
    checked = check_mode(mode)
    data = canonical_bytes(request)
    if hmac_key is None:
        return Key(cid_of(DAG_CBOR, data), checked)
    older = [Key(_keyed(key, data), checked) for key in older_keys]
    return Key(_keyed(hmac_key, data), checked, (*older, Key(cid_of(DAG_CBOR, data), checked)))


def _keyed(hmac_key: bytes, data: bytes) -> bytes:
    if len(hmac_key) < MIN_HMAC_KEY_BYTES:
        raise ValueError(f"the swarm's cache key needs at least {MIN_HMAC_KEY_BYTES} bytes")
    return cid_of(RAW, hmac.digest(hmac_key, data, hashlib.sha256))


def parse_key(text: str) -> Key:
    """A key as people type it: a CID in any base, or 64 hexadecimal digits. CidError otherwise."""
    if len(text) == 2 * DIGEST_BYTES:
        try:
            digest = bytes.fromhex(text)
        except ValueError:
            raise CidError("not a key: 64 characters, but not all hexadecimal") from None
        if len(digest) == DIGEST_BYTES:
            return Key(bytes((1, DAG_CBOR, 0x12, 0x20)) + digest, "sha256")
    return Key(parse_cid(text), "cid")


def same_request(reference: bytes, request: bytes) -> bool:
    """Whether two references (36-byte CIDs or 32-byte digests, in any mix) name the same request."""
    sizes = (CID_BYTES, DIGEST_BYTES)
    return len(reference) in sizes and len(request) in sizes and reference[-DIGEST_BYTES:] == request[-DIGEST_BYTES:]
