"""Relaying for others: a node that can be dialled carries bytes between two that cannot (circuit relay v2).

Spec: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md. A node behind a NAT *reserves*; from then on
others may *connect* to it through the relay, as long as it keeps its connection here. Whoever reserves does so in its
own name, as its handshake proved it. What goes over a circuit is sealed end to end.

    relay = Relay(host, RelayLimits(circuits=16), may_reserve=swarm.shows_itself)
    relay.stats()

What belongs here: who may, how much, and the carrying. Everything has a bound that the owner can set; a peer that asks
far too often loses its connection. The other sides are circuits.py (dialling, answering) and reservations.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from msgspec import Struct
from multiaddr import Multiaddr

from ..peer_id import PeerId
from ..rate import Bucket
from . import addresses
from .circuit import binary_of, peer_of, receive_hop, receive_stop, send
from .circuit_message import HOP, STOP, Hop, HopKind, Limit, Status, Stop, StopKind
from .errors import P2pError, ProtocolViolation, StreamLost
from .host import Host
from .stream import P2pStream

log = logging.getLogger("shoal.p2p")

ASK_S = 10.0  # for a request to come, once its stream is open
CALL_S = 5.0  # for the node that is called to say yes
CHUNK_BYTES = 64 * 1024
LINGER_S = 10.0  # for the second side to close a circuit that the first has closed
MAX_BUCKETS = 1024
TOLD_ADDRESSES = 4


class RelayLimits(Struct, frozen=True, kw_only=True):
    """What the owner lends. Counts unless the name says otherwise.

    circuits_per_peer: of one caller, and to one node that is called. requests_per_minute: of one peer, reservations and
    calls together; beyond twice that it loses its connection. duration_s, circuit_bytes: of one circuit, both ways.
    bytes_per_s: of all circuits together; what is over waits.
    """

    reservations: int = 64
    reservation_s: float = 600.0
    circuits: int = 64
    circuits_per_peer: int = 16
    requests_per_minute: int = 120
    duration_s: float = 4 * 3600.0
    circuit_bytes: int = 1 << 30
    bytes_per_s: float = 8.0 * 1024 * 1024


class _Refused(Exception):
    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class _SpentError(Exception):
    """The circuit has carried what it may."""


class Relay:
    """Serves from its construction on; construct it before or after the host runs.

    may_reserve: whether a peer may be called through here; None: anybody. refused: counts by status. carried: bytes.
    ended: circuits by why they ended: "closed", "lost", "duration", "bytes".
    """

    def __init__(
        self,
        host: Host,
        limits: RelayLimits | None = None,
        *,
        may_reserve: Callable[[PeerId], Awaitable[bool]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits or RelayLimits()
        self.refused: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.dropped = 0  # peers that asked far too often
        self.carried = 0
        self._host, self._may_reserve, self._clock = host, may_reserve, clock
        self._reserved: dict[PeerId, float] = {}  # until when, Unix time
        self._callers: Counter[PeerId] = Counter()  # circuits, those that are being made included
        self._called: Counter[PeerId] = Counter()
        self._requests: dict[PeerId, Bucket] = {}
        self._flow = Bucket(self.limits.bytes_per_s, self.limits.bytes_per_s)
        host.handle(HOP, self._serve)
        host.on_disconnect(self._gone)

    def reserved(self) -> list[PeerId]:
        """Who can be called through here now."""
        now = self._clock()
        return [peer for peer, until in self._reserved.items() if now < until]

    def stats(self) -> dict[str, Any]:
        """Figures for the status: JSON-compatible."""
        return {
            "reservations": len(self.reserved()),
            "circuits": self._callers.total(),
            "carried_bytes": self.carried,
            "ended": dict(self.ended),
            "refused": dict(self.refused),
            "dropped": self.dropped,
        }

    def _gone(self, peer: PeerId) -> None:
        self._reserved.pop(peer, None)  # nobody could be connected to it

    # -- requests ------------------------------------------------------------------------------------------------

    async def _serve(self, stream: P2pStream) -> None:
        try:
            with trio.fail_after(ASK_S):
                asked = await receive_hop(stream)
        except ProtocolViolation:
            await self._refuse(stream, Status.MALFORMED_MESSAGE)
            return
        except trio.TooSlowError:
            return
        try:
            await self._check(stream)
            if asked.kind is HopKind.RESERVE:
                await self._reserve(stream, asked)
            elif asked.kind is HopKind.CONNECT:
                await self._connect(stream, asked)
            else:
                raise _Refused(Status.UNEXPECTED_MESSAGE)
        except _Refused as refused:
            await self._refuse(stream, refused.status)

    async def _refuse(self, stream: P2pStream, status: Status) -> None:
        self.refused[status.name.lower()] += 1
        await send(stream, Hop(HopKind.STATUS, status=status))

    async def _check(self, stream: P2pStream) -> None:
        peer, limits = stream.remote, self.limits
        if stream.relayed:
            raise _Refused(Status.PERMISSION_DENIED)  # the spec: no circuits over circuits
        bucket = self._requests.get(peer)
        if bucket is None:
            self._sweep()
            bucket = self._requests[peer] = Bucket(limits.requests_per_minute / 60.0, limits.requests_per_minute)
        debt_s = bucket.take(1, trio.current_time())
        if debt_s > 60.0:
            self.dropped += 1
            log.warning("a peer is dropped: it asks this relay far too often", extra={"peer": peer})
            await self._host.disconnect(peer)
        if debt_s:
            raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED)

    def _sweep(self) -> None:
        if len(self._requests) >= MAX_BUCKETS:
            away = [peer for peer in self._requests if not self._host.is_connected(peer)]
            for peer in away or list(self._requests)[: MAX_BUCKETS // 2]:
                del self._requests[peer]

    async def _reserve(self, stream: P2pStream, asked: Hop) -> None:
        peer = stream.remote
        if asked.peer is not None and asked.peer != binary_of(peer):
            raise _Refused(Status.PERMISSION_DENIED)  # in another's name
        if self._may_reserve is not None and not await self._may_reserve(peer):
            raise _Refused(Status.RESERVATION_REFUSED)
        held = self.reserved()
        if peer not in held and len(held) >= self.limits.reservations:
            raise _Refused(Status.RESERVATION_REFUSED)
        for expired in set(self._reserved) - set(held):
            del self._reserved[expired]
        until = self._clock() + self.limits.reservation_s
        self._reserved[peer] = until
        end = stream.endpoint
        at = self._host.told(end.remote_ip if end is not None else None)[:TOLD_ADDRESSES]
        told = tuple(Multiaddr(f"{addresses.to_text(*pair)}/p2p/{self._host.peer_id}").to_bytes() for pair in at)
        status = Hop(HopKind.STATUS, expires=int(until), addresses=told, limit=self._limit(), status=Status.OK)
        await send(stream, status)

    def _limit(self) -> Limit:
        return Limit(int(self.limits.duration_s), self.limits.circuit_bytes)

    # -- circuits ------------------------------------------------------------------------------------------------

    async def _connect(self, stream: P2pStream, asked: Hop) -> None:
        caller, limits = stream.remote, self.limits
        try:
            called = peer_of(asked.peer)
        except ProtocolViolation:
            raise _Refused(Status.MALFORMED_MESSAGE) from None
        if called not in self.reserved() or called == caller:
            raise _Refused(Status.NO_RESERVATION)
        if (
            self._callers.total() >= limits.circuits
            or self._callers[caller] >= limits.circuits_per_peer
            or self._called[called] >= limits.circuits_per_peer
        ):
            raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED)
        with _counted(self._callers, caller), _counted(self._called, called):
            far = await self._call(caller, called)
            try:
                await send(stream, Hop(HopKind.STATUS, limit=self._limit(), status=Status.OK))
                why = await self._carry(stream, far)
            except BaseException:
                await far.reset()
                raise
            self.ended[why] += 1
            for side in (stream, far):
                await (side.close() if why == "closed" else side.reset())

    async def _call(self, caller: PeerId, called: PeerId) -> P2pStream:
        """A stream to the node that is called, which has said yes."""
        stream = None
        try:
            with trio.fail_after(CALL_S):
                stream = await self._host.open_stream(called, STOP, relayed=False)
                await send(stream, Stop(StopKind.CONNECT, peer=binary_of(caller), limit=self._limit()))
                answer = await receive_stop(stream)
            if answer.kind is StopKind.STATUS and answer.status == Status.OK:
                return stream
            status = Status.CONNECTION_FAILED if answer.status is None else Status.PERMISSION_DENIED
        except (P2pError, trio.TooSlowError) as error:
            log.debug("a node that has reserved does not answer: %s", type(error).__name__)
            status = Status.CONNECTION_FAILED
        except BaseException:
            if stream is not None:
                await stream.reset()
            raise
        if stream is not None:
            await stream.reset()
        raise _Refused(status)

    async def _carry(self, near: P2pStream, far: P2pStream) -> str:
        """Until both sides have closed, one is lost, or a limit is reached: which of these it was."""
        left, why = [self.limits.circuit_bytes], "duration"
        try:
            with trio.move_on_after(self.limits.duration_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, left, nursery.cancel_scope)
                    nursery.start_soon(self._pump, far, near, left, nursery.cancel_scope)
                why = "closed"
        except* StreamLost:
            why = "lost"
        except* _SpentError:
            why = "bytes"
        return why

    async def _pump(self, source: P2pStream, sink: P2pStream, left: list[int], both: trio.CancelScope) -> None:
        while data := await source.read(CHUNK_BYTES):
            left[0] -= len(data)
            if left[0] < 0:
                raise _SpentError
            if wait_s := self._flow.take(len(data), trio.current_time()):
                await trio.sleep(wait_s)
            await sink.write(data)
            self.carried += len(data)
        await sink.close_write()
        both.deadline = min(both.deadline, trio.current_time() + LINGER_S)


@contextlib.contextmanager
def _counted(counts: Counter[PeerId], peer: PeerId) -> Any:
    counts[peer] += 1
    try:
        yield
    finally:
        counts[peer] -= 1
        if counts[peer] <= 0:
            del counts[peer]
