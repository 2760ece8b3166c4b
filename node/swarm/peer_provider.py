"""A peer as a provider: requests go over the session, events come back, the peer's own limits and failures with them.

async with provider.generate_for(request, deadline_s=60, hops=0, seen=frozenset({me})) as answer:
    async for event in answer:
        ...
answer.result      # {"provider": ..., "model": ..., "record": ...}: what the peer says of its answer
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import trio

from ...protocols.peer_id import PeerId, short
from ...protocols.session import CallError, OutgoingCall, Session, SessionLost
from ...providers.base import (
    ErrorKind,
    Event,
    Finish,
    GenerateRequest,
    ModelInfo,
    Provider,
    ProviderError,
    Status,
    TextDelta,
    Usage,
)
from ...providers.embedding import vectors_of
from ...providers.trace import TRACE
from .advert import Advert
from .resumption import GONE, RESUME, ResumeParams
from .serving import GENERATE, MAX_HOPS, MAX_SEEN, GenerateParams

DEADLINE_S = 300.0  # for a request that comes without one
MAX_DEADLINE_S = 24 * 3600.0
MAX_RETRY_AFTER_S = 24 * 3600.0
MAX_RESUMED = 16  # how often one answer is taken up again; a relay's limits may cut it many times
MAX_IDS = 4096  # token ids in a request; a frame has room for 8,192 values (protocols/framing.py)

_SESSION_CODES = {
    "busy": ErrorKind.OVERLOADED,
    "too_large": ErrorKind.UNAVAILABLE,
    "unknown_method": ErrorKind.UNAVAILABLE,
    # The peer's own work was cancelled although we still wait: it is going down.
    "cancelled": ErrorKind.CONNECTION,
}


class PeerProvider(Provider):
    """session: the peer's session, or None while there is none. advert: its advert, or None. me: this node.

    connect: finds a session with a peer that was only heard of, or None. regain: finds another session with the peer,
    within seconds, after one was lost that ran through a relay; or None.
    """

    def __init__(
        self,
        peer: PeerId,
        *,
        me: PeerId,
        session: Callable[[], Session | None],
        advert: Callable[[], Advert | None],
        connect: Callable[[], Awaitable[Session | None]] | None = None,
        regain: Callable[[], Awaitable[Session | None]] | None = None,
    ) -> None:
        self.peer, self.name, self.embeds = peer, f"peer:{short(peer)}", True
        self._me, self._session, self._advert, self._connect = me, session, advert, connect
        self.since: float | None = None  # when (trio time) the peer was last met again after it was away
        self._regain = regain

    async def probe(self) -> Status:
        session, advert = self._session(), self._advert()
        if session is None or not session.usable:
            return Status(ready=False, reason="the peer is not connected")
        if advert is None:
            return Status(ready=False, reason="the peer has not said what it offers")
        if not advert.providers:
            return Status(ready=False, reason="the peer shares no provider")
        models = {offered.model.name: offered.model for offered in advert.models}
        return Status(
            ready=True,
            models=tuple(models.values()),
            default_model=next((p.default_model for p in advert.providers if p.default_model), None),
            any_model=any(p.any_model for p in advert.providers),
            version=advert.version,
        )

    def info(self, model: str | None) -> ModelInfo | None:
        """What the peer says of the model. It continues a prefix when any of its providers does: the peer's router
        gives such a request to none that does not."""
        advert = self._advert()
        if advert is None or model is None:
            return None
        found: ModelInfo | None = None
        for offered in advert.models:
            if offered.model.name == model and (found is None or offered.model.capabilities.continues):
                found = offered.model
        return found

    def makes_vectors(self, model: str | None) -> bool:
        """Whether the peer says that it makes embeddings by the model (None: by any)."""
        advert = self._advert()
        if advert is None:
            return False
        named = [o.model for o in advert.models if model is None or o.model.name == model]
        return any(m.capabilities.embeds for m in named) or (not named and any(p.embeds for p in advert.providers))

    def completes_by(self, model: str | None) -> bool:
        """Whether the peer says that it goes on with bare text by the model (None: by any)."""
        advert = self._advert()
        if advert is None:
            return False
        named = [o.model for o in advert.models if model is None or o.model.name == model]
        return any(m.capabilities.completes for m in named) or (
            not named and any(p.completes for p in advert.providers)
        )

    def takes_images(self, model: str | None) -> bool:
        """Whether the peer may be shown images by the model (None: by any), as far as it says."""
        advert = self._advert()
        if advert is None:
            return False
        named = [o.model for o in advert.models if model is None or o.model.name == model]
        return any(m.capabilities.images for m in named) or any(p.any_model for p in advert.providers)

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[PeerAnswer]:
        return self.generate_for(request, deadline_s=DEADLINE_S, hops=0, seen=())

    @asynccontextmanager
    async def generate_for(
        self, request: GenerateRequest, *, deadline_s: float, hops: int, seen: Collection[PeerId]
    ) -> AsyncIterator[PeerAnswer]:
        """Forward a request. deadline_s: seconds left; hops: how often the peer may forward it; seen: who had it.

        ProviderError: CONNECTION when the peer is lost before text, INTERRUPTED after, else what the peer says.
        """
        session, began = self._session(), trio.current_time()
        if session is None and self._connect is not None:
            session = await self._connect()
            deadline_s -= trio.current_time() - began
        if session is None or not session.usable:
            raise ProviderError(ErrorKind.CONNECTION, f"{self.name} is not connected")
        inputs = request.embed.inputs if request.embed is not None else ()
        prompts = inputs if request.completion is None else (request.completion.prompt,)
        if sum(len(each) for each in prompts if isinstance(each, tuple)) > MAX_IDS:
            raise ProviderError(ErrorKind.UNAVAILABLE, f"more than {MAX_IDS} token ids do not go to a peer; send texts")
        deadline_s = min(deadline_s, MAX_DEADLINE_S)
        if deadline_s <= 0:
            raise _too_late(self.name)
        path = tuple(dict.fromkeys((*seen, self._me)))
        if len(path) > MAX_SEEN:
            raise ProviderError(ErrorKind.UNAVAILABLE, "the request was forwarded too often")
        trace = TRACE.get()
        params = GenerateParams(
            request=request,
            deadline_ms=math.ceil(deadline_s * 1000),
            hops=min(hops, MAX_HOPS),
            seen=path,
            ticket=secrets.token_hex(16) if session.relayed and self._regain is not None else None,
            trace=(trace.parent, trace.state) if trace is not None else None,
        )
        answer: PeerAnswer | None = None
        try:
            async with AsyncExitStack() as calls:
                call = await calls.enter_async_context(session.call(GENERATE, params))
                until = trio.current_time() + deadline_s
                if request.embed is None:
                    answer = PeerAnswer(self.name, call, until)
                else:
                    answer = PeerVectors(self.name, call, until, len(inputs))
                if params.ticket is not None:
                    answer.again = partial(self._resumed, calls, params.ticket)
                yield answer
        except (CallError, SessionLost) as error:
            raise failure(error, self.name, answer is not None and answer.said) from None
        except OverflowError:
            message = "a number in the request has more than 64 bits, and does not go to a peer"
            raise ProviderError(ErrorKind.BAD_REQUEST, message) from None

    async def _resumed(self, calls: AsyncExitStack, ticket: str, got: int) -> OutgoingCall | None:
        """The rest of an answer whose session was lost, on another session."""
        session = await self._regain() if self._regain is not None else None
        if session is None:
            return None
        try:
            return await calls.enter_async_context(session.call(RESUME, ResumeParams(ticket=ticket, got=got)))
        except (CallError, SessionLost):
            return None


class PeerAnswer:
    """The events of a peer's answer. result: the peer's end statement, a dict, after the last event; else None.

    again: takes the answer up where its session was lost, after so many events: another call, or None.
    """

    def __init__(self, name: str, call: OutgoingCall, deadline: float) -> None:
        self.said = False  # whether anything of the answer has come
        self.again: Callable[[int], Awaitable[OutgoingCall | None]] | None = None
        self._got = self._resumed = 0
        self._name, self._call, self._deadline = name, call, deadline
        self._finished = False

    @property
    def accepted(self) -> dict[str, Any] | None:
        """What the peer said of its answer with the first event: {"provider", "model"}; None when it said nothing."""
        accepted = self._call.accepted
        return accepted if isinstance(accepted, dict) else None

    @property
    def result(self) -> dict[str, Any] | None:
        result = self._call.result
        return result if isinstance(result, dict) else None

    def __aiter__(self) -> PeerAnswer:
        return self

    async def __anext__(self) -> Event:
        try:
            with trio.CancelScope(deadline=self._deadline) as scope:
                item = await self._next()
        except StopAsyncIteration:
            if not self._finished:
                kind = ErrorKind.INTERRUPTED if self.said else ErrorKind.UPSTREAM
                raise ProviderError(kind, f"{self._name} ended without finishing its answer") from None
            raise
        except (CallError, SessionLost) as error:
            raise failure(error, self._name, self.said) from None
        if scope.cancelled_caught:
            raise _too_late(self._name)
        self._got += 1
        event = _event(item, self._name, self.said)
        if isinstance(event, Finish):
            self._finished = True
        elif not isinstance(event, Usage):
            self.said = True
        return event

    async def _next(self) -> Any:
        """The next item, over as many sessions as it takes."""
        while True:
            try:
                return await anext(self._call)
            except SessionLost as lost:
                call = None
                if self.again is not None and self._resumed < MAX_RESUMED:
                    self._resumed += 1
                    call = await self.again(self._got)
                if call is None:
                    raise lost from None
                self._call = call
            except CallError as error:
                if error.code == GONE:
                    raise SessionLost("the answer was lost with its session") from None
                raise


class PeerVectors(PeerAnswer):
    """An answer that has to be `count` vectors: it is heard to its end, and looked at, before any of it is told."""

    def __init__(self, name: str, call: OutgoingCall, deadline: float, count: int) -> None:
        super().__init__(name, call, deadline)
        self._count = count
        self._heard: list[Event] | None = None

    async def __anext__(self) -> Event:
        if self._heard is None:
            self._heard = await self._hear()
        return self._heard.pop(0) if self._heard else await super().__anext__()

    async def _hear(self) -> list[Event]:
        text: list[str] = []
        rest: list[Event] = []
        while not (rest and isinstance(rest[-1], Finish)):
            event = await super().__anext__()
            if isinstance(event, TextDelta):
                text.append(event.text)
            else:
                rest.append(event)
        whole = "".join(text)
        try:
            vectors_of(whole, self._count)
        except ValueError as error:
            raise ProviderError(ErrorKind.UPSTREAM, f"{self._name} gave no embeddings: {error}") from None
        return [TextDelta(whole), *rest]


def failure(error: CallError | SessionLost, name: str, said: bool) -> ProviderError:
    """What a failed call means to the router. said: whether anything of the answer had come."""
    if isinstance(error, SessionLost):
        if said:
            return ProviderError(ErrorKind.INTERRUPTED, f"{name} was lost while answering")
        return ProviderError(ErrorKind.CONNECTION, f"{name} was lost before it answered")
    try:
        kind = ErrorKind(error.code)
    except ValueError:
        kind = _SESSION_CODES.get(error.code, ErrorKind.UPSTREAM)
    if kind is ErrorKind.CANCELLED:
        kind = ErrorKind.CONNECTION
    said_why = "".join(char for char in error.message if char.isprintable())[:300] or "no reason given"
    return ProviderError(kind, f"{name}: {said_why}", retry_after=_retry_after(error.data))


def _retry_after(data: Any) -> float | None:
    value = data.get("retry_after") if isinstance(data, dict) else None
    if isinstance(value, int | float) and 0 <= value <= MAX_RETRY_AFTER_S:
        return float(value)
    return None


def _event(item: Any, name: str, said: bool) -> Event:
    if type(item) is list and len(item) == 2 and item[0] == "t" and type(item[1]) is str:
        return TextDelta(item[1])  # nearly all of them: 20 times faster than convert
    try:
        event: Event = msgspec.convert(item, Event)
    except msgspec.ValidationError:
        kind = ErrorKind.INTERRUPTED if said else ErrorKind.UPSTREAM
        raise ProviderError(kind, f"{name} sent something that is no event") from None
    return event


def _too_late(name: str) -> ProviderError:
    return ProviderError(ErrorKind.DEADLINE, f"the request's time was spent while {name} answered")
