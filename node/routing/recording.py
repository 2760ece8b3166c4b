"""What a finished answer leaves behind: a signed record in the cache, and how a record becomes an answer again.

An answer of our own is signed here. A peer's answer comes with the peer's signed record without its text; the record
is rebuilt from the text that was relayed and verified, so that nothing is stored that the peer did not sign.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct, UnsetType

from ...cache.key import Key
from ...cache.record import Record, RecordError, RecordRefused, SignedRecord, events, sign
from ...protocols.peer_id import Identity, PeerId
from ...providers.base import Event, GenerateRequest
from .ask import Ask
from .candidate import Candidate
from .transcript import Transcript

_log = logging.getLogger(__name__)

Far = Literal["swarm", "dht"]
"""The tiers of the cache beyond this machine."""


class Hit(Protocol):
    """An answer that the cache holds; tier is "memory", "disk", "swarm" or "dht"."""

    @property
    def signed(self) -> SignedRecord: ...
    @property
    def record(self) -> Record: ...
    @property
    def cid_text(self) -> str: ...
    @property
    def tier(self) -> str: ...


class Cache(Protocol):
    """What the router wants of the answer cache (cache/tiers.py)."""

    def key(self, request: GenerateRequest) -> Key | None:
        """The request's name; None when its answer is not cacheable."""
        ...

    def peek(self, key: Key, max_age: float | None = None) -> Hit | None:
        """What is in memory. max_age in seconds."""
        ...

    async def get(self, key: Key, max_age: float | None = None) -> Hit | None:
        """What is in memory or on disk."""
        ...

    def remember(self, signed: SignedRecord, /, *, public: bool | None = None, ipfs: bool | None = None) -> Hit:
        """public: whether peers may have it. ipfs: whether the IPFS daemon gets it. None: the node's rules."""
        ...

    def trusts(self, node: PeerId) -> bool:
        """Whether an answer of that node may be used."""
        ...

    async def public_answer(self, request: bytes) -> SignedRecord | None:
        """The answer to a request by its name in bytes, when other nodes may have it."""
        ...

    def linked_content(self, block: bytes) -> bytes | None:
        """The CID of the raw block that a record from another node needs beside it; None: it is whole."""
        ...

    def remember_foreign(
        self,
        block: bytes,
        key: Key,
        *,
        extra: bytes | None = None,
        tier: Far = "swarm",
        request: GenerateRequest | None = None,
    ) -> Hit:
        """Verifies a block from another node; RecordRefused, counted, when it is no trusted answer to `key`."""
        ...

    def remember_streamed(
        self,
        meta: bytes,
        content: str,
        key: Key,
        *,
        request: GenerateRequest | None = None,
        public: bool | None = None,
    ) -> Hit:
        """The same for a record without its content, and the text that a peer streamed."""
        ...


class Found(Struct, frozen=True):
    """An answer from a cache, ready to be told. peer: the node that signed it, when it was not this one."""

    provider: str
    model: str | None
    peer: str | None
    cid: str
    tier: str
    record: Record

    @property
    def events(self) -> list[Event]:
        return events(self.record)


class Recorder:
    """Makes records, and believes those of peers after checking them.

    on_record: told of each answer that was stored, for what happens off the request's path (announcing).
    """

    def __init__(
        self, cache: Cache, signer: Identity, *, on_record: Callable[[SignedRecord], None] | None = None
    ) -> None:
        self.cache = cache
        self._signer, self._on_record = signer, on_record

    def found(self, hit: Hit) -> Found:
        record = hit.record
        peer = record.node if record.node != self._signer.peer_id else None
        return Found(record.provider, record.model, peer, hit.cid_text, hit.tier, record)

    def record(self, ask: Ask, candidate: Candidate, said: Transcript, model: str | None, result: Any) -> Hit | None:
        """Stores a whole answer; None when it is not one to store."""
        key = ask.key
        if key is None or isinstance(key, UnsetType) or ask.cache_control.no_store:
            return None
        if said.finish is None or said.tools or not said.text:
            return None
        if said.finish.beside is not None and "message" in said.finish.beside:
            return None  # a record holds text alone
        if candidate.asks is not None and candidate.asks != ask.request:
            # Not the first target of its route: what it answers is the answer to what it was asked.
            key = self.cache.key(candidate.asks)
            if key is None:
                return None
            ask = msgspec.structs.replace(ask, request=candidate.asks, key=key)
        try:
            if candidate.peer is None:
                hit: Hit | None = self._own(ask, key, candidate, said, model)
            else:
                hit = self._peers(ask, key, candidate, said, result)
        except RecordError as error:
            _log.debug("an answer of %s is not stored: %s", candidate.name, error)
            return None
        except RecordRefused as refused:  # counted by the cache; the caller has the text all the same
            _log.warning("the record of an answer from %s is refused: %s", candidate.name, refused)
            return None
        if hit is not None and self._on_record is not None:
            self._on_record(hit.signed)
        return hit

    def _own(self, ask: Ask, key: Key, candidate: Candidate, said: Transcript, model: str | None) -> Hit:
        request, publish = ask.request, ask.cache_control.publish
        if said.finish is None:
            raise RecordError("the answer is not whole")
        asked = request.model
        aliases = (model,) if model and asked and model != asked and stands_for(model, asked) else ()
        signed = sign(
            self._signer,
            key,
            request,
            provider=candidate.name,
            model=model,
            content=said.text,
            finish=said.finish.reason,
            usage=said.usage,
            aliases=aliases,
            link_text=True,  # a gateway shows it in a browser; made when it is asked for, so it costs no room
        )
        if publish is None:
            return self.cache.remember(signed)
        return self.cache.remember(signed, public=publish != "none", ipfs=publish == "ipfs")

    def _peers(self, ask: Ask, key: Key, candidate: Candidate, said: Transcript, result: Any) -> Hit | None:
        request, publish = ask.request, ask.cache_control.publish
        meta = result.get("record") if isinstance(result, dict) else None
        if not isinstance(meta, bytes):
            return None  # the peer keeps no record of this answer
        asked = candidate.request_of(request)
        asked_key = key if asked is request else self.cache.key(asked)
        if asked_key is None:
            return None
        public = None if publish is None else publish != "none"
        return self.cache.remember_streamed(meta, said.text, asked_key, request=asked, public=public)


def request_text(key: Key | UnsetType | None) -> str | None:
    """A request's name as text."""
    return key.text if isinstance(key, Key) else None


_VERSION = re.compile(r"[-:@.](\d[\w.-]*|latest)")


def stands_for(answered: str, asked: str) -> bool:
    """Whether the model name in an answer is a spelling of the one that was asked for: a vendor's prefix or a version.

    "openai/gpt-4o-mini" and "gpt-4o-mini-2024-07-18" are; "gpt-4o-mini" is not "gpt-4o", but another model.
    """
    answered, asked = (name.lower().rpartition("/")[2] for name in (answered, asked))
    return answered == asked or (answered.startswith(asked) and _VERSION.fullmatch(answered[len(asked) :]) is not None)
