"""Other people's vectors (vectors/README.md says whose): dag-cbor, multihash, multibase and CAR files as they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cbrrr
import multiformats
import pytest
from multiformats import CID, multibase, multihash
from shoal.cache.archive import links_of
from shoal.cache.car import CarError, read_all
from shoal.cache.cid import CidError, cid_of, cid_text, codec_of, parse_cid
from shoal.cache.schema import read

VECTORS = Path(__file__).parent / "vectors"
_ROOTS, FIXTURES = read_all((VECTORS / "codec-fixtures" / "fixtures.car").read_bytes())
DAG_CBOR_FIXTURES = [(cid, block) for cid, block in FIXTURES if cid[:2] == b"\x01\x71"]
GATEWAY_CARS = sorted((VECTORS / "gateway-conformance").glob("*.car"))


# -- dag-cbor (ipld/codec-fixtures) --------------------------------------------------------------------------------


def test_every_dag_cbor_fixture_is_read_and_written_back_to_the_byte() -> None:
    assert len(DAG_CBOR_FIXTURES) >= 120
    for cid, block in DAG_CBOR_FIXTURES:
        assert bytes(cbrrr.encode_dag_cbor(cbrrr.decode_dag_cbor(block))) == block
        assert cid_of(codec_of(cid), block) == cid


def test_no_dag_cbor_fixture_is_taken_for_a_record() -> None:
    from shoal.cache.record import RecordRefused

    for _, block in DAG_CBOR_FIXTURES:
        with pytest.raises(RecordRefused):
            read(block)


def test_what_the_fixtures_refuse_is_refused() -> None:
    cases = json.loads((VECTORS / "codec-fixtures" / "duplicate-keys.json").read_text())
    assert cases
    for case in cases:
        with pytest.raises(ValueError):
            cbrrr.decode_dag_cbor(bytes.fromhex(case["hex"]))


# What ipld.io/specs/codecs/dag-cbor/spec/#strictness forbids, in bytes; the fixtures have no cases for it.
@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("an integer in two bytes that fits one", "1800"),
        ("a length in two bytes that fits one", "780161"),
        ("a float of 16 bits", "f90000"),
        ("a float of 32 bits", "fa00000000"),
        ("not a number", "fb7ff8000000000000"),
        ("an infinity", "fb7ff0000000000000"),
        ("map keys out of order", "a2616201616101"),
        ("a text of indefinite length", "7f6161ff"),
        ("a list of indefinite length", "9fff"),
        ("a key that is no text", "a10101"),
        ("a tag other than 42", "c001"),
        ("a link without its zero byte", "d82a4101"),
        ("undefined", "f7"),
        ("a text that is not UTF-8", "61ff"),
        ("something after the end", "0000"),
        ("an end in the middle", "8201"),
    ],
)
def test_what_the_specification_refuses_is_refused(what: str, data: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        cbrrr.decode_dag_cbor(bytes.fromhex(data))


# -- multihash and multibase -----------------------------------------------------------------------------------------


def test_the_multihash_vectors_of_sha2_256_are_the_digests_in_our_cids() -> None:
    with (VECTORS / "multihash" / "test_cases.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["algorithm"] == "sha2-256" and row["bits"] == "256"]
    assert len(rows) >= 4
    for row in rows:
        data = row["input"].encode()  # the text itself, though it looks like hexadecimal
        assert cid_of(0x55, data)[2:].hex() == row["multihash"]
        assert multihash.digest(data, "sha2-256").hex() == row["multihash"]  # our oracle agrees


def multibase_rows(name: str) -> list[tuple[str, str, bytes]]:
    """(encoding, text, data). The files put the data in the heading, with escapes as in Python."""
    with (VECTORS / "multibase" / f"{name}.csv").open() as file:
        head, *rows = csv.reader(file, skipinitialspace=True)
    # In case_insensitivity.csv only "non-canonical encoding" stands in the heading's first place.
    data = head[1].encode().decode("unicode_escape").encode("latin-1")
    return [(row[0], row[1], data) for row in rows]


@pytest.mark.parametrize("name", ["basic", "leading_zero", "two_leading_zeros", "case_insensitivity"])
def test_the_multibase_vectors_of_the_bases_that_cids_come_in(name: str) -> None:
    found = 0
    for encoding, text, data in multibase_rows(name):
        if encoding in {"base32", "base36", "base58btc", "base64url", "base16"}:
            assert multibase.decode(text) == data, encoding
            found += 1
            if encoding == "base32" and name != "case_insensitivity":
                import base64

                assert "b" + base64.b32encode(data).decode().rstrip("=").lower() == text  # as cid_text writes it
    assert found >= 2


def test_every_sha2_256_cid_of_the_fixtures_is_printed_and_parsed_as_the_oracle_does() -> None:
    ours = 0
    for cid, block in FIXTURES:
        if cid[0] != 1 or cid[1] not in (0x55, 0x71):
            with pytest.raises(CidError):
                codec_of(cid)
            continue
        ours += 1
        oracle = CID.decode(cid)
        assert oracle.encode("base32") == cid_text(cid)
        for base in ("base32", "base36", "base58btc", "base64url"):
            assert parse_cid(oracle.encode(base)) == cid
        assert multiformats.multihash.digest(block, "sha2-256") == cid[2:]
    assert ours >= 120


# -- CARs (ipfs/gateway-conformance) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GATEWAY_CARS, ids=lambda path: path.stem)
def test_a_car_of_the_gateway_tests_is_read_whole_and_its_hashes_hold(path: Path) -> None:
    _, blocks = read_all(path.read_bytes())
    assert blocks
    here = {cid for cid, _ in blocks}
    for cid, block in blocks:
        if cid[:2] == b"\x01\x71":
            assert bytes(cbrrr.encode_dag_cbor(cbrrr.decode_dag_cbor(block))) == block
            assert all(isinstance(link, bytes) for link in links_of(cid, block))
    assert len(here) <= len(blocks)


def test_the_links_of_a_dag_cbor_dag_are_found_in_order() -> None:
    roots, blocks = read_all((VECTORS / "gateway-conformance" / "path_gateway_dag-dag-cbor-traversal.car").read_bytes())
    found = dict(blocks)
    reached, stack = set(), list(roots)
    while stack:
        cid = stack.pop()
        if cid in found and cid not in reached:
            reached.add(cid)
            stack += links_of(cid, found[cid]) if cid[:2] == b"\x01\x71" else []
    assert len(reached) >= 2


@pytest.mark.parametrize("path", GATEWAY_CARS[:5], ids=lambda path: path.stem)
def test_a_car_of_theirs_that_is_damaged_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with pytest.raises(CarError):
        read_all(bytes(data))
