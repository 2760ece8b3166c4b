"""Who could answer a request, and the source that the router gets them from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from ...protocols.peer_id import PeerId
from ...providers.base import Event, GenerateRequest, Provider
from .ask import Ask
from .attempt import ANSWERED, Attempt
from .no_answer import NoAnswer


class Candidate(Struct, frozen=True, kw_only=True):
    """One provider with the model to ask it for.

    name: what headers and routes show. model: None leaves it to the provider. peer: set when another node answers.
    context_length: tokens, where known. continues: it takes a prefix. asks: the request that a route makes of the
    caller's for this candidate. joins: it is a generation that somebody else has begun, told from its beginning.
    since: when (trio time) the connection with the peer began. here: this machine computes the answer, and the owner
    has set no order. expected_s: seconds that an answer of 100 tokens has taken there, by what is known from before.
    images: whether it may be shown more than text.
    """

    provider: Provider
    name: str
    model: str | None = None
    peer: PeerId | None = None
    context_length: int | None = None
    continues: bool = False
    asks: GenerateRequest | None = None
    joins: bool = False
    since: float | None = None
    here: bool = False
    expected_s: float | None = None
    images: bool = True

    def open(
        self, request: GenerateRequest, ask: Ask, *, deadline_s: float
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Start generating here. deadline_s: seconds that are left; they travel with a forwarded request."""
        asked = self.request_of(request)
        if self.peer is not None and isinstance(self.provider, Forwards):
            return self.provider.generate_for(asked, deadline_s=deadline_s, hops=ask.hops - 1, seen=ask.seen)
        return self.provider.generate(asked)

    def request_of(self, request: GenerateRequest) -> GenerateRequest:
        """The request as this candidate gets it: a pin of a peer is fulfilled here and would mislead over there."""
        if self.asks is not None:
            prefix = request.prefix
            request = self.asks if self.asks.prefix == prefix else msgspec.structs.replace(self.asks, prefix=prefix)
        if self.peer is not None:
            return request if request.provider is None else msgspec.structs.replace(request, provider=None)
        if self.model is None or request.model == self.model:
            return request
        return msgspec.structs.replace(request, model=self.model)

    @property
    def place(self) -> tuple[str, str | None, PeerId | None]:
        """What tells one candidate of a request from another."""
        return self.name, self.model, self.peer


def attempt_at(candidate: Candidate, outcome: str = ANSWERED, reason: str = "") -> Attempt:
    """The entry of a route for a try at this candidate."""
    return Attempt(provider=candidate.name, model=candidate.model, peer=candidate.peer, outcome=outcome, reason=reason)


@runtime_checkable
class Forwards(Protocol):
    """A provider that hands the request to another node, together with its budget."""

    def generate_for(
        self, request: GenerateRequest, *, deadline_s: float, hops: int, seen: frozenset[PeerId]
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]: ...


class CandidateSource(Protocol):
    """Knows who offers what, without asking anybody: the router calls it on the path of every request."""

    def candidates(self, request: GenerateRequest, ask: Ask) -> list[Candidate]:
        """Everyone who may answer, in the order to try."""
        ...

    def settled(self, request: GenerateRequest, ask: Ask | None = None) -> GenerateRequest:
        """The request with aliases resolved and defaults filled in: what the cache key is made from."""
        ...

    async def refresh(self, request: GenerateRequest | None = None, ask: Ask | None = None) -> None:
        """Look again who is there; bounded in time, and not more often than makes sense."""
        ...

    def why_none(self, request: GenerateRequest, ask: Ask) -> NoAnswer:
        """What to tell the caller when there is no candidate."""
        ...
