"""Reachability as others see it: this node asks peers where it seems to be and whether they can dial it, and answers
the same for them.

A protocol of our own, /shoal/reach/1.0.0, because libp2p's AutoNAT v1 cannot be mended from one side: it tells no port,
so that the kind of NAT stays unknown, and 0.8.1's server says "reachable" to everybody who is connected. Here the
server dials from a fresh port, to no address but the one that the question came from, as far as the Noise handshake, so
that a stranger's listener is not taken for the asker's. The asker believes "yes" only when it saw the handshake come in
through a listener, so nobody can lie it onto the internet.

    autonat = AutoNat(host, NatLimits(), on_change=...)
    async with host.running(), autonat.running():
        autonat.facts                                   # Facts(reach="private", nat="keeps-ports", ...)

Messages are msgpack maps, each preceded by its length as a varint; docs/protocol.md has them byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
import trio
from libp2p.peer.id import ID
from msgspec import Meta, Struct

from ..peer_id import PeerId
from . import addresses, sockets
from .errors import ProtocolRefused, ProtocolViolation, StreamLost
from .host import Host
from .incoming import Incoming
from .nat_limits import NatLimits
from .protobuf import encode_varint
from .reachability import Facts, Observation, breadth, conclude, scope_of
from .stream import LOST, P2pStream

log = logging.getLogger("shoal.p2p.nat")

PROTOCOL = "/shoal/reach/1.0.0"
MAX_MESSAGE_BYTES = 512
MESSAGE_S = 5.0
ARRIVAL_S = 1.0  # the last message of a handshake and the server's word of it travel on two connections
LOOK_S = 10.0  # between two looks at whether the machine's addresses have changed
AGAIN_SOON_S = 60.0  # when nothing could be concluded
MINUTE_S = 60.0
MAX_ASKERS = 1024  # remembered, to limit them


class Ask(Struct, frozen=True):
    """port: where the asker listens; 0: it only wants to know how it is seen."""

    port: Annotated[int, Meta(ge=0, le=65535)]
    v: int = 1


class Seen(Struct, frozen=True):
    """The asker's end of the connection, as the server sees it."""

    ip: Annotated[str, Meta(max_length=64)]
    port: Annotated[int, Meta(ge=0, le=65535)]


class DialledBack(Struct, frozen=True):
    """ok: whether the server could dial the asker; None: it did not try. why: a few words when not."""

    ok: bool | None = None
    why: Annotated[str, Meta(max_length=128)] = ""


def encode(message: Ask | Seen | DialledBack) -> bytes:
    """A message as it goes over the stream."""
    data = msgspec.msgpack.encode(message)
    return encode_varint(len(data)) + data


async def _receive(incoming: Incoming, kind: type[Any]) -> Any:
    size = await incoming.size()
    if size is None:
        raise StreamLost("the peer ended the conversation")
    if size > MAX_MESSAGE_BYTES:
        raise ProtocolViolation("a message about reachability is too long")
    return decode(await incoming.take(size), kind)


