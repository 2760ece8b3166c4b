"""docs/record.md is the specification: its vectors, and the figures in its tables, are the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shoal.cache import canonical, record, schema
from shoal.cache.batch import batch
from shoal.cache.canonical import canonical_bytes
from shoal.cache.cid import DAG_CBOR, cid_of, cid_text
from shoal.cache.key import parse_key, request_key
from shoal.cache.record import decode, sign, verify
from shoal.cache.schema import form_of, signed_part
from shoal.cache.sealing import Seal
from shoal.node.membership import Membership
from shoal.protocols.peer_id import Identity
from shoal.providers.base import GenerateRequest, Usage

PAGE = (Path(__file__).parents[2] / "docs" / "record.md").read_text()
SWARM_KEY = b"an example of a swarm cache key."


def vectors(kind: str) -> list[Any]:
    pattern = rf"\*\*(.+?)\*\*\n\n```json {kind}\n(.+?)```"
    return [pytest.param(json.loads(text), id=title) for title, text in re.findall(pattern, PAGE, re.DOTALL)]


def test_the_page_has_vectors() -> None:
    assert len(vectors("request")) >= 3
    assert len(vectors("record")) >= 3
    assert len(vectors("sealed")) == len(vectors("batch")) == 1


@pytest.mark.parametrize("vector", vectors("request"))
def test_a_request_has_the_form_and_the_names_that_the_page_says(vector: dict[str, Any]) -> None:
    request = msgspec.convert(vector["request"], GenerateRequest)
    assert canonical_bytes(request).hex() == vector["canonical"]
    assert request_key(request, "cid").text == vector["cid"]
    assert request_key(request, "sha256").text == vector["sha256"]
    assert request_key(request, "cid", SWARM_KEY).text == vector["keyed"]


@pytest.mark.parametrize("vector", vectors("record"))
def test_a_record_has_the_bytes_that_the_page_says(vector: dict[str, Any]) -> None:
    identity = Identity.from_seed(bytes.fromhex(vector["seed"]))
    signed = sign(
        identity,
        parse_key(vector["request"]),
        GenerateRequest.of("not needed here"),
        usage=None if vector["usage"] is None else Usage(**vector["usage"]),
        created_ms=vector["created"],
        **{name: vector[name] for name in ("provider", "model", "content", "finish", "link_text")},
    )
    assert signed.block.hex() == vector["block"]
    assert cid_text(signed.cid) == vector["cid"]
    assert signed.record.sig.hex() == vector["sig"]
    assert signed_part(form_of(signed.record)).hex() == vector["signed"]


@pytest.mark.parametrize("vector", vectors("record"))
def test_a_record_of_the_page_verifies(vector: dict[str, Any]) -> None:
    block, cid = bytes.fromhex(vector["block"]), parse_key(vector["cid"]).cid
    found = verify(block, cid, parse_key(vector["request"]).digest, now_ms=vector["created"])
    assert found == decode(block)
    assert (found.node, found.content, found.model) == (vector["node"], vector["content"], vector["model"])


def test_the_figures_on_the_page_are_the_codes() -> None:
    assert schema.MAX_BLOCK_BYTES == 256 * 1024
    assert schema.MAX_CONTENT_BYTES == 1024 * 1024
    assert schema.MAX_NAME_CHARS == 256
    assert record.MAX_CLOCK_SKEW_S == 600
    assert schema.SIGNING_PREFIX == b"shoal/record/1\0"
    assert f"{schema.MAX_INLINE_BYTES:,} bytes" in PAGE
    for name in canonical.NEUTRAL_EXTRA:
        assert f"`{name}`" in PAGE
    for reason in schema.Reason.__args__:  # type: ignore[attr-defined]
        assert f"`{reason}`" in PAGE


@pytest.mark.parametrize("vector", vectors("sealed"))
def test_a_sealed_block_has_the_bytes_that_the_page_says(vector: dict[str, Any]) -> None:
    of = Membership(name="reef", key=bytes.fromhex(vector["swarm_key"]), listen=(), chosen=False)
    assert of.cache_key is not None
    assert (of.cache_key.hex(), of.seal_keys[0].hex()) == (vector["cache_key"], vector["seal_key"])
    seal, block = Seal(of.seal_keys[0]), bytes.fromhex(vector["block"])
    assert cid_text(cid_of(DAG_CBOR, block)) == vector["cid"]
    cid, data = seal.seal(cid_of(DAG_CBOR, block), block)
    assert (cid_text(cid), len(data)) == (vector["sealed_cid"], vector["bytes"])
    assert data[:17].hex() == "01" + vector["key_id"] + vector["nonce"]


@pytest.mark.parametrize("vector", vectors("batch"))
def test_a_batch_has_the_bytes_that_the_page_says(vector: dict[str, Any]) -> None:
    ((cid, block),) = batch([parse_key(text).cid for text in vector["links"]])
    assert (block.hex(), cid_text(cid)) == (vector["block"], vector["root"])
