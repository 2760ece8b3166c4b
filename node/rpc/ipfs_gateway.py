"""`GET /ipfs/{cid}?format=raw|car`: blocks for whoever speaks IPFS's trustless gateway.

Specification: https://specs.ipfs.tech/http-gateways/trustless-gateway/. The answers verify by themselves: a raw block
against its CID, a CAR block by block. What is not here is looked for among the connected peers, unless the request says
`Cache-Control: only-if-cached`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from urllib.parse import parse_qs

from ...cache.archive import links_of
from ...cache.car import header, section
from ...cache.cid import CidError, cid_text, parse_cid
from ...cache.tiers import AnswerCache
from ...protocols.http.exchange import Exchange
from ...protocols.http.message import Header
from .errors import ApiError, bad_request
from .node_api import Node

RAW_TYPE = "application/vnd.ipld.raw"
CAR_TYPE = "application/vnd.ipld.car"
EMPTY = "bafkqaaa"
"""The identity CID of nothing: clients probe gateways with it."""
MAX_BLOCKS = 100_000
SCOPES = ("all", "entity", "block")

_FOREVER: Header = ("cache-control", "public, max-age=29030400, immutable")
_NO_SNIFF: Header = ("x-content-type-options", "nosniff")


class Gateway:
    """The handler. A cache that is switched off has nothing to serve."""

    def __init__(self, node: Node, cache: AnswerCache | None) -> None:
        self._node, self._cache = node, cache

    async def get(self, exchange: Exchange, headers: Mapping[str, str], rest: str) -> None:
        """rest: what stands behind /ipfs/."""
        text, _, path = rest.partition("/")
        query = {name: values[-1] for name, values in parse_qs(exchange.query).items()}
        form = wanted(query.get("format"), headers.get("accept", ""))
        if path.strip("/"):
            raise bad_request("Ask for blocks by their own CID; paths below one are not resolved here.", "cid")
        if text == EMPTY:
            await self._raw(exchange, headers, text, b"")
            return
        try:
            cid = parse_cid(text)
        except CidError as error:
            raise bad_request(f"This node has raw and dag-cbor blocks only; {error}.", "cid") from None
        local = "only-if-cached" in headers.get("cache-control", "").lower()
        block = await self._block(cid, local=local)
        if block is None:
            status = 412 if local else 404
            raise ApiError(status, "Neither this node nor a peer it asked has this.", param="cid", code="not_found")
        if form == "raw":
            await self._raw(exchange, headers, cid_text(cid), block)
        else:
            await self._car(exchange, headers, cid, block, query, local=local)

    async def _raw(self, exchange: Exchange, headers: Mapping[str, str], text: str, block: bytes) -> None:
        told = about(text, f'"{text}.raw"', RAW_TYPE, f"{text}.bin")
        if matches(headers.get("if-none-match"), f'"{text}.raw"'):
            await exchange.respond(304, b"", told)
            return
        await exchange.respond(200, block, told)

    async def _car(
        self,
        exchange: Exchange,
        headers: Mapping[str, str],
        cid: bytes,
        block: bytes,
        query: Mapping[str, str],
        *,
        local: bool,
    ) -> None:
        scope = query.get("dag-scope", "all")
        if scope not in SCOPES:
            raise bad_request(f"dag-scope wants one of {', '.join(SCOPES)}.", "dag-scope")
        if query.get("car-version", "1") != "1":
            raise bad_request("CARs of version 1 are given.", "car-version")
        text = cid_text(cid)
        tag = f'W/"{text}.car.{scope}"'
        told = about(text, tag, f"{CAR_TYPE}; version=1; order=dfs; dups=n", f"{text}.car")
        if matches(headers.get("if-none-match"), tag):
            await exchange.respond(304, b"", told)
            return
        async with exchange.stream(200, told) as send:
            await send(header([cid]) + section(cid, block))
            if scope == "all" and exchange.method != "HEAD":
                # A block that is missing cuts the answer: a clean end would say that the DAG is whole.
                async for below, data in self._below(cid, block, local=local):
                    await send(section(below, data))

    async def _below(self, cid: bytes, block: bytes, *, local: bool) -> AsyncIterator[tuple[bytes, bytes]]:
        """Depth first, each block once."""
        seen = {cid}
        stack = list(reversed(links_of(cid, block)))
        while stack:
            if (name := stack.pop()) in seen:
                continue
            seen.add(name)
            data = await self._block(name, local=local)
            if data is None or len(seen) > MAX_BLOCKS:
                raise RuntimeError("a linked block is missing, so the CAR cannot be whole")
            yield name, data
            stack += reversed(links_of(name, data))

    async def _block(self, cid: bytes, *, local: bool) -> bytes | None:
        data = await self._cache.block(cid) if self._cache is not None else None
        if data is None and not local:
            data = await self._node.fetch(cid_text(cid))
        return data


def wanted(form: str | None, accept: str) -> str:
    """ "raw" or "car": the format parameter, or else the Accept header. ApiError 406 for anything else."""
    if form in ("raw", "car"):
        return form
    if form is None:
        kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
        for kind in kinds:
            if kind == RAW_TYPE:
                return "raw"
            if kind == CAR_TYPE:
                return "car"
    raise ApiError(
        406,
        "This is a trustless gateway: add ?format=raw for a block or ?format=car for a DAG, or accept "
        f"{RAW_TYPE} or {CAR_TYPE}.",
        param="format",
        code="format_not_offered",
    )


def about(text: str, tag: str, kind: str, name: str) -> list[Header]:
    return [
        ("content-type", kind),
        ("content-disposition", f'attachment; filename="{name}"'),
        ("etag", tag),
        ("x-ipfs-path", f"/ipfs/{text}"),
        ("x-ipfs-roots", text),
        ("accept-ranges", "none"),
        ("vary", "accept"),
        _FOREVER,
        _NO_SNIFF,
    ]


def matches(header_: str | None, tag: str) -> bool:
    """If-None-Match, by the weak comparison (RFC 9110, section 13.1.2)."""
    if header_ is None:
        return False
    tags = [one.strip().removeprefix("W/") for one in header_.split(",")]
    return "*" in tags or tag.removeprefix("W/") in tags
