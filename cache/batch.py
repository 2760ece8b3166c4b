"""A root over many blocks: one CID from which all of them can be fetched, pinned and announced.

A dag-cbor map `{"shoal": "batch", "v": 1, "links": [...]}`; where there are more than 4,096 links, they lead to leaves
of the same form. Announcing one root a batch costs a DHT one record instead of one per answer.

    *leaves, (root, block) = batch(cids)
"""

from __future__ import annotations

from collections.abc import Sequence

import cbrrr

from .cid import DAG_CBOR, cid_of

MAX_LINKS = 4096  # about 170 KB


def batch(cids: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """(CID, block) of the leaves, if any, and of the root, which comes last. The same CIDs give the same root."""
    blocks: list[tuple[bytes, bytes]] = []
    level = list(cids)
    while len(level) > MAX_LINKS:
        leaves = [_node(level[i : i + MAX_LINKS]) for i in range(0, len(level), MAX_LINKS)]
        blocks += leaves
        level = [cid for cid, _ in leaves]
    return [*blocks, _node(level)]


def links(block: bytes) -> list[bytes] | None:
    """The CIDs in a batch's block; None when it is something else."""
    try:
        form = cbrrr.decode_dag_cbor(block)
    except (ValueError, TypeError):
        return None
    if not isinstance(form, dict) or form.get("shoal") != "batch" or not isinstance(form.get("links"), list):
        return None
    return [bytes(link.cid_bytes) for link in form["links"] if isinstance(link, cbrrr.CID)]


def _node(cids: Sequence[bytes]) -> tuple[bytes, bytes]:
    form = {"shoal": "batch", "v": 1, "links": [cbrrr.CID(cid) for cid in cids]}
    block = bytes(cbrrr.encode_dag_cbor(form))
    return cid_of(DAG_CBOR, block), block
