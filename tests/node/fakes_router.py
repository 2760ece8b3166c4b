"""Providers that do as they are told, and candidates in a list: what the router's tests use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import msgspec
import trio
from msgspec import Struct
from shoal.cache.memory import Memory
from shoal.cache.tiers import AnswerCache
from shoal.node.routing.ask import Ask
from shoal.node.routing.candidate import Candidate
from shoal.node.routing.no_answer import NoAnswer
from shoal.node.routing.router import Router
from shoal.protocols.peer_id import Identity, PeerId
from shoal.providers.base import (
    Capabilities,
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

QUESTION = GenerateRequest.of("What is the opposite of hot?", temperature=0.0)
STOP = Finish("stop")


class Pause(Struct, frozen=True):
    """A step of a script: silence, in seconds."""

    seconds: float


class Wait(Struct, frozen=True):
    """A step of a script: silence until the test sets the event."""

    event: Any


Step = Event | Pause | Wait | Exception | str
"""What a scripted provider does next; a str is a TextDelta."""


class Scripted(Provider):
    """Plays one script a call, the last one again and again. Counts what tests ask about."""

    def __init__(self, name: str, *scripts: Sequence[Step], status: Status | None = None) -> None:
        self.name = name
        self.scripts = [list(script) for script in scripts]
        can = Capabilities(images=True)
        self.status = status or Status(ready=True, models=(ModelInfo("m1", 4096, can),), default_model="m1")
        self.calls: list[GenerateRequest] = []
        self.called_at: list[float] = []
        self.open = 0
        self.cancelled = 0
        self.probes = 0

    async def probe(self) -> Status:
        self.probes += 1
        return self.status

    @contextlib.asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AsyncIterator[Event]]:
        script = self.scripts[min(len(self.calls), len(self.scripts) - 1)]
        self.calls.append(request)
        self.called_at.append(trio.current_time())
        self.open += 1
        try:
            yield self._play(script)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1

    async def _play(self, script: Sequence[Step]) -> AsyncIterator[Event]:
        for step in script:
            if isinstance(step, Pause):
                await trio.sleep(step.seconds)
            elif isinstance(step, Wait):
                await step.event.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                yield TextDelta(step) if isinstance(step, str) else step


def fails(kind: ErrorKind, message: str = "it fails", **more: Any) -> list[Step]:
    return [ProviderError(kind, message, **more)]


def says(*words: str, model: str | None = None, usage: Usage | None = None) -> list[Step]:
    return [*words, *([usage] if usage else []), Finish("stop", model)]


class _Told:
    """A stream with a result after its end, as a peer's."""

    def __init__(self, events: AsyncIterator[Event], result: Any) -> None:
        self._events, self.result = events, result

    def __aiter__(self) -> _Told:
        return self

    async def __anext__(self) -> Event:
        return await self._events.__anext__()


class ScriptedPeer(Scripted):
    """A peer: takes the budget with the request and has a result at the end."""

    def __init__(self, peer: PeerId, *scripts: Sequence[Step], result: Any = None) -> None:
        super().__init__(f"peer:{peer[-6:]}", *scripts)
        self.peer = peer
        self.result = result
        self.infos: dict[str | None, ModelInfo] = {}
        self.budgets: list[tuple[float, int, frozenset[PeerId]]] = []

    def info(self, model: str | None) -> ModelInfo | None:
        return self.infos.get(model)

    @contextlib.asynccontextmanager
    async def generate_for(
        self, request: GenerateRequest, *, deadline_s: float, hops: int, seen: frozenset[PeerId]
    ) -> AsyncGenerator[AsyncIterator[Event]]:
        self.budgets.append((deadline_s, hops, seen))
        async with self.generate(request) as events:
            yield _Told(events, self.result)


class Shelf:
    """A registry of providers that exist."""

    def __init__(self, *providers: Provider, share: Sequence[str] = ()) -> None:
        self.providers: dict[str, Provider] = {p.name: p for p in providers}
        self.refused: dict[str, str] = {}
        self.shared = frozenset(share)


class Listed:
    """Candidates in a fixed order."""

    def __init__(self, *providers: Provider | Candidate) -> None:
        self.listed = [
            p if isinstance(p, Candidate) else Candidate(provider=p, name=p.name, peer=getattr(p, "peer", None))
            for p in providers
        ]
        self.refreshed = 0
        self.none = NoAnswer(ErrorKind.UNAVAILABLE, "Nobody offers that.", code="model_not_found", param="model")

    def settled(self, request: GenerateRequest, ask: Ask | None = None) -> GenerateRequest:
        if request.provider == "alias":
            return msgspec.structs.replace(request, provider="first")
        return request

    def candidates(self, request: GenerateRequest, ask: Ask) -> list[Candidate]:
        return [c for c in self.listed if request.provider in (None, c.name)]

    async def refresh(self, request: GenerateRequest | None = None, ask: Ask | None = None) -> None:
        self.refreshed += 1

    def why_none(self, request: GenerateRequest, ask: Ask) -> NoAnswer:
        return self.none


@contextlib.asynccontextmanager
async def caching(**options: Any) -> AsyncGenerator[AnswerCache]:
    """The answer cache of ME, in memory only."""
    async with AnswerCache(ME.peer_id, memory=Memory(1 << 20), **options).running() as cache:
        yield cache


class Neighbours:
    """Caches of other nodes: what they give, after how long."""

    def __init__(self, *blocks: bytes, after: float = 0.0) -> None:
        self.blocks, self.after = list(blocks), after
        self.asked: list[bytes] = []
        self.cancelled = 0
        self.there = True

    def anybody(self) -> bool:
        return self.there

    async def find(self, request_cid: bytes, timeout: float) -> list[bytes]:
        self.asked.append(request_cid)
        try:
            await trio.sleep(self.after)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return self.blocks


ME = Identity.from_seed(bytes(32))
OTHER = Identity.from_seed(bytes([1]) * 32)


@contextlib.asynccontextmanager
async def routing(*providers: Provider | Candidate, **options: Any) -> AsyncGenerator[Router]:
    """A running router over these providers, in this order."""
    router = Router(Listed(*providers), signer=ME, **options)
    async with router.running():
        yield router


async def ask(router: Router, request: GenerateRequest = QUESTION, **how: Any) -> Told:
    """Ask and read to the end; a NoAnswer is part of what is told."""
    return await hear(router, router.ask(request, **how))


class Told(Struct):
    """What one caller got."""

    events: list[Event]
    error: NoAnswer | None = None
    provider: str | None = None
    model: str | None = None
    peer: str | None = None
    cache: str = ""
    cid: str | None = None
    outcomes: list[tuple[str, str]] = []
    route: Any = None
    took: float = math.nan

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TextDelta))


async def hear(router: Router, question: Ask) -> Told:
    told = Told([])
    start = trio.current_time()
    try:
        async with router.answer(question) as answer:
            try:
                async for event in answer:
                    told.events.append(event)
            finally:
                told.provider, told.model, told.peer = answer.provider, answer.model, answer.peer
                told.cache, told.cid = answer.cache, answer.response_cid
                told.route = answer.route
                told.outcomes = [(a.provider, a.outcome) for a in answer.route]
    except NoAnswer as error:
        told.error = error
        told.outcomes = told.outcomes or [(a.provider, a.outcome) for a in error.route]
    told.took = trio.current_time() - start
    return told
