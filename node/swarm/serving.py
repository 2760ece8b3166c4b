"""Answering what peers ask: a call of "generate" becomes a question to this node's router.

What belongs here: the form of a forwarded request, and what is refused before the router sees it. Which providers a
peer may use is the router's to enforce. The task is cancelled by the session when the peer leaves or cancels.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Protocol

import msgspec
import trio
from msgspec import Meta, Struct

from ...protocols.peer_id import PeerId
from ...protocols.session import CallError, IncomingCall
from ...providers.base import ErrorKind, Event, GenerateRequest, ProviderError
from ...providers.trace import MAX_STATE_CHARS, TRACE, Trace
from ..routing.no_answer import NoAnswer

GENERATE = "generate"
MAX_HOPS = 8
MAX_SEEN = 32

_QUOTED = re.compile(r" '[^`]*'")


class GenerateParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The params of a "generate" call. deadline_ms: what the asker still gives. hops: how often the request may be
    forwarded by whoever gets it. seen: the peers it has passed, the asker among them. ticket: by which the answer is
    resumed when the session is lost (resumption.py). trace: `traceparent` and `tracestate`, where the caller sent them.
    """

    request: GenerateRequest
    deadline_ms: Annotated[int, Meta(ge=0, le=24 * 3600 * 1000)]
    hops: int
    seen: Annotated[tuple[PeerId, ...], Meta(max_length=MAX_SEEN)] = ()
    ticket: Annotated[str, Meta(min_length=16, max_length=64)] | None = None
    trace: tuple[Annotated[str, Meta(max_length=128)], Annotated[str, Meta(max_length=MAX_STATE_CHARS)]] | None = None


class PeersAnswer(Protocol):
    """An answer under way: its events, and at the end what the asker is told beside them."""

    @property
    def provider(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def result(self) -> Any: ...


AnswerForPeer = Callable[
    [GenerateRequest, PeerId, float, int, Sequence[PeerId]], AbstractAsyncContextManager[PeersAnswer]
]
"""(request, peer, deadline_s, hops, seen) -> the answer. Entering or iterating raises NoAnswer or ProviderError."""


class Told(Protocol):
    """What tells an answer: a call, or who keeps the answer for one."""

    async def accept(self, body: Any = None) -> None: ...
    async def send(self, item: Any) -> None: ...


Telling = Callable[[IncomingCall, str | None, PeerId, AbstractAsyncContextManager[PeersAnswer], float], Awaitable[Any]]
"""(call, ticket, peer, the answer, deadline_s) -> the body of the end frame."""


async def serve_generate(
    call: IncomingCall,
    params: Any,
    *,
    me: PeerId,
    peer: PeerId,
    answer_for_peer: AnswerForPeer,
    telling: Telling | None = None,
) -> Any:
    """Answer one forwarded request; the result is the body of the end frame. CallError codes are ErrorKind values."""
    asked = _read(params)
    if me in asked.seen:
        raise CallError(ErrorKind.UNAVAILABLE, "the request has passed this node before")
    if not 0 <= asked.hops <= MAX_HOPS:
        raise CallError(ErrorKind.UNAVAILABLE, "the request was forwarded too often")
    deadline_s = asked.deadline_ms / 1000
    if asked.trace is not None:
        TRACE.set(Trace.read(*asked.trace))
    try:
        answering = answer_for_peer(asked.request, peer, deadline_s, asked.hops, asked.seen)
    except (NoAnswer, ProviderError) as error:
        raise _refusal(error) from None
    if telling is not None:
        return await telling(call, asked.ticket, peer, answering, deadline_s)
    return await relay(call, answering, deadline_s)


async def relay(call: Told, answering: AbstractAsyncContextManager[PeersAnswer], deadline_s: float) -> Any:
    """Tell a peer the events of an answer as they come; the result is the body of the end frame."""
    with trio.move_on_after(deadline_s):
        try:
            async with answering as answer:
                accepted = False
                async for event in answer:
                    if not accepted:
                        accepted = True
                        await call.accept({"provider": answer.provider, "model": answer.model})
                    await call.send(event)
                return answer.result()
        except (NoAnswer, ProviderError) as error:
            raise _refusal(error) from None
    raise CallError(ErrorKind.DEADLINE, "the request's time was spent before the answer was whole")


def _read(params: Any) -> GenerateParams:
    try:
        return msgspec.convert(params, GenerateParams)
    except msgspec.ValidationError as error:
        raise CallError(ErrorKind.BAD_REQUEST, f"the forwarded request is ill-typed: {_place(error)}") from None


def _place(error: msgspec.ValidationError) -> str:
    """What msgspec says, without the values that it quotes for enumerations."""
    return _QUOTED.sub("", str(error))[:200]


def _refusal(error: NoAnswer | ProviderError) -> CallError:
    data = {"retry_after": error.retry_after} if error.retry_after is not None else None
    return CallError(error.kind, error.message, data)
