"""What the owner does with the cache over the RPC: pin, forget, export, import.

POST cache/pin {"cid", "pinned"} | cache/forget {"cid"} or {"request": {...}, "near": bool} | cache/import (a CAR)
GET cache/export?since=MS&model=NAME (a CAR)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import parse_qs

import msgspec

from ...cache.archive import export, plan_export, take_in
from ...cache.car import CarError, read_all
from ...cache.cid import CidError, cid_text
from ...cache.key import parse_key
from ...cache.store import StoreError
from ...cache.tiers import AnswerCache, Forgotten
from ...protocols.http.exchange import Exchange
from ...providers.base import Embed, GenerateRequest
from .chat_request import decode_object, others, read_call, typed_as
from .embeddings import KNOWN, EmbeddingsBody, request_of
from .errors import JSON, ApiError, bad_request

CAR_TYPE = "application/vnd.ipld.car; version=1"


class Settles(Protocol):
    """Where a request gets the model that the node would ask (routing/candidates.py)."""

    def settled(self, request: GenerateRequest) -> GenerateRequest: ...


class CacheApi:
    """The handlers."""

    def __init__(self, cache: AnswerCache | None, source: Settles) -> None:
        self._cache, self._source = cache, source

    async def pin(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """Keep an answer whatever the size bound says, or no longer."""
        body = decode_object(exchange.body)
        pinned = body.get("pinned", True)
        if not isinstance(pinned, bool):
            raise bad_request("pinned wants true or false.", "pinned")
        count = await _stored(self._the_cache().pin(_name(body), pinned))
        if not count:
            raise ApiError(404, "This node has no such answer on disk.", param="cid", code="not_found")
        await _respond(exchange, {"answers": count, "pinned": pinned})

    async def forget(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """Remove answers here, and take them from the IPFS daemon; says what cannot be taken back.

        near: also look for the same messages asked of other models and with temperature 0.
        """
        body = decode_object(exchange.body)
        cache = self._the_cache()
        if "request" not in body:
            names = [_name(body)]
        else:
            request = _request(body["request"])
            requests = await self._near(request) if body.get("near") else [self._source.settled(request)]
            names = list(dict.fromkeys(key.cid for request in requests for key in cache.keys(request)))
        done = [await _stored(cache.forget(name)) for name in names]
        total = Forgotten(*(sum(getattr(one, field) for one in done) for field in Forgotten.__struct_fields__))
        if not total.records:
            raise ApiError(404, "This node has no such answer.", param="cid", code="not_found")
        await _respond(exchange, {**msgspec.to_builtins(total), "notes": _notes(total)})

    async def _near(self, request: GenerateRequest) -> list[GenerateRequest]:
        """The request as it may have been asked: of each model whose answers are here, and as it is, and at 0; and its
        text alone as one to embed."""
        cache = self._the_cache()
        models: list[str | None] = [request.model]
        if request.model is None:
            models += await cache.store.models() if cache.store is not None else []
        heats = [request.temperature] if request.temperature is not None else [None, 0.0]
        found = [msgspec.structs.replace(request, model=m, temperature=heat) for m in models for heat in heats]
        if len(request.messages) == 1 and (text := request.messages[0].text):
            found += [GenerateRequest(messages=(), model=m, embed=Embed((text,))) for m in models]
        return [*found, *(self._source.settled(one) for one in found)]

    async def export(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """A CAR of the answers, as a stream; its number of answers and rough size in headers."""
        query = parse_qs(exchange.query)
        since = query.get("since", ["0"])[-1]
        if not (since.isascii() and since.isdigit() and len(since) <= 15):
            raise bad_request("since wants milliseconds since 1970.", "since")
        store = self._the_cache().store
        if store is None:
            raise ApiError(404, "This node keeps nothing on disk.", code="no_disk")
        plan = await _stored(plan_export(store, since_ms=int(since), model=query.get("model", [None])[-1]))
        told = [
            ("content-type", CAR_TYPE),
            ("x-shoal-answers", str(len(plan.records))),
            ("x-shoal-bytes", str(plan.size)),
            ("x-ipfs-roots", cid_text(plan.root)),
        ]
        async with exchange.stream(200, told) as send:
            async for piece in export(store, plan):
                await send(piece)

    async def import_(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """The answers in a CAR, verified and stored. ?public=false keeps them to this node."""
        public = parse_qs(exchange.query).get("public", [""])[-1]
        try:
            _, blocks = read_all(exchange.body)
        except CarError as error:
            raise bad_request(f"This is not a CAR that can be read: {error}.") from None
        counts = await _stored(take_in(self._the_cache(), blocks, public=False if public == "false" else None))
        await _respond(exchange, msgspec.to_builtins(counts))

    def _the_cache(self) -> AnswerCache:
        if self._cache is None:
            raise ApiError(404, "This node keeps no answers; set cache.enabled = true.", code="cache_off")
        return self._cache


def _name(body: dict[str, Any]) -> bytes:
    """The binary CID of an answer or a request in `cid`, also as 64 hexadecimal digits."""
    text = body.get("cid")
    if not isinstance(text, str):
        raise bad_request("Missing required parameter: 'cid'.", "cid")
    try:
        return parse_key(text).cid
    except CidError as error:
        raise bad_request(f"This is not a CID: {error}.", "cid") from None


def _request(said: Any) -> GenerateRequest:
    """A chat completion's body, or that of an embedding, which has `input`. ApiError 400."""
    if isinstance(said, dict) and "input" in said:
        return request_of(typed_as(said, EmbeddingsBody), others(said, KNOWN), None)
    return read_call(msgspec.json.encode(said), {}).request


def _notes(done: Forgotten) -> list[str]:
    """What forgetting here does not reach, in sentences."""
    notes: list[str] = []
    if done.withdrawn:
        notes.append(
            "The IPFS daemon is told to unpin and delete it, as soon as it answers; announcements it has made end "
            "within 48 hours."
        )
    if done.announced:
        notes.append(
            "It is announced no more: nodes of the swarm that can be reached are told so. Those that cannot, and an "
            "IPFS DHT, keep their note of it until it expires, within 48 hours; this node answers that it is gone."
        )
    if done.shared:
        notes.append("Peers could fetch it while it was here; what they or a gateway have kept cannot be taken back.")
    return notes


async def _stored(work: Any) -> Any:
    try:
        return await work
    except StoreError as error:
        raise ApiError(507, f"The answer store could not do it: {error}.", code="store_failed") from None


async def _respond(exchange: Exchange, found: object) -> None:
    await exchange.respond(200, msgspec.json.encode(found), [JSON])
