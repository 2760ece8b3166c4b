"""A Kademlia DHT: who has something is found by nodes that are not connected to it, over those in between.

    dht = Dht(host, identity, "/shoal/5f0c.../kad/1.0.0", swarm="home")
    async with host.running(), dht.running():
        dht.meet(peer, addresses)                        # anybody to begin with
        await dht.provide([(key, 3600.0)])
        await dht.find_providers(key, lambda peer, addresses: print(peer))

Wire format: https://github.com/libp2p/specs/blob/master/kad-dht/README.md under a protocol id of the swarm's own, with
signed statements in place of bare provider records (kad_statement.py). With `signed=False` and IPFS's protocol id the
same class is a client of an IPFS DHT. py-libp2p 0.8.1's KadDHT is not used; docs/dht.md says why, with figures.

What belongs here: searching and announcing. Answering others is kad_server.py's; what to announce, and what to do with
what was found, is node/swarm/discovery.py's.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

import trio
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from ..peer_id import Identity, PeerId
from ..rate import Bucket
from . import kad_statement
from .errors import P2pError, ProtocolRefused, ProtocolViolation, StreamLost
from .host import Host
from .incoming import Incoming
from .kad_message import ADD_PROVIDER, FIND_NODE, GET_PROVIDERS, GET_VALUE, PUT_VALUE, Entry, Message, decode, frame
from .kad_server import DhtCounters, DhtLimits, KadServer, binary
from .kad_statement import (
    LOCATE,
    MAX_TOLD_ADDRESSES,
    PROVIDE,
    Statement,
    StatementRefused,
    is_peer,
    peer_bytes,
    peer_text,
)
from .kad_store import RecordStore
from .kad_table import BUCKET, Search, Table, place_of
from .stream import P2pStream

log = logging.getLogger("shoal.p2p.dht")

Found = Callable[[PeerId, tuple[str, ...]], object]
"""Told of a provider, once each, with addresses to dial it at. True: enough, the search ends."""

Take = Callable[[PeerId, Message], bool]
"""Told of each answer. True: enough, the search ends."""

IDLE_STREAM_S = 20.0  # an unused stream of ours is closed after
IDLE_CONNECTION_S = 30.0  # a connection that only a search needed is closed after
TIDY_S = 10.0
MUTE_S = 600.0  # a peer that does not speak the protocol is asked again after
PACE = 0.8  # of the rate at which peers answer is asked of one
AT_ONCE = 16  # announcements that one peer gets before its answers are read


class _Line:
    """A stream to a peer on which one question after the other is asked."""

    def __init__(self, stream: P2pStream, limit_s: float) -> None:
        self.stream, self.incoming = stream, Incoming(stream, limit_s)
        self.used = trio.current_time()


class Dht:
    """host: running around it. identity: signs what is provided. protocol: the id of the streams; swarm: the name in
    statements. serve: others may ask this node. signed: only signed statements count (False: an IPFS DHT).

    addresses: where this node can be dialled; None: the host's own. admits: whether a peer belongs here. keeps: whether
    somebody else needs the connection with a peer.
    """

    def __init__(
        self,
        host: Host,
        identity: Identity,
        protocol: str,
        *,
        swarm: str = "",
        limits: DhtLimits | None = None,
        serve: bool = True,
        signed: bool = True,
        addresses: Callable[[], Sequence[str]] | None = None,
        admits: Callable[[PeerId], bool] = lambda peer: True,
        keeps: Callable[[PeerId], bool] = lambda peer: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.me, self.protocol, self.swarm = identity.peer_id, protocol, swarm
        self.limits = limits or DhtLimits()
        self.table = Table(self.me)
        self.counters = DhtCounters()
        self.records = RecordStore(
            records=self.limits.records,
            per_peer=self.limits.records_per_peer,
            per_key=self.limits.providers_per_key,
        )
        self._host, self._identity = host, identity
        self._signed, self._admits, self._keeps, self._clock = signed, admits, keeps, clock
        self._addresses = addresses or host.addresses
        self._replicas = self.limits.replicas if signed else BUCKET
        self._idle: dict[PeerId, _Line] = {}
        self._opened: dict[PeerId, float] = {}  # connections that a search opened -> last used
        self._paces: dict[PeerId, Bucket] = {}
        self._mute: dict[PeerId, float] = {}  # peers that take no part -> until when they are left alone (trio time)
        self._dials = trio.CapacityLimiter(self.limits.dials)
        self._server = (
            KadServer(host, self.table, self.records, self.limits, self.counters, admits=admits, clock=clock)
            if serve
            else None
        )

    # -- life ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Dht]:
        if self._server is not None:
            self._server.speak(self.protocol, self.swarm)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tidy)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()

    def move(self, protocol: str, swarm: str) -> None:
        """From now on this is another swarm's DHT: nothing of the old one is kept."""
        self.protocol, self.swarm = protocol, swarm
        self.table.clear()
        self.records.clear()
        self._idle.clear()  # the streams end with their connections
        if self._server is not None:
            self._server.speak(protocol, swarm)

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(TIDY_S)
            now = trio.current_time()
            self.records.sweep(self._clock())
            for peer, line in list(self._idle.items()):
                if now - line.used > IDLE_STREAM_S:
                    del self._idle[peer]
                    await line.stream.close()
            for peer, used in list(self._opened.items()):
                if not self._host.is_connected(peer):
                    del self._opened[peer]
                elif now - used > IDLE_CONNECTION_S:
                    del self._opened[peer]
                    if not self._keeps(peer):
                        await self._host.disconnect(peer)
            for peer in [peer for peer in self._paces if not self._host.is_connected(peer)]:
                del self._paces[peer]
            for peer in [peer for peer, until in self._mute.items() if now >= until]:
                del self._mute[peer]
            if self._server is not None:
                self._server.tidy()

    # -- whom this node knows --------------------------------------------------------------------------------------

    def meet(self, peer: PeerId, told: Sequence[str] = ()) -> None:
        """A peer is connected, or was heard of from somebody trusted; told: addresses to dial it at."""
        if self._admits(peer) and trio.current_time() >= self._mute.get(peer, 0.0):
            self.table.add(peer, tuple(told)[:MAX_TOLD_ADDRESSES])

    def release(self, peer: PeerId) -> None:
        """Somebody else uses the connection with a peer from now on: it is not closed when a search is over."""
        self._opened.pop(peer, None)

    def known(self) -> list[PeerId]:
        """The peers in the table."""
        return self.table.peers()

    # -- searching -------------------------------------------------------------------------------------------------

    async def find_providers(self, key: bytes, found: Found) -> None:
        """Tell `found` of every provider of a key, as they are heard of. Ends by itself after 20 s at most."""
        told: set[PeerId] = {self.me}

        def tell(peer: PeerId, at: tuple[str, ...]) -> bool:
            if peer in told or not self._admits(peer):
                return False
            told.add(peer)
            return found(peer, at) is True

        for held in self.records.get(key, self._clock()):
            if tell(held.peer, held.statement.addresses):
                return
        if len(told) > self.limits.providers_per_key:
            return

        def take(_: PeerId, answer: Message) -> bool:
            enough = [tell(*provider) for provider in self._providers(key, answer)]
            return any(enough)

        await self._search(key, Message(GET_PROVIDERS, key), take, width=self._replicas)

    def _providers(self, key: bytes, answer: Message) -> list[tuple[PeerId, tuple[str, ...]]]:
        """The providers in an answer that can be believed."""
        believed: list[tuple[PeerId, tuple[str, ...]]] = []
        for entry in answer.providers[: self.limits.providers_per_key]:
            if not self._signed:
                if is_peer(entry.id):
                    believed.append(_hint(entry))
                continue
            try:
                said = kad_statement.unseal(entry.statement, PROVIDE, swarm=self.swarm, key=key, now=self._clock())
            except StatementRefused as refused:
                self.counters.refused[refused.reason] += 1
                continue
            if not said.withdrawn:
                believed.append((said.peer, said.addresses))
        return believed

    async def locate(self, peer: PeerId) -> tuple[str, ...]:
        """The addresses that a node says it has, from its own signed record; () when none is found."""
        try:
            key = kad_statement.node_key(peer)
        except ValueError:
            return ()
        best: Statement | None = next((held.statement for held in self.records.get(key, self._clock())), None)

        def take(_: PeerId, answer: Message) -> bool:
            nonlocal best
            if answer.value:
                try:
                    said = kad_statement.unseal(answer.value, LOCATE, swarm=self.swarm, key=key, now=self._clock())
                except StatementRefused as refused:
                    self.counters.refused[refused.reason] += 1
                else:
                    if not said.withdrawn and (best is None or said.created > best.created):
                        best = said
            return best is not None

        if best is None:
            await self._search(key, Message(GET_VALUE, key), take)
        return best.addresses if best is not None else ()

    async def find_peer(self, peer: PeerId) -> tuple[str, ...]:
        """The addresses that others know of a peer, unverified; () when nobody does."""
        found: tuple[str, ...] = ()
        try:
            key = peer_bytes(peer)
        except ValueError:
            return ()

        def take(_: PeerId, answer: Message) -> bool:
            nonlocal found
            found = found or next((at for other, at in self._closer(answer) if other == peer), ())
            return bool(found)

        await self._search(key, Message(FIND_NODE, key), take)
        return found

    async def refresh(self, key: bytes | None = None) -> int:
        """Look for who is near a key (None: this node itself), so that the table fills; how many have answered."""
        target = peer_bytes(self.me) if key is None else key
        return len((await self._search(target, Message(FIND_NODE, target))).closest)

    async def _search(self, key: bytes, question: Message, take: Take | None = None, *, width: int = BUCKET) -> Search:
        """Ask those nearest to a key, and those that they name, until the nearest have all answered or `take` is
        content."""
        self.counters.searches += 1
        place = place_of(key)
        search = Search(place, self.table.closest(place, BUCKET), me=self.me, width=width)
        hints: dict[PeerId, tuple[str, ...]] = {}
        news = trio.Event()

        async def ask(peer: PeerId, scope: trio.CancelScope) -> None:
            try:
                answer = await self._ask(peer, question, hints.get(peer, ()))
            except P2pError as error:
                log.debug("no answer of %s: %s", peer, error)
                search.lost(peer)
                if not self._host.is_connected(peer):
                    self.table.remove(peer)
            else:
                closer = self._closer(answer)
                hints.update((other, at) for other, at in closer if other not in hints)
                search.heard(peer, [other for other, _ in closer])
                self.table.add(peer, hints.get(peer, ()))
                if take is not None and take(peer, answer):
                    scope.cancel()
            news.set()

        with trio.move_on_after(self.limits.search_s):
            async with trio.open_nursery() as nursery:
                while True:
                    news = trio.Event()
                    for peer in search.next():
                        nursery.start_soon(ask, peer, nursery.cancel_scope)
                    if search.over:
                        break
                    await news.wait()
        return search

    def _closer(self, answer: Message) -> list[tuple[PeerId, tuple[str, ...]]]:
        """The peers that an answer names, as hints: the handshake says who is there."""
        named = [_hint(entry) for entry in answer.closer[: 2 * BUCKET] if is_peer(entry.id)]
        return [(peer, at) for peer, at in named if peer != self.me and self._admits(peer)]

    # -- announcing ------------------------------------------------------------------------------------------------

    async def provide(self, keys: Sequence[tuple[bytes, float]]) -> set[bytes]:
        """Say that this node has what the keys stand for, each for so many seconds; 0.0 takes it back.

        Those of the keys that at least one other node has taken. As long as all that is known fits into one answer, the
        nearest are told at once; in a larger swarm each key is searched for first.
        """
        taken = set[bytes]()
        jobs: dict[PeerId, list[Message]] = {}
        for key, ttl_s in keys:
            message = self._announcement(key, ttl_s)
            for peer in await self._nearest(key):
                jobs.setdefault(peer, []).append(message)
        async with trio.open_nursery() as nursery:
            for peer, messages in jobs.items():
                nursery.start_soon(self._store_at, peer, messages, taken)
        self.counters.provided += len(taken)
        return taken

    async def publish_self(self, ttl_s: float) -> int:
        """Give the nodes nearest to this one a record of where it can be dialled; how many took it."""
        key = kad_statement.node_key(self.me)
        value = kad_statement.seal(self._identity, self._statement(key, ttl_s), LOCATE)
        taken = set[bytes]()
        count = 0
        for peer in await self._nearest(key):
            taken.clear()
            await self._store_at(peer, [Message(PUT_VALUE, key, value)], taken)
            count += bool(taken)
        return count

    def _announcement(self, key: bytes, ttl_s: float) -> Message:
        if not self._signed:
            at = tuple(binary(address, self.me) for address in self._told())
            return Message(ADD_PROVIDER, key, providers=(Entry(peer_bytes(self.me), at),))
        sealed = kad_statement.seal(self._identity, self._statement(key, ttl_s))
        return Message(ADD_PROVIDER, key, providers=(Entry(peer_bytes(self.me), statement=sealed),))

    def _statement(self, key: bytes, ttl_s: float) -> Statement:
        return Statement(
            swarm=self.swarm, peer=self.me, key=key, created=self._clock(), ttl_s=ttl_s, addresses=tuple(self._told())
        )

    def _told(self) -> list[str]:
        return list(self._addresses())[:MAX_TOLD_ADDRESSES]

    async def _nearest(self, key: bytes) -> list[PeerId]:
        if self._signed and len(self.table) <= self.limits.closer:
            return self.table.closest(place_of(key), self._replicas)
        return (await self._search(key, Message(FIND_NODE, key), width=self._replicas)).closest

    async def _store_at(self, peer: PeerId, messages: Sequence[Message], taken: set[bytes]) -> None:
        for start in range(0, len(messages), AT_ONCE):
            batch = messages[start : start + AT_ONCE]
            try:
                answers = await self._ask_all(peer, batch, silent=not self._signed)
            except P2pError as error:
                log.debug("%s takes no record: %s", peer, error)
                if not self._host.is_connected(peer):
                    self.table.remove(peer)
                return
            told = zip(batch, answers, strict=True) if answers else ((message, message) for message in batch)
            taken.update(message.key for message, answer in told if answer.key == message.key)

    # -- asking one peer -------------------------------------------------------------------------------------------

    async def _ask(self, peer: PeerId, question: Message, hints: Sequence[str] = ()) -> Message:
        return (await self._ask_all(peer, [question], hints))[0]

    async def _ask_all(
        self, peer: PeerId, questions: Sequence[Message], hints: Sequence[str] = (), *, silent: bool = False
    ) -> list[Message]:
        """The answers of one peer, in order. P2pError when they do not come in time. silent: it gives none."""
        self.counters.asked += len(questions)
        rate = self.limits.requests_per_s
        pace = self._paces.setdefault(peer, Bucket(PACE * rate, 4 * rate))
        if pace.take(len(questions), trio.current_time()):
            raise StreamLost(f"{peer} is asked too often")
        try:
            with trio.fail_after(self.limits.dial_s + self.limits.answer_s):
                await self._connect(peer, hints)
                used = self._idle.pop(peer, None)
                if used is not None:
                    with contextlib.suppress(P2pError):  # the peer may have closed it; a new one tells
                        return await self._on(used, peer, questions, silent)
                try:
                    stream = await self._host.open_stream(peer, self.protocol)
                except ProtocolRefused:
                    self._mute[peer] = trio.current_time() + MUTE_S
                    self.table.remove(peer)
                    raise
                return await self._on(_Line(stream, self.limits.answer_s), peer, questions, silent)
        except trio.TooSlowError:
            raise StreamLost(f"{peer} did not answer in time") from None

    async def _on(self, line: _Line, peer: PeerId, questions: Sequence[Message], silent: bool) -> list[Message]:
        answers: list[Message] = []
        try:
            data = b"".join(map(frame, questions))
            self.counters.bytes_sent += len(data)
            await line.stream.write(data)
            while not silent and len(answers) < len(questions):
                with trio.fail_after(self.limits.answer_s):
                    answers.append(await self._answer_on(line, peer))
            return answers
        finally:
            line.used = trio.current_time()
            if peer in self._opened:
                self._opened[peer] = line.used
            whole = len(answers) == len(questions)
            if whole and peer not in self._idle:
                self._idle[peer] = line
            elif whole or silent:
                await line.stream.close()
            else:
                await line.stream.reset()

    async def _answer_on(self, line: _Line, peer: PeerId) -> Message:
        size = await line.incoming.size()
        if size is None:
            raise StreamLost(f"{peer} closed the stream without an answer")
        if size > self.limits.message_bytes:
            raise ProtocolViolation(f"an answer of {size} bytes")
        answer = decode(await line.incoming.take(size))
        self.counters.bytes_received += size
        self.counters.answered += 1
        return answer

    async def _connect(self, peer: PeerId, hints: Sequence[str]) -> None:
        if self._host.is_connected(peer):
            return
        at = dict.fromkeys((*(self.table.addresses(peer) or ()), *hints))
        async with self._dials:
            if not self._host.is_connected(peer):
                self.counters.dialled += 1
                with trio.fail_after(self.limits.dial_s):
                    await self._host.connect(peer, list(at)[:MAX_TOLD_ADDRESSES])
                self._opened[peer] = trio.current_time()

    # -- figures ---------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, object]:
        """Counts since the start and what there is now. JSON-compatible."""
        counters = {name: getattr(self.counters, name) for name in DhtCounters.__struct_fields__}
        counters["refused"] = dict(self.counters.refused + self.records.refused)
        return {"peers": len(self.table), "records": len(self.records), **counters}


@functools.lru_cache(maxsize=4096)
def _text(data: bytes) -> str:
    """A multiaddr as text; "" when it is none."""
    try:
        return str(Multiaddr(data))
    except (MultiaddrError, ValueError, KeyError):
        return ""


def _hint(entry: Entry) -> tuple[PeerId, tuple[str, ...]]:
    """A peer with the addresses that somebody else says it has; the handshake says who is there."""
    peer = peer_text(entry.id)
    told = (_text(data).removesuffix(f"/p2p/{peer}") for data in entry.addresses)
    found = tuple(f"{text}/p2p/{peer}" for text in dict.fromkeys(told) if "/tcp/" in text)
    return peer, found[:MAX_TOLD_ADDRESSES]
