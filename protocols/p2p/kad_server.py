"""The answering side of the DHT: what peers may ask of this node and leave with it, each within its limits."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable

import msgspec
import trio
from msgspec import Struct
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from ..peer_id import PeerId
from ..rate import Bucket
from . import kad_statement
from .errors import ProtocolViolation
from .host import Host
from .incoming import Incoming
from .kad_message import (
    ADD_PROVIDER,
    FIND_NODE,
    GET_PROVIDERS,
    GET_VALUE,
    PING,
    PUT_VALUE,
    Entry,
    Message,
    decode,
    frame,
)
from .kad_statement import LOCATE, NODE, PROVIDE, StatementRefused, peer_bytes
from .kad_store import RecordStore
from .kad_table import Table, place_of
from .stream import P2pStream
from .telling import is_of_machine

log = logging.getLogger("shoal.p2p.dht")

PEER_SILENT_S = 60.0  # a stream on which a peer asks nothing is closed after
BURST_S = 5.0  # of its rate that a peer may save up
PATIENCE_S = 10.0  # a peer that asks faster than it may for so long, without a pause, is cut off
TOLD_ADDRESSES = 4  # of each peer that an answer names


class DhtLimits(Struct, frozen=True, kw_only=True):
    """Counts unless the name says otherwise; `_s` is seconds, `_bytes` is bytes."""

    records: int = 8192  # kept for others, in all
    records_per_peer: int = 2048
    providers_per_key: int = 16
    requests_per_s: float = 20.0  # of one peer
    stores_per_minute: float = 600.0  # of one peer; so many at once, too
    streams_per_peer: int = 4  # that a peer may have open
    message_bytes: int = 64 * 1024
    closer: int = 12  # peers named in an answer
    replicas: int = 8  # nodes that a record is given to
    dials: int = 6  # under way at once
    dial_s: float = 3.0
    answer_s: float = 3.0
    search_s: float = 20.0


class DhtCounters(Struct):
    """Since the start. refused: statements not believed, by reason. bytes: of messages."""

    searches: int = 0
    asked: int = 0
    answered: int = 0
    served: int = 0
    dialled: int = 0
    provided: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    violations: int = 0
    refused: Counter[str] = msgspec.field(default_factory=Counter)


class KadServer:
    """table: whom this node knows. records: what it keeps for others. admits: whether a peer belongs here."""

    def __init__(
        self,
        host: Host,
        table: Table,
        records: RecordStore,
        limits: DhtLimits,
        counters: DhtCounters,
        *,
        admits: Callable[[PeerId], bool],
        clock: Callable[[], float],
    ) -> None:
        self._host, self._table, self._records = host, table, records
        self._limits, self._counters, self._admits, self._clock = limits, counters, admits, clock
        self._protocol = self._swarm = ""
        self._streams: Counter[PeerId] = Counter()
        self._asks: dict[PeerId, Bucket] = {}
        self._stores: dict[PeerId, Bucket] = {}
        self._hurried: dict[PeerId, float] = {}  # since when a peer has asked too fast (trio time)

    def speak(self, protocol: str, swarm: str) -> None:
        """Serve this protocol for this swarm from now on, and no other."""
        self._protocol, self._swarm = protocol, swarm
        self._host.handle(protocol, functools.partial(self._serve, protocol))

    def tidy(self) -> None:
        """Forget how much peers have asked that are gone."""
        for peer in [peer for peer in self._asks if not self._host.is_connected(peer)]:
            for known in (self._asks, self._stores, self._hurried):
                known.pop(peer, None)

    async def _serve(self, protocol: str, stream: P2pStream) -> None:
        peer = stream.remote
        full = self._streams.get(peer, 0) >= self._limits.streams_per_peer
        if protocol != self._protocol or full or not self._admits(peer):
            await stream.reset()
            return
        self._streams[peer] += 1
        try:
            await self._converse(stream, Incoming(stream, self._limits.answer_s))
        except ProtocolViolation as error:
            self._counters.violations += 1
            log.info("a peer breaks the rules of the DHT and is cut off: %s", error, extra={"peer": peer})
            await stream.reset()
            await self._host.disconnect(peer)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _converse(self, stream: P2pStream, incoming: Incoming) -> None:
        while True:
            size: int | None = None
            with trio.move_on_after(PEER_SILENT_S):
                size = await incoming.size()
            if size is None:
                return
            if size > self._limits.message_bytes:
                raise ProtocolViolation(f"a message of {size} bytes")
            data = await incoming.take(size)
            self._counters.bytes_received += size
            await self._wait_its_turn(stream.remote)
            answer = frame(self._answer(stream.remote, decode(data)))
            self._counters.served += 1
            self._counters.bytes_sent += len(answer)
            await stream.write(answer)

    async def _wait_its_turn(self, peer: PeerId) -> None:
        """A peer that asks too fast is answered later; one that does not take the hint is cut off."""
        rate, now = self._limits.requests_per_s, trio.current_time()
        debt_s = self._asks.setdefault(peer, Bucket(rate, BURST_S * rate)).take(1, now)
        if not debt_s:
            self._hurried.pop(peer, None)
            return
        if now - self._hurried.setdefault(peer, now) > PATIENCE_S:
            raise ProtocolViolation("too many requests")
        await trio.sleep(debt_s)

    # -- one message -----------------------------------------------------------------------------------------------

    def _answer(self, peer: PeerId, asked: Message) -> Message:
        """ProtocolViolation for a message that no honest node sends."""
        if asked.kind == PING:
            return Message(PING)
        if not asked.key:
            raise ProtocolViolation("a message without a key")
        if asked.kind == ADD_PROVIDER:
            return Message(ADD_PROVIDER, asked.key if self._take_provider(peer, asked) else b"")
        if asked.kind == PUT_VALUE:
            return Message(PUT_VALUE, asked.key if self._take_value(peer, asked) else b"")
        closer, of_node = tuple(self._closest(asked.key, peer)), asked.key.startswith(NODE)
        if asked.kind == GET_VALUE:
            held = self._records.get(asked.key, self._clock()) if of_node else []
            return Message(GET_VALUE, asked.key, held[0].sealed if held else None, closer)
        if asked.kind == GET_PROVIDERS:
            held = [] if of_node else self._records.get(asked.key, self._clock())
            held = [one for one in held if self._admits(one.peer)]
            providers = tuple(Entry(peer_bytes(one.peer), statement=one.sealed) for one in held)
            return Message(GET_PROVIDERS, asked.key, None, closer, providers)
        return Message(FIND_NODE, asked.key, None, closer)

    def _closest(self, key: bytes, but: PeerId) -> list[Entry]:
        named: list[Entry] = []
        here = self._host.is_here(but)
        for peer in self._table.closest(place_of(key), self._limits.closer + 1):
            at = self._table.addresses(peer) or ()
            if peer != but and at and self._admits(peer):
                fit = at if here else [address for address in at if not is_of_machine(address)]
                told = tuple(data for address in fit[:TOLD_ADDRESSES] if (data := binary(address, peer)))
                named.append(Entry(peer_bytes(peer), told))
        return named[: self._limits.closer]

    def _take_provider(self, peer: PeerId, asked: Message) -> bool:
        if len(asked.providers) != 1 or asked.key.startswith(NODE):
            raise ProtocolViolation("one provider is announced at a time, and none under a node's own key")
        return self._store(peer, asked.key, asked.providers[0].statement, PROVIDE)

    def _take_value(self, peer: PeerId, asked: Message) -> bool:
        if not asked.key.startswith(NODE) or asked.value is None:
            raise ProtocolViolation("a value outside the namespace of node records")
        return self._store(peer, asked.key, asked.value, LOCATE)

    def _store(self, peer: PeerId, key: bytes, sealed: bytes, domain: bytes) -> bool:
        rate = self._limits.stores_per_minute
        if self._stores.setdefault(peer, Bucket(rate / 60, rate)).take(1, trio.current_time()):
            self._counters.refused["rate"] += 1
            return False
        try:
            said = kad_statement.unseal(sealed, domain, swarm=self._swarm, key=key, now=self._clock(), peer=peer)
        except StatementRefused as refused:
            self._counters.refused[refused.reason] += 1
            return False
        return self._records.put(said, sealed, self._clock())


@functools.lru_cache(maxsize=1024)
def binary(address: str, peer: PeerId) -> bytes:
    """A multiaddr as bytes, without the peer's id at its end; b"" when it is none."""
    try:
        return bytes(Multiaddr(address.removesuffix(f"/p2p/{peer}")).to_bytes())
    except (MultiaddrError, ValueError):
        return b""
