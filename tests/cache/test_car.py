"""CAR files: read in any pieces, byte-exact, refused when broken. Those of others are in test_vectors.py."""

from __future__ import annotations

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.cache.batch import MAX_LINKS, batch, links
from shoal.cache.car import CarError, CarReader, header, read_all, read_varint, section, varint
from shoal.cache.cid import DAG_CBOR, RAW, cid_of

BLOCKS = [(cid_of(RAW, data), data) for data in (b"", b"hello", bytes(5000))]
CAR = header([BLOCKS[0][0]]) + b"".join(section(cid, data) for cid, data in BLOCKS)


def test_the_header_is_the_specifications() -> None:
    # The fixture of ipld.io/specs/transport/car/fixture/carv1-basic: {"roots": [...], "version": 1}
    cid = cid_of(DAG_CBOR, b"\xa0")
    form = cbrrr.decode_dag_cbor(header([cid])[1:])
    assert form == {"roots": [cbrrr.CID(cid)], "version": 1}
    assert header([cid])[0] == len(header([cid])) - 1


@given(st.lists(st.integers(1, 2000), max_size=12))
def test_it_is_read_in_any_pieces(cuts: list[int]) -> None:
    reader, found, at = CarReader(), [], 0
    for cut in [*cuts, len(CAR)]:
        found += list(reader.feed(CAR[at : at + cut]))
        at += cut
    found += list(reader.feed(CAR[at:]))
    reader.close()
    assert reader.roots == [BLOCKS[0][0]]
    assert found == BLOCKS
    assert reader.offset == len(CAR)


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_read_as_it_was_written(number: int) -> None:
    assert read_varint(varint(number), 0) == (number, len(varint(number)))


@pytest.mark.parametrize("length", [0, 1, 20, len(CAR) - 1])
def test_a_file_that_is_cut_off_is_said_to_be(length: int) -> None:
    with pytest.raises(CarError, match=r"cut off|ends before"):
        read_all(CAR[:length])


@given(st.integers(len(header([BLOCKS[0][0]])), len(CAR) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found(at: int, change: int) -> None:
    broken = bytearray(CAR)
    broken[at] ^= change
    try:
        _, blocks = read_all(bytes(broken))
    except CarError:
        return
    assert blocks != BLOCKS  # only a codec was changed: another CID, whose hash holds all the same
    assert [data for _, data in blocks] == [data for _, data in BLOCKS]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello, this is no archive of any kind", "not a CAR"),
        (b"\x0a\xa1\x67version\x02" + bytes(40), "version 2"),
        (varint(8) + b"\xa1gversion"[:8], "not a CAR"),
        (header([]) + varint(1 << 30), "a piece of"),
        (header([]) + b"\x80" * 9, "too long"),
        (header([]) + section(b"\x01\x55\x16\x20" + bytes(32), b"x"), "hash function 0x16"),
    ],
)
def test_what_is_no_car_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(CarError, match=words):
        read_all(data)


def test_an_identity_cid_and_one_of_version_0_are_read() -> None:
    version_0 = cid_of(RAW, b"hello")[2:]
    data = header([]) + section(b"\x01\x55\x00\x03abc", b"abc") + section(version_0, b"hello")
    assert read_all(data)[1] == [(b"\x01\x55\x00\x03abc", b"abc"), (version_0, b"hello")]


def test_a_batch_is_one_root_over_many() -> None:
    cids = [cid_of(RAW, str(n).encode()) for n in range(MAX_LINKS + 5)]
    (root,) = batch(cids[:3])
    assert links(root[1]) == cids[:3]
    first, second, top = batch(cids)
    assert links(top[1]) == [first[0], second[0]]
    assert (links(first[1]) or []) + (links(second[1]) or []) == cids
    assert all(cid == cid_of(DAG_CBOR, block) and len(block) < 256 * 1024 for cid, block in (first, second, top))
    assert batch(cids) == batch(cids)
    assert links(b"\xa0") is None
