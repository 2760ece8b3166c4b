"""A network of hosts in memory, with the interface of protocols/p2p/host.py, and nodes that answer on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
import trio.testing
from msgspec import Struct
from msgspec.structs import replace
from shoal.node.swarm.admission import Admission
from shoal.node.swarm.advert import AdvertContent, OfferedModel, SharedProvider
from shoal.node.swarm.peerbook import PeerBook
from shoal.node.swarm.swarm import Swarm
from shoal.protocols.p2p.errors import DialFailed, NotConnected, StreamLost
from shoal.protocols.peer_id import Identity, PeerId
from shoal.protocols.session import SessionLimits
from shoal.providers.base import ErrorKind, Finish, GenerateRequest, ModelInfo, ProviderError, TextDelta, Usage

IDENTITIES = sorted((Identity.from_seed(bytes([n]) * 32) for n in range(1, 33)), key=lambda identity: identity.peer_id)
PORT = 4642


class FakeStream:
    def __init__(self, remote: PeerId, pipe: Any, link: Link) -> None:
        self.remote, self.relayed = remote, link.relayed
        self._pipe, self._link = pipe, link

    async def read(self, n: int) -> bytes:
        try:
            data = bytes(await self._pipe.receive_some(n))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamLost("the stream was cut") from None
        await self._link.let_through.wait()
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._pipe.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamLost("the stream was cut") from None

    async def close_write(self) -> None:
        await self._pipe.send_eof()

    async def reset(self) -> None:
        await self._pipe.aclose()


class Link:
    """The line between two hosts; `let_through` is an event that a test replaces to freeze it.

    relayed: whether streams opened from now on run through a relay.
    """

    def __init__(self) -> None:
        self.relayed = False
        self.let_through = trio.Event()
        self.let_through.set()
        self.pipes: list[Any] = []

    def freeze(self) -> None:
        self.let_through = trio.Event()

    def cut(self) -> None:
        for pipe in self.pipes:
            pipe.send_stream.close()
            pipe.receive_stream.close()
        self.pipes.clear()


class FakeNetwork:
    """hosts: those that are up. dials: (from, to) in order. gate: dials wait for it."""

    def __init__(self) -> None:
        self.hosts: dict[PeerId, FakeHost] = {}
        self.links: dict[frozenset[PeerId], Link] = {}
        self.dials: list[tuple[PeerId, PeerId]] = []
        self.gate = trio.Event()
        self.gate.set()

    def link(self, one: PeerId, other: PeerId) -> Link:
        return self.links.setdefault(frozenset((one, other)), Link())


class FakeHost:
    def __init__(self, network: FakeNetwork, identity: Identity, number: int) -> None:
        self.peer_id = identity.peer_id
        self._network, self._number = network, number
        self._handlers: dict[str, Callable[[Any], Awaitable[None]]] = {}
        self._nursery: trio.Nursery | None = None
        self._connected: set[PeerId] = set()
        self.barred: set[PeerId] = set()
        self.beyond: set[PeerId] = set()  # peers on other machines
        self.listening: list[str] = [f"/ip4/127.0.0.1/tcp/{PORT + number}"]

    def addresses(self) -> list[str]:
        return [f"{address}/p2p/{self.peer_id}" for address in self.listening]

    def is_here(self, peer_id: PeerId) -> bool:
        return peer_id not in self.beyond

    async def listen(self, address: str) -> None:
        self.listening.append(address.replace("0.0.0.0", f"192.0.2.{self._number + 1}"))

    async def disconnect(self, peer_id: PeerId) -> None:
        self._network.link(self.peer_id, peer_id).cut()

    def bar(self, peer_id: PeerId) -> None:
        self.barred.add(peer_id)

    def unbar(self, peer_id: PeerId) -> None:
        self.barred.discard(peer_id)

    def handle(
        self,
        protocol: str,
        handler: Callable[[Any], Awaitable[None]],
        *,
        barred: Callable[[Any], Awaitable[None]] | None = None,
    ) -> None:
        self._handlers[protocol] = handler
        self._refusal = barred

    async def connect(self, peer_id: PeerId, addrs: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()
        self._network.dials.append((self.peer_id, peer_id))
        await self._network.gate.wait()
        other = self._network.hosts.get(peer_id)
        if (
            self._network.hosts.get(self.peer_id) is not self
            or other is None
            or not set(addrs) & set(other.addresses())
        ):
            raise DialFailed(peer_id, dict.fromkeys(addrs, "connection refused"))
        self._connected.add(peer_id)

    async def open_stream(self, peer_id: PeerId, protocol: str) -> FakeStream:
        await trio.lowlevel.checkpoint()
        other = self._network.hosts.get(peer_id)
        if other is None or other._nursery is None or peer_id not in self._connected:
            raise NotConnected(f"there is no connection to {peer_id}")
        if protocol not in other._handlers:
            raise StreamLost(f"{peer_id} does not speak {protocol}")
        here, there = trio.testing.memory_stream_pair()
        link = self._network.link(self.peer_id, peer_id)
        link.pipes += [here, there]
        other._nursery.start_soon(other._serve, protocol, FakeStream(self.peer_id, there, link))
        return FakeStream(peer_id, here, link)

    async def _serve(self, protocol: str, stream: FakeStream) -> None:
        try:
            await self._handlers[protocol](stream)
        finally:
            await stream.reset()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeHost]:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._network.hosts[self.peer_id] = self
                try:
                    yield self
                finally:
                    self.die()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # as the real host: an error of the block leaves as it came
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None

    def die(self) -> None:
        """As a killed process: every line is cut at once, and nothing is taken any more."""
        self._network.hosts.pop(self.peer_id, None)
        for pair, link in self._network.links.items():
            if self.peer_id in pair:
                link.cut()


class FakeConfig(Struct, frozen=True, kw_only=True):
    name: str = "test"
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    peers: tuple[str, ...] = ()
    key: str | None = None


class FakeAnswer:
    """Says `words` and finishes; a word that is a number is a pause in seconds, an error is raised."""

    provider, model = "fake", "tiny"

    def __init__(self, words: Sequence[Any]) -> None:
        self._words = words

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._events()

    async def _events(self) -> AsyncIterator[Any]:
        for word in self._words:
            if isinstance(word, ProviderError):
                raise word
            if isinstance(word, int | float):
                await trio.sleep(word)
            else:
                yield word if not isinstance(word, str) else TextDelta(word)

    def result(self) -> dict[str, Any]:
        return {"provider": "fake", "model": "tiny", "record": b"signed"}


HELLO_ANSWER = ("Hel", "lo", Usage(3, 2), Finish("stop", "tiny"))


class FakeNode:
    """One node: `words` is what it answers, `asked` what it was asked, `blocks` what its cache has."""

    def __init__(
        self, network: FakeNetwork, number: int, *, neighbours: int = 32, heard: int = 1024, **config: Any
    ) -> None:
        self.identity = IDENTITIES[number]
        self.id = self.identity.peer_id
        self.host = FakeHost(network, self.identity, number)
        self.words: Sequence[Any] = HELLO_ANSWER
        self.asked: list[tuple[GenerateRequest, PeerId, float, int, tuple[PeerId, ...]]] = []
        self.answering = trio.Event()
        self.cancelled = trio.Event()
        self.content = offering()
        self.blocks: dict[bytes, bytes] = {}
        self.changes = 0
        self.config = FakeConfig(**config)
        self.neighbours, self.heard = neighbours, heard
        self.book: PeerBook | None = None
        self.limits: SessionLimits | None = None
        self.admission: Admission | None = None
        self.generations: Any = None
        self._swarm: Swarm | None = None

    @property
    def swarm(self) -> Swarm:
        assert self._swarm is not None
        return self._swarm

    @asynccontextmanager
    async def answer(self, request: Any, peer: Any, deadline_s: float, hops: int, seen: Any) -> AsyncIterator[Any]:
        self.asked.append((request, peer, deadline_s, hops, tuple(seen)))
        self.answering.set()
        try:
            yield FakeAnswer(self.words)
        except trio.Cancelled:
            self.cancelled.set()
            raise

    def find_blocks(self, cids: list[bytes]) -> list[bytes | None]:
        return [self.blocks.get(cid) for cid in cids]

    def _changed(self) -> None:
        self.changes += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeNode]:
        self._swarm = Swarm(
            self.host,
            self.identity,
            self.config,
            describe=lambda: replace(self.content, addresses=tuple(self.host.addresses())),
            serve=self.answer,
            find_blocks=self.find_blocks,
            book=self.book,
            limits=self.limits,
            admission=self.admission,
            generations=self.generations,
            on_change=self._changed,
            neighbours=self.neighbours,
            heard=self.heard,
        )
        async with self.host.running(), self._swarm.running():
            yield self

    def sees(self, other: FakeNode) -> bool:
        """Whether this node is connected with the other and could forward to it."""
        near = self.swarm.is_connected(other.id)
        return near and any(provider.peer == other.id for provider in self.swarm.candidates_for(None))


def offering(*models: str, shared: bool = True, **more: Any) -> AdvertContent:
    names = models or ("tiny",)
    return AdvertContent(
        models=tuple(OfferedModel("fake", ModelInfo(name, context_length=2048)) for name in names) if shared else (),
        providers=(SharedProvider("fake", default_model=names[0]),) if shared else (),
        hardware={"cpu": "abacus", "cores": 2},
        version="0.1.0",
        **more,
    )


async def until(condition: Callable[[], bool], within: float = 5.0) -> None:
    """Wait for a condition; with the jumping clock this takes no time."""
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def swarm_of(count: int, **config: Any) -> AsyncIterator[list[FakeNode]]:
    """Nodes that all have joined the first one."""
    network = FakeNetwork()
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(FakeNode(network, number, **config).running()) for number in range(count)
        ]
        for node in nodes[1:]:
            await node.swarm.join(nodes[0].swarm.invite())
            await until(lambda node=node: node.sees(nodes[0]) and nodes[0].sees(node))  # type: ignore[misc]
        yield nodes


def refused(kind: ErrorKind, **more: Any) -> ProviderError:
    return ProviderError(kind, "not now", **more)
