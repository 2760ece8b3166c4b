"""Routers that share generations: the swarm between them in memory, with nodes that can be lost, slow or liars."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from shoal.cache.memory import Memory
from shoal.cache.tiers import AnswerCache
from shoal.node.routing.answer import Answer
from shoal.node.routing.candidate import CandidateSource
from shoal.node.routing.limits import RoutingLimits
from shoal.node.routing.no_answer import NoAnswer
from shoal.node.routing.router import Router
from shoal.protocols.peer_id import Identity, PeerId
from shoal.providers.base import ErrorKind, Event, Finish, GenerateRequest, Provider, ProviderError, Status, Usage

from .fakes_router import Listed, Scripted

IDENTITIES = [Identity.from_seed(bytes([100 + n]) * 32) for n in range(5)]


class Nodes:
    """Nodes that are all connected. delay: seconds of each message. gone: who was lost. asked: how often an owner was
    asked."""

    def __init__(self, delay: float) -> None:
        self.routers: dict[PeerId, Router] = {}
        self.delay = delay
        self.gone: set[PeerId] = set()
        self.asked = 0
        self.calls: list[tuple[trio.CancelScope, PeerId]] = []

    def lose(self, peer: PeerId) -> None:
        """As a killed process: whoever listens to it notices at once."""
        self.gone.add(peer)
        for scope, to in self.calls:
            if to == peer:
                scope.cancel()


class Seat:
    """What one node sees of the others (routing/together.py, Others).

    slow_word: seconds until it hears that it leads itself, where that takes longer than other words.
    """

    def __init__(self, nodes: Nodes, me: PeerId) -> None:
        self.nodes, self.me = nodes, me
        self.slow_word = 0.0

    def members(self) -> Sequence[PeerId]:
        return [peer for peer in self.nodes.routers if peer != self.me and peer not in self.nodes.gone]

    async def lead(self, owner: PeerId, cid: bytes, lost: Collection[PeerId]) -> PeerId | None:
        self.nodes.asked += 1
        await trio.sleep(self.nodes.delay)
        if owner in self.nodes.gone:
            return None
        leader = self.nodes.routers[owner].leader(cid, self.me, lost)
        await trio.sleep(self.nodes.delay if leader != self.me else self.slow_word or self.nodes.delay)
        return leader

    def joined(self, leader: PeerId, cid: bytes) -> Provider | None:
        return _Joined(self, leader, cid) if leader in self.members() else None


class _Joined(Provider):
    def __init__(self, seat: Seat, leader: PeerId, cid: bytes) -> None:
        self.name = f"peer:{leader[-6:]}"
        self._seat, self._leader, self._cid = seat, leader, cid

    async def probe(self) -> Status:
        return Status(ready=True)

    @contextlib.asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[_Stream]:
        nodes = self._seat.nodes
        await trio.sleep(nodes.delay)
        try:
            async with nodes.routers[self._leader].joined(self._cid, self._seat.me, 60.0) as answer:
                yield _Stream(nodes, self._leader, answer)
        except NoAnswer as error:
            raise ProviderError(error.kind, error.message) from None


class _Stream:
    result: Any = None

    def __init__(self, nodes: Nodes, leader: PeerId, answer: Answer) -> None:
        self._nodes, self._leader, self._answer = nodes, leader, answer
        self._said = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        scope = trio.CancelScope()
        entry = (scope, self._leader)
        self._nodes.calls.append(entry)
        try:
            with scope:
                if self._leader in self._nodes.gone:
                    scope.cancel()
                event = await anext(self._answer)
        finally:
            self._nodes.calls.remove(entry)
        if scope.cancelled_caught:
            raise ProviderError(ErrorKind.INTERRUPTED if self._said else ErrorKind.CONNECTION, "the peer was lost")
        if not isinstance(event, Finish | Usage):
            self._said = True
        else:
            self.result = self._answer.result()
        return event


@asynccontextmanager
async def swarm_of(
    *providers: Provider | CandidateSource, delay: float = 0.001, limits: RoutingLimits | None = None, **cache: Any
) -> AsyncGenerator[tuple[Nodes, list[Router]]]:
    """A router for each provider, or source of candidates."""
    nodes = Nodes(delay)
    async with AsyncExitStack() as stack:
        for identity, provider in zip(IDENTITIES, providers, strict=False):
            answers = AnswerCache(identity.peer_id, memory=Memory(1 << 20), **cache)
            await stack.enter_async_context(answers.running())
            source = Listed(provider) if isinstance(provider, Provider) else provider
            seat = Seat(nodes, identity.peer_id)
            router = Router(source, answers, signer=identity, others=seat, limits=limits)
            await stack.enter_async_context(router.running())
            nodes.routers[identity.peer_id] = router
        yield nodes, list(nodes.routers.values())


def scripted(*script: Any, count: int = 5) -> list[Scripted]:
    return [Scripted("own", list(script)) for _ in range(count)]
