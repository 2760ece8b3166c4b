"""Sharing a generation that is under way: who makes the answer to a request, and its text so far, by the request's key.

Two calls. `lead` asks the owner of a key (routing/leads.py) who makes the answer; `join` gets it from that node, from
the first event on. Neither carries the request itself: a node that does not know the question cannot learn it here.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Protocol

import msgspec
import trio
from msgspec import Meta, Struct

from ...protocols.peer_id import PeerId
from ...protocols.session import CallError, IncomingCall, Session, SessionLost
from ...providers.base import ErrorKind, GenerateRequest, Provider, Status
from .peer_provider import DEADLINE_S, MAX_DEADLINE_S, PeerAnswer, PeerProvider, failure
from .serving import PeersAnswer, relay

LEAD, JOIN = "lead", "join"
METHODS = frozenset({LEAD, JOIN})
MAX_LOST = 8

Name = Annotated[bytes, Meta(min_length=1, max_length=64)]


class LeadParams(Struct, frozen=True, kw_only=True):
    """request: its key. lost: who was followed and is gone, or has nothing."""

    request: Name
    lost: Annotated[tuple[PeerId, ...], Meta(max_length=MAX_LOST)] = ()


class JoinParams(Struct, frozen=True, kw_only=True):
    """request: its key. deadline_ms: how long the asker would listen."""

    request: Name
    deadline_ms: Annotated[int, Meta(ge=0, le=24 * 3600 * 1000)]


class Leading(Struct, frozen=True):
    """The end of a `lead` call."""

    leader: PeerId


class Generations(Protocol):
    """What is wanted of this node's router."""

    def leader(self, cid: bytes, asker: PeerId, lost: Collection[PeerId] = ()) -> PeerId:
        """Who makes the answer to that key."""
        ...

    def joined(self, cid: bytes, peer: PeerId, deadline_s: float) -> AbstractAsyncContextManager[PeersAnswer]:
        """What this node makes, or has just made, under that key. Raises NoAnswer."""
        ...


async def serve(call: IncomingCall, method: str, params: Any, *, peer: PeerId, generations: Generations | None) -> Any:
    """Answer one of the two calls; the result is the body of the end frame."""
    try:
        if method == LEAD:
            asked = msgspec.convert(params, LeadParams, builtin_types=(bytes,))
            if generations is None:
                raise CallError(ErrorKind.UNAVAILABLE, "this node keeps no answers")
            return {"leader": generations.leader(asked.request, peer, asked.lost)}
        wanted = msgspec.convert(params, JoinParams, builtin_types=(bytes,))
    except msgspec.ValidationError:
        raise CallError(ErrorKind.BAD_REQUEST, f"the params of {method} are ill-typed") from None
    if generations is None:
        raise CallError(ErrorKind.UNAVAILABLE, "this node keeps no answers")
    deadline_s = wanted.deadline_ms / 1000
    return await relay(call, generations.joined(wanted.request, peer, deadline_s), deadline_s)


async def ask_lead(session: Session, cid: bytes, lost: Collection[PeerId]) -> PeerId | None:
    """Who leads, as the node at the other end says; None when it does not say. The caller sets the time."""
    try:
        told = await session.request(LEAD, LeadParams(request=cid, lost=tuple(lost)[:MAX_LOST]))
        return msgspec.convert(told, Leading).leader
    except (CallError, SessionLost, msgspec.ValidationError):
        return None


class JoinedPeer(Provider):
    """The generation of a peer: whatever is asked of this provider, it gives what the peer makes under `cid`."""

    def __init__(self, provider: PeerProvider, session: Session, cid: bytes) -> None:
        self.name = provider.name
        self._provider, self._session, self._cid = provider, session, cid

    async def probe(self) -> Status:
        return await self._provider.probe()

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[PeerAnswer]:
        return self.generate_for(request, deadline_s=DEADLINE_S, hops=0, seen=frozenset())

    @asynccontextmanager
    async def generate_for(
        self, request: GenerateRequest, *, deadline_s: float, hops: int, seen: Collection[PeerId]
    ) -> AsyncIterator[PeerAnswer]:
        """The request stays here, and so do its hops: only the key and the deadline go to the peer."""
        deadline_s = min(deadline_s, MAX_DEADLINE_S)
        params = JoinParams(request=self._cid, deadline_ms=max(1, math.floor(deadline_s * 1000)))
        answer: PeerAnswer | None = None
        try:
            async with self._session.call(JOIN, params) as call:
                answer = PeerAnswer(self.name, call, trio.current_time() + deadline_s)
                yield answer
        except (CallError, SessionLost) as error:
            raise failure(error, self.name, answer is not None and answer.said) from None
