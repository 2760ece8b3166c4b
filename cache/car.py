"""CAR, the archive format of IPFS: many blocks in one file. Version 1, without I/O.

A file is a header, `{roots, version}` in dag-cbor, and then sections of CID and block, each with its length before it
as a varint (https://ipld.io/specs/transport/car/carv1/). Kubo reads it with `ipfs dag import`.

    file.write(header([root]) + section(root, block))
    for cid, block in CarReader().feed(data): ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import cbrrr

MAX_HEADER_BYTES = 1 << 20
MAX_SECTION_BYTES = 4 << 20  # Kubo's own bound on a section is 8 MiB; no block of ours has more than 2 MiB

_IDENTITY = 0x00
_HASHES = {0x12: hashlib.sha256, 0x13: hashlib.sha512}  # by multicodec; nearly every block has the first
_V2_PRAGMA = b"\x0a\xa1\x67version\x02"


class CarError(ValueError):
    """Not a CAR, or a broken one. The text says where."""


def header(roots: Sequence[bytes]) -> bytes:
    """The beginning of a file. roots: binary CIDs of the blocks to start from, at least one for most readers."""
    form = bytes(cbrrr.encode_dag_cbor({"roots": [cbrrr.CID(root) for root in roots], "version": 1}))
    return varint(len(form)) + form


def section(cid: bytes, block: bytes) -> bytes:
    """One block with its binary CID."""
    return varint(len(cid) + len(block)) + cid + block


class CarReader:
    """Takes a file in pieces and gives its blocks, each with its hash checked.

    roots: None until the header has been read. offset: bytes up to the end of the last whole section.
    """

    def __init__(self, *, max_section: int = MAX_SECTION_BYTES) -> None:
        self.roots: list[bytes] | None = None
        self.offset = 0
        self._max_section = max_section
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(binary CID, block) of each section that is whole now. CarError; take them all before feeding more."""
        self._buffer += data
        if self.roots is None:
            if bytes(self._buffer[: len(_V2_PRAGMA)]) == _V2_PRAGMA:
                raise CarError("this is a CAR of version 2; export it anew as version 1")
            head = self._next(MAX_HEADER_BYTES)
            if head is None:
                return
            self.roots = _roots(head)
        while (found := self._next(self._max_section)) is not None:
            size = cid_size(found)
            cid, block = found[:size], found[size:]
            check(cid, block, self.offset)
            yield cid, block

    def close(self) -> None:
        """The file has ended. CarError when that was in the middle of something."""
        if self.roots is None:
            raise CarError("this is not a CAR file: it ends before its header does")
        if self._buffer:
            raise CarError(f"the file is cut off: after byte {self.offset} there is no whole block")

    def _next(self, most: int) -> bytes | None:
        """The next length-prefixed piece, when it is here whole."""
        read = read_varint(self._buffer, 0)
        if read is None:
            return None
        size, start = read
        if not 0 < size <= most:
            raise CarError(f"byte {self.offset}: a piece of {size} bytes; 1 to {most} are expected in a CAR file")
        if len(self._buffer) < start + size:
            return None
        piece = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        self.offset += start + size
        return piece


def read_all(data: bytes) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """(roots, blocks) of a whole file in memory. CarError."""
    reader = CarReader()
    blocks = list(reader.feed(data))
    reader.close()
    return reader.roots or [], blocks


def _roots(head: bytes) -> list[bytes]:
    try:
        form = cbrrr.decode_dag_cbor(head)
    except (ValueError, TypeError):
        form = None
    if not isinstance(form, dict) or type(form.get("version")) is not int:
        raise CarError("this is not a CAR file: it does not begin with a CAR's header")
    if form["version"] != 1:
        raise CarError(f"this is a CAR of version {form['version']}; version 1 is read")
    roots = form.get("roots")
    if not isinstance(roots, list) or not all(isinstance(root, cbrrr.CID) for root in roots):
        raise CarError("the CAR's header does not say its roots")
    return [bytes(root.cid_bytes) for root in roots]


def check(cid: bytes, block: bytes, at: int = 0) -> None:
    """CarError unless the block is the one that the CID names, by sha2-256, sha2-512 or in full (identity)."""
    digest = cid
    if cid[0] == 1:
        digest = cid[_skip(cid, 2) :]
    code, start = _varint_at(digest, 0)
    _, start = _varint_at(digest, start)
    told = digest[start:]
    if code in _HASHES:
        good = _HASHES[code](block).digest() == told
    elif code == _IDENTITY:
        good = block == told
    else:
        raise CarError(f"before byte {at}: a block is named by hash function 0x{code:x}; which is not known here")
    if not good:
        raise CarError(f"before byte {at}: a block is not the one that its CID names; the file is damaged")


def cid_size(data: bytes) -> int:
    """How many bytes the CID at the beginning of `data` has. CarError when there is none."""
    if data[:2] == b"\x12\x20":  # version 0: a bare sha2-256 multihash
        size = 34
    else:
        version, start = _varint_at(data, 0)
        if version != 1:
            raise CarError(f"a section does not begin with a CID: version {version}")
        _, start = _varint_at(data, start)
        _, start = _varint_at(data, start)
        length, start = _varint_at(data, start)
        size = start + length
    if size > len(data):
        raise CarError("a section is shorter than its CID")
    return size


def _skip(data: bytes, count: int) -> int:
    at = 0
    for _ in range(count):
        _, at = _varint_at(data, at)
    return at


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    read = read_varint(data, at)
    if read is None:
        raise CarError("a section ends in the middle of a number")
    return read


def varint(number: int) -> bytes:
    """Unsigned LEB128, the "unsigned varint" of multiformats."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """(number, index after it); None when the data ends in it. CarError for one of more than 9 bytes."""
    value = shift = 0
    for index in range(at, min(len(data), at + 9)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and index > at:
                raise CarError("a number is not written in its shortest form")
            return value, index + 1
        shift += 7
    if len(data) - at >= 9:
        raise CarError("a number is too long for a varint")
    return None