def decode(data: bytes, kind: type[Any]) -> Any:
    """A message of that kind, without its length. ProtocolViolation when it is none."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolViolation("not a message about reachability") from None


class Allowance:
    """So many a minute for each key. Pure: the caller brings the time."""

    def __init__(self, most: int) -> None:
        self._most, self._uses = most, dict[str, deque[float]]()

    def take(self, key: str, now: float) -> bool:
        """Whether one more is allowed; if so it is counted."""
        uses = self._uses.setdefault(key, deque())
        while uses and now - uses[0] >= MINUTE_S:
            uses.popleft()
        if len(uses) >= self._most or len(self._uses) > MAX_ASKERS:
            self._tidy(now)
            return False
        uses.append(now)
        return True

    def _tidy(self, now: float) -> None:
        self._uses = {key: uses for key, uses in self._uses.items() if uses and now - uses[-1] < MINUTE_S}


class AutoNat:
    """facts: what is concluded so far. known: set once a first observer has said how this node is seen.

    on_change: called when the facts have changed. may_ask: whom this node dials back.
    """

    def __init__(
        self,
        host: Host,
        limits: NatLimits,
        *,
        on_change: Callable[[], None] | None = None,
        may_ask: Callable[[PeerId], bool] = lambda peer: True,
    ) -> None:
        self.facts = Facts()
        self.known = trio.Event()
        self.lies = 0  # peers that said to have dialled back and had not
        self.dialled_back = self.refused = 0  # for others; refused: because of a limit
        self._host, self._limits = host, limits
        self._on_change, self._may_ask = on_change, may_ask
        self._observations: dict[PeerId, Observation] = {}
        self._asked: dict[PeerId, float] = {}  # when (trio time)
        self._mute: set[PeerId] = set()  # they do not speak the protocol
        self._wake = trio.Event()
        self._here: tuple[Any, ...] = ()
        self._per_peer, self._per_ip = Allowance(limits.dial_backs_per_peer), Allowance(limits.dial_backs_per_peer)
        self._in_all = Allowance(limits.dial_backs)
        self._dialling = trio.CapacityLimiter(limits.dial_backs_at_once)
        host.on_connection(self._connected)
        host.on_disconnect(self._gone)
        host.handle(PROTOCOL, self._serve)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[AutoNat]:
        """Asks, until the block is left. The host must be running around it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()

    # -- asking --------------------------------------------------------------------------------------------------

    def ask_anew(self) -> None:
        """Forget what was observed and ask again: the addresses have changed."""
        self._observations.clear()
        self._asked.clear()
        self._wake.set()

    def _connected(self, peer: PeerId, connection: Any) -> None:
        if sockets.is_direct(connection.muxed_conn):
            self._wake.set()

    def _gone(self, peer: PeerId) -> None:
        self._mute.discard(peer)
        if trio.current_time() - self._asked.get(peer, trio.current_time()) > AGAIN_SOON_S:
            self._asked.pop(peer, None)  # it is asked when it is back: the line may be another one then

    async def _run(self) -> None:
        while True:
            here = (tuple(addresses.machine_addresses()), tuple(self._host.listening()))
            if here != self._here:
                self._here = here
                self.ask_anew()
            self._wake = trio.Event()
            if due := self._due():
                async with trio.open_nursery() as nursery:
                    for peer in due:
                        nursery.start_soon(self._ask, peer)
                continue
            with trio.move_on_after(LOOK_S):
                await self._wake.wait()

    def _due(self) -> list[PeerId]:
        """Whom to ask now: of those who can speak for the widest scope one at each address, until enough have."""
        now = trio.current_time()
        settled = self.facts.reach != "unknown" or self.facts.scope == "machine"
        every = self._limits.ask_again_s if settled else min(AGAIN_SOON_S, self._limits.ask_again_s)
        fresh = {peer for peer, at in self._asked.items() if now - at < every}
        seats = {peer: seat for peer in self._host.connected() if (seat := self._seat(peer))}
        widest = max(map(breadth, seats.values()), default=0)
        heard = {one.seat for peer, one in self._observations.items() if peer in fresh and breadth(one.seat) == widest}
        due: dict[str, PeerId] = {}
        for peer, seat in seats.items():
            if breadth(seat) == widest and seat not in heard and peer not in fresh and peer not in self._mute:
                due.setdefault(seat, peer)
        return list(due.values())[: max(0, self._limits.observers - len(heard))]

    def _seat(self, peer: PeerId) -> str:
        """Where a peer is, over a direct connection; "" when there is none."""
        ends = (sockets.endpoint(connection.muxed_conn) for connection in self._host.connections(peer, relayed=False))
        return next((end.remote_ip for end in ends if end is not None), "")

    async def _ask(self, peer: PeerId) -> None:
        self._asked[peer] = trio.current_time()
        try:
            with (
                trio.move_on_after(self._limits.dial_back_s + 2 * MESSAGE_S),
                self._host.network.awaiting(ID.from_base58(peer)) as arrived,
            ):
                await self._converse(peer, arrived)
        except ProtocolRefused:
            self._mute.add(peer)
        except (StreamLost, ProtocolViolation, ValueError) as error:
            log.debug("asking a peer how it sees this node: %s", error)
        except LOST as error:
            log.debug("asking a peer how it sees this node: %s", type(error).__name__)

    async def _converse(self, peer: PeerId, arrived: trio.Event) -> None:
        stream = await self._host.open_stream(peer, PROTOCOL, relayed=False)
        try:
            end = stream.endpoint
            if end is None:
                return
            port = self._port_on(end.local_ip)
            await stream.write(encode(Ask(port)))
            incoming = Incoming(stream, MESSAGE_S)
            seen = await _receive(incoming, Seen)
            observation = Observation(
                observer=peer,
                seat=end.remote_ip,
                ip=seen.ip,
                port=seen.port,
                local_port=end.local_port if end.dialled else 0,
                listener=port,
            )
            if scope_of(seen.ip) == "none":
                raise ProtocolViolation("the peer says that this node has an impossible address")
            self._observed(observation)
            said = await _receive(incoming, DialledBack)
            if said.ok:
                with trio.move_on_after(ARRIVAL_S):
                    await arrived.wait()
                if not arrived.is_set():
                    self.lies += 1
                    return
            came = True if arrived.is_set() else said.ok
            self._observed(msgspec.structs.replace(observation, dialled_back=came, why=said.why))
        finally:
            await stream.close()

    def _port_on(self, local_ip: str) -> int:
        """The port of the listener that takes what comes to an address of this machine; 0: there is none."""
        listening = self._host.listening()
        exact = [port for ip, port in listening if ip == local_ip]
        wild = [port for ip, port in listening if addresses.is_wildcard(ip) and (":" in ip or ":" not in local_ip)]
        return next(iter([*exact, *wild]), 0)

    def _observed(self, observation: Observation) -> None:
        self._observations[observation.observer] = observation
        now = trio.current_time()
        for peer in list(self._observations):
            if now - self._asked.get(peer, -math.inf) > self._limits.ask_again_s + MINUTE_S:
                del self._observations[peer]
        machine = set(addresses.machine_addresses())
        facts = conclude(self._observations.values(), machine=machine, wanted=self._limits.confirmations)
        self.known.set()
        if facts == self.facts:
            return
        before, self.facts = self.facts, facts
        public = facts.reach == "public" and facts.scope == "internet" and facts.nat != "none"
        self._host.external = tuple((ip, facts.port) for ip in facts.ips) if public and facts.port else ()
        if (before.reach, before.nat) != (facts.reach, facts.nat):
            log.info("reachability", extra={"reach": facts.reach, "nat": facts.nat, "observers": facts.observers})
        if self._on_change is not None:
            self._on_change()

    # -- answering -----------------------------------------------------------------------------------------------

    async def _serve(self, stream: P2pStream) -> None:
        end = stream.endpoint
        with trio.move_on_after(self._limits.dial_back_s + 2 * MESSAGE_S):
            ask = await _receive(Incoming(stream, MESSAGE_S), Ask)
            if end is None:
                return  # through a relay there is nothing to see
            await stream.write(encode(Seen(end.remote_ip, end.remote_port)))
            await stream.write(encode(await self._dial_back(stream.remote, end.remote_ip, ask.port)))
            await stream.close_write()

    async def _dial_back(self, peer: PeerId, ip: str, port: int) -> DialledBack:
        now = time.monotonic()
        if not port:
            return DialledBack(why="no port was given")
        if not self._may_ask(peer):
            return DialledBack(why="this is not done for strangers")
        # All three are asked: who is refused by one must not use up another, so the widest comes last.
        allowed = self._per_peer.take(peer, now) and self._per_ip.take(ip, now) and self._in_all.take("all", now)
        if not allowed:
            self.refused += 1
            return DialledBack(why="asked too often; ask again in a minute")
        async with self._dialling:
            self.dialled_back += 1
            return await self._try(peer, ip, port)

    async def _try(self, peer: PeerId, ip: str, port: int) -> DialledBack:
        try:
            with trio.fail_after(self._limits.dial_back_s):
                await prove(self._host.network, ip, port, peer)
        except trio.TooSlowError:
            return DialledBack(False, f"no answer within {self._limits.dial_back_s:g} s")
        except OSError as error:
            return DialledBack(False, (error.strerror or str(error)).rpartition(": ")[2].lower()[:100])
        except Exception:  # whatever listens there, it is not the asker
            return DialledBack(False, "something else answers there")
        return DialledBack(True)


async def prove(network: Any, ip: str, port: int, peer: PeerId) -> None:
    """Dial from a fresh port as far as the handshake that proves it is `peer`, then hang up. Raises when it is not."""
    stream = await sockets.fresh(ip, port)
    try:
        raw = sockets.raw(stream, network.psk, initiator=True)
        await network.upgrader.upgrade_security(raw, True, ID.from_base58(peer))
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()
