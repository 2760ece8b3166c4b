"""`/shoal/v1/*`: the node about itself, for its commands and its dashboard. JSON; answers by CID also as raw blocks.

GET status | peers | providers | cache | cache?list=N | cache/{cid} | cache/{cid}?format=raw | verify/{cid} | route/last
POST join {"invite": "..."}
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import parse_qs

import msgspec
import trio

from ...cache.cid import CidError, cid_text, codec_of, parse_cid
from ...cache.key import Key, parse_key
from ...cache.record import Record, RecordRefused, explain
from ...cache.schema import read
from ...cache.store import Row
from ...cache.tiers import AnswerCache
from ...protocols.http.exchange import Exchange
from ...protocols.http.message import Header
from ...providers.base import Status
from ..routing.router import Router
from .chat_request import decode_object
from .errors import JSON, ApiError, bad_request
from .swarm_api import SwarmNode

RAW_CODEC = 0x55
MAX_LIST = 10_000

IPLD_RAW: Header = ("content-type", "application/vnd.ipld.raw")


class Node(SwarmNode, Protocol):
    """What the daemon tells about itself."""

    def status(self) -> dict[str, Any]:
        """Peer id, version, invite, swarm and the like, JSON-compatible."""
        ...

    def peers(self) -> list[dict[str, Any]]:
        """The other nodes: {"peer", "connected", "rtt_s", "models", "hardware", "addresses", ...}."""
        ...

    async def join(self, invite: str) -> dict[str, Any]:
        """Joins a swarm now and after each start; {"swarm": name, ...}. ValueError for an invite that is none."""
        ...

    async def fetch(self, cid: str) -> bytes | None:
        """A block from beyond this machine, verified against its CID; None when nobody has it in time."""
        ...


class ProviderFacts(Protocol):
    """What is known of the providers (routing/candidates.py, providers/registry.py)."""

    @property
    def statuses(self) -> Mapping[str, Status]: ...
    @property
    def shared(self) -> frozenset[str]: ...
    @property
    def refused(self) -> Mapping[str, str]: ...
    def facts(self, name: str) -> Mapping[str, Any]:
        """What else the provider says of itself now: load, latency, credit."""
        ...

    def engines(self, model: str | None) -> list[dict[str, Any]]:
        """Engines of this machine that were compared for a model (routing/engines_here.py)."""
        ...


class NodeApi:
    """The handlers."""

    def __init__(self, node: Node, router: Router, providers: ProviderFacts, cache: AnswerCache | None) -> None:
        self._node, self._router, self._providers, self._cache = node, router, providers, cache

    async def status(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        router = self._router
        found = {
            **self._node.status(),
            "providers": {name: status.ready for name, status in self._providers.statuses.items()},
            "requests": {
                "in_flight": router.in_flight,
                "joined": router.flights.joined,
                "shared": dict(router.together.counts) if router.together is not None else {},
                "answers": dict(router.counts),
                "failures": dict(router.health.failures),
            },
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "breakers": router.health.view(trio.current_time()),
        }
        await _respond(exchange, found)

    async def peers(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        await _respond(exchange, {"peers": self._node.peers()})

    async def providers(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        rows: list[dict[str, Any]] = []
        for name, status in self._providers.statuses.items():
            row = {"name": name, "share": name in self._providers.shared, **msgspec.to_builtins(status)}
            row.setdefault("models", [])
            row.setdefault("reason", "")
            row["facts"] = self._providers.facts(name)
            rows.append(row)
        for name, reason in self._providers.refused.items():
            rows.append({"name": name, "share": False, "ready": False, "reason": reason, "models": []})
        await _respond(exchange, {"providers": rows})

    async def join(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        invite = decode_object(exchange.body).get("invite")
        if not isinstance(invite, str) or not invite.strip():
            raise bad_request("Missing required parameter: 'invite'.", "invite")
        try:
            found = await self._node.join(invite.strip())
        except ValueError as error:
            raise bad_request(str(error), "invite") from None
        await _respond(exchange, found)

    async def last_route(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        notes = list(self._router.notes)
        if not notes:
            raise ApiError(404, "This node has answered nothing yet.", code="no_route")
        note = notes[-1]
        engines = self._providers.engines(note.asked_model) if note.cache in ("miss", "bypass") else []
        await _respond(exchange, msgspec.to_builtins(note) | ({"engines": engines} if engines else {}))

    # -- answers -----------------------------------------------------------------------------------------------

    async def cache(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        cache = self._the_cache()
        limit = parse_qs(exchange.query).get("list")
        if limit is None:
            beyond = self._router.beyond.stats() if self._router.beyond is not None else {}
            await _respond(exchange, cache.stats() | {"looked_up": beyond})
            return
        if not (limit[0].isascii() and limit[0].isdigit() and len(limit[0]) <= 6 and 1 <= int(limit[0]) <= MAX_LIST):
            raise bad_request(f"list wants a number from 1 to {MAX_LIST}.", "list")
        newest: deque[Row] = deque(maxlen=int(limit[0]))
        if cache.store is not None:
            async for row in cache.store.iterate():
                newest.append(row)
        rows = [
            {
                "cid": cid_text(row.cid),
                "model": row.model,
                "provider": row.provider,
                "bytes": row.size,
                "node": row.node,
                "created": row.created / 1000,
                "pinned": row.pinned,
            }
            for row in reversed(newest)
        ]
        await _respond(exchange, {"answers": rows})

    async def cached(self, exchange: Exchange, headers: Mapping[str, str], cid: str) -> None:
        """An answer by its CID, from here or from beyond; a request's CID finds the answer to it."""
        raw = parse_qs(exchange.query).get("format") == ["raw"]
        name, block = await self._block(cid)
        if raw:
            await exchange.respond(200, block, [IPLD_RAW])
            return
        name, block = self._the_cache().unseal(block) or (name, block)
        if codec_of(name) == RAW_CODEC:
            await _respond(exchange, {"cid": cid_text(name), "content": block.decode(errors="replace")})
            return
        try:
            record, extra = await self._record(block)
        except RecordRefused as refused:
            raise ApiError(422, f"The block is not an answer: {refused.sentence}.", code="not_a_record") from None
        found = _record_object(record, name, extra)
        if seals := self._the_cache().seals:
            found["sealed"] = cid_text(seals[0].cid(name, block))  # under which a private swarm publishes it
        await _respond(exchange, found)

    async def verify(self, exchange: Exchange, headers: Mapping[str, str], cid: str) -> None:
        """Every check of an answer's record, with what it found."""
        name, block = await self._block(cid)
        name, block = self._the_cache().unseal(block) or (name, block)
        try:
            _, extra = await self._record(block)
        except RecordRefused:
            extra = None
        steps = explain(block, name, extra=extra, trusted=self._the_cache().trusts)
        found = {
            "cid": cid_text(name),
            "ok": all(step.ok is not False for step in steps),
            "steps": [{"name": s.name, "ok": s.ok, "sentence": s.sentence} for s in steps],
        }
        await _respond(exchange, found)

    async def _block(self, text: str) -> tuple[bytes, bytes]:
        """The binary CID and block that a CID, or the CID or digest of a request, leads to. ApiError 400 or 404."""
        cache = self._the_cache()
        try:
            name = parse_cid(text)
        except CidError:
            try:
                key: Key | None = parse_key(text)
            except CidError as error:
                raise bad_request(f"This is not a CID: {error}.", "cid") from None
        else:
            block = await cache.block(name)
            if block is not None:
                return name, block
            key = Key(name)
        if key is not None and (hit := await cache.get(key)) is not None:
            return hit.cid, hit.signed.block
        fetched = await self._node.fetch(cid_text(key.cid)) if key is not None else None
        if fetched is None or key is None:
            raise ApiError(404, "Neither this node nor a peer it asked has this.", param="cid", code="not_found")
        return key.cid, fetched

    async def _record(self, block: bytes) -> tuple[Record, bytes | None]:
        """The record in a block, with the raw block that it links. RecordRefused when it is none."""
        _, record = read(block)
        linked = record.content_cid
        extra = None
        if linked is not None:
            extra = await self._the_cache().block(linked) or await self._node.fetch(cid_text(linked))
        return record, extra

    def _the_cache(self) -> AnswerCache:
        if self._cache is None:
            raise ApiError(404, "This node keeps no answers; set cache.enabled = true.", code="cache_off")
        return self._cache


def _record_object(record: Record, cid: bytes, extra: bytes | None) -> dict[str, Any]:
    content = record.content
    if record.content_cid is not None:
        content = (extra or b"").decode(errors="replace")
    request = record.request
    return {
        "cid": cid_text(cid),
        "request": cid_text(request) if len(request) == len(cid) else request.hex(),
        "model": record.model,
        "provider": record.provider,
        "content": content,
        "finish": record.finish,
        "usage": None if record.usage is None else _usage(record),
        "created": record.created / 1000,
        "node": record.node,
        "signature": record.sig.hex(),
    }


def _usage(record: Record) -> dict[str, Any] | None:
    usage = record.usage
    if usage is None:
        return None
    return {name: getattr(usage, name) for name in usage.__struct_fields__}


async def _respond(exchange: Exchange, found: object) -> None:
    await exchange.respond(200, msgspec.json.encode(found), [JSON])
