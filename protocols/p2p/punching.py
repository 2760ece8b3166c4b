"""From a relayed connection to a direct one: both sides dial at the same moment, so that each NAT takes the other's
packets for answers (DCUtR, https://github.com/libp2p/specs/blob/master/relay/DCUtR.md).

libp2p 0.8.1's own DCUtR dials private addresses first, cannot tell a NAT that changes ports, and cuts whatever still
runs over the relay after 60 s. Here both sides first say what they know of themselves (dcutr_message.py), come to one
plan (reachability.py), and dial only where that can work: who can be dialled is dialled plainly; where a port cannot be
foretold nobody dials. On the connection that punching makes, who got SYNC is the client of the handshake. It dials
first: its SYN either opens its own NAT or meets the other's listener, which is a server, too.

    punching = Punching(host, autonat, limits, on_direct=swarm.moved)
    async with host.running(), autonat.running(), punching.running():
        ...                                 # every relayed connection is upgraded by itself where it can be

What runs over the relayed connection is left alone; that connection is closed once no stream is on it any more.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from ..peer_id import PeerId
from . import addresses, sockets
from .autonat import Allowance, AutoNat
from .dcutr_message import CONNECT, MAX_MESSAGE_BYTES, PROTOCOL, SYNC, HolePunch, decode, frame
from .errors import P2pError, ProtocolRefused, ProtocolViolation, StreamLost
from .host import Host
from .incoming import Incoming
from .nat_limits import NatLimits
from .network import came_in_mark
from .reachability import Facts, Plan, may_initiate, plan, scope_of, worth_dialling
from .stream import P2pStream

log = logging.getLogger("shoal.p2p.nat")

MESSAGE_S = 5.0
KNOWN_S = 3.0  # that an own observer gets to say how this node is seen, before the first try
OTHER_SIDE_S = 1.5  # after which the side that has called begins, when the called one has not
HEAD_START_S = 0.05  # that the client's SYN gets, beyond half a round trip
REDIAL_S = 0.25  # after a SYN that was refused: the other side's may not have left yet
AGAIN_SOON_S = 30.0  # after the first tries in vain; doubled with each round, up to the limit
ALIVE_S = 5.0  # for an answer on a direct connection beside which a relayed one has come up; a busy node is not dead
CHECK_S = 1.0  # between two looks at whether a relayed connection is still in use
SERVED_PER_MINUTE = 12  # tries that a peer may begin

IMPOSSIBLE = {
    "changes-ports": "the NAT here changes ports, so no direct connection can be punched",
    "theirs": "the NAT of the peer changes ports, so no direct connection can be punched",
    "nowhere": "the peer has told no address that could be dialled",
    "unspoken": "the peer does not punch",
    "in vain": "punching was tried in vain; the relay stays in use",
}


class Punching:
    """on_direct: called with a peer to which this node has dialled a direct connection beside a relayed one.

    notes: by peer on a relay, why it stays there. made, failed: tries, since the start.
    """

    def __init__(
        self,
        host: Host,
        autonat: AutoNat,
        limits: NatLimits,
        *,
        on_direct: Callable[[PeerId], None] | None = None,
        allowed: Callable[[PeerId], bool] = lambda peer: True,
    ) -> None:
        self.notes: dict[PeerId, str] = {}
        self.made = self.failed = 0
        self._host, self._autonat, self._limits = host, autonat, limits
        self._on_direct, self._allowed = on_direct, allowed
        self._nursery: trio.Nursery | None = None
        self._tended: set[PeerId] = set()
        self._busy: dict[PeerId, trio.CancelScope] = {}  # a try is under way
        self._allowance = Allowance(SERVED_PER_MINUTE)
        self._news = trio.Event()  # replaced at each change of connections or facts
        if limits.punch:
            host.on_connection(self._connected)
            host.on_disconnect(lambda peer: self.changed())
            host.handle(PROTOCOL, self._serve)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Punching]:
        """Upgrades relayed connections until the block is left. Host and AutoNat must be running around it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield self
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    def changed(self) -> None:
        """Connections or facts are not what they were: whoever waits looks again."""
        news, self._news = self._news, trio.Event()
        news.set()

    # -- when to try ---------------------------------------------------------------------------------------------

    def _connected(self, peer: PeerId, connection: Any) -> None:
        direct = sockets.is_direct(connection.muxed_conn)
        self.changed()
        if direct and connection.muxed_conn.is_initiator and self._is_relayed(peer) and self._on_direct is not None:
            self._on_direct(peer)
        if direct or self._nursery is None:
            return
        if self._is_direct(peer):  # why does the peer come through a relay? It may have found that one dead
            self._nursery.start_soon(self._host.drop_dead, peer, PROTOCOL, ALIVE_S)
        if peer not in self._tended:
            self._tended.add(peer)
            self._nursery.start_soon(self._tend, peer, not connection.muxed_conn.is_initiator)

    def _is_direct(self, peer: PeerId) -> bool:
        return bool(self._host.connections(peer, relayed=False))

    def _is_relayed(self, peer: PeerId) -> bool:
        return bool(self._host.connections(peer, relayed=True))

    async def _tend(self, peer: PeerId, called: bool) -> None:
        """As long as there is a relayed connection with the peer. called: it was made by the peer."""
        try:
            with trio.move_on_after(KNOWN_S):
                await self._autonat.known.wait()
            await self._until_direct(peer, 0.0 if called else OTHER_SIDE_S)
            rounds = 0
            while self._is_relayed(peer):
                if self._is_direct(peer):
                    rounds = 0
                    await self._retire(peer)
                else:
                    await self._try_some(peer, min(self._limits.punch_again_s, AGAIN_SOON_S * 2.0**rounds))
                    rounds += 1
        finally:
            self._tended.discard(peer)
            self.notes.pop(peer, None)

    async def _try_some(self, peer: PeerId, pause_s: float) -> None:
        """A few tries; then wait until another one is worth it, after tries in vain `pause_s` seconds at most."""
        state, before, gap = self._state(), self.notes.get(peer), self._limits.punch_gap_s
        for _ in range(self._limits.punch_tries):
            while peer in self._busy and not self._is_over(peer):
                await self._until_direct(peer, CHECK_S)  # the peer has begun one
            if self._is_over(peer):
                return
            final = await self._try(peer)
            if self._is_over(peer):
                return
            if final:
                self.notes[peer], pause_s = final, self._limits.punch_again_s
                break
            await self._until_direct(peer, gap)
            gap *= 2
        else:
            self.notes[peer] = IMPOSSIBLE["in vain"]
        if self.notes[peer] != before:
            log.info("a peer stays on its relay: %s", self.notes[peer], extra={"peer": peer})
        with trio.move_on_after(pause_s):
            while not self._is_over(peer) and self._state() == state:
                await self._news.wait()

    def _is_over(self, peer: PeerId) -> bool:
        return self._is_direct(peer) or not self._is_relayed(peer)

    async def _until_direct(self, peer: PeerId, limit_s: float) -> bool:
        """Whether there is a direct connection, or the relayed one has ended, within so many seconds."""
        with trio.move_on_after(limit_s):
            while not self._is_over(peer):
                await self._news.wait()
        return self._is_direct(peer)

    async def _retire(self, peer: PeerId) -> None:
        """Close the relayed connection beside a direct one, when nothing has been on it for a while."""
        idle_since = trio.current_time()
        while self._is_direct(peer) and (relayed := self._host.connections(peer, relayed=True)):
            now = trio.current_time()
            if any(connection.muxed_conn.streams for connection in relayed):
                idle_since = now
            if now - idle_since >= self._limits.relayed_idle_s:
                await self._host.disconnect_relayed(peer)
                return
            await trio.sleep(CHECK_S)

    # -- one try -------------------------------------------------------------------------------------------------

    def _mine(self) -> Facts:
        """What this side knows of itself; without a listener there is no port that could be foretold."""
        facts = self._autonat.facts
        return facts if facts.port else Facts(nat="changes-ports")

    def _state(self) -> tuple[object, ...]:
        """What a plan goes by: when it is another one, another try may be worth it."""
        mine = self._mine()
        return mine.reach, mine.nat, mine.ips, mine.port

    def _pairs(self) -> tuple[tuple[str, int], ...]:
        """Where this node is seen, then its own addresses, for peers behind the same NAT."""
        facts = self._autonat.facts
        seen = [(ip, facts.port) for ip in facts.ips if facts.port]
        own = [pair for pair in addresses.concrete(self._host.listening()) if scope_of(pair[0]) == "network"]
        return tuple(dict.fromkeys([*seen, *own]))

    async def _try(self, peer: PeerId) -> str:
        """One try from this side. Why no other is worth it; "" when one is, or none is needed."""
        mine = self._mine()
        if not may_initiate(mine):
            return IMPOSSIBLE["changes-ports"]
        with trio.CancelScope() as scope:
            self._busy[peer] = scope
            try:
                return await self._initiate(peer, mine)
            except ProtocolRefused:
                return IMPOSSIBLE["unspoken"]
            except (P2pError, trio.TooSlowError) as error:
                log.debug("a try to punch came to nothing: %s", error)
            finally:
                self._ended(peer, scope)
        return ""

    def _ended(self, peer: PeerId, scope: trio.CancelScope) -> None:
        if self._busy.get(peer) is scope:
            del self._busy[peer]
        self.changed()

    async def _initiate(self, peer: PeerId, mine: Facts) -> str:
        stream = await self._host.open_stream(peer, PROTOCOL, relayed=True)
        try:
            with trio.fail_after(MESSAGE_S):
                started = trio.current_time()
                await stream.write(frame(HolePunch(CONNECT, self._pairs(), mine)))
                theirs = await _receive(Incoming(stream, MESSAGE_S), CONNECT)
                rtt_s = trio.current_time() - started
                way = plan(mine, theirs.facts or Facts())
                pairs = self._worth(theirs)
                if way == "none":
                    return IMPOSSIBLE["theirs"]
                if way != "receiver-dials" and not pairs:
                    return IMPOSSIBLE["nowhere"]
                if way != "initiator-dials":
                    await stream.write(frame(HolePunch(SYNC)))
        finally:
            await stream.close()
        if way == "punch":
            await trio.sleep(rtt_s / 2 + HEAD_START_S)
        if way == "receiver-dials":
            await self._until_direct(peer, self._limits.punch_s)
        else:
            await self._dial(peer, pairs, way, client=way == "initiator-dials")
        self._count(peer, way)
        return ""

    async def _serve(self, stream: P2pStream) -> None:
        peer = stream.remote
        if not stream.relayed or not self._allowed(peer) or not self._allowance.take(peer, trio.current_time()):
            return
        if (own := self._busy.get(peer)) is not None:
            if self._host.peer_id < peer:
                return  # both have begun: the smaller id's try goes on
            own.cancel()
        with trio.CancelScope() as scope:
            self._busy[peer] = scope
            try:
                await self._follow(stream, peer)
            except (P2pError, trio.TooSlowError) as error:
                log.debug("a peer's try to punch came to nothing: %s", error)
            finally:
                self._ended(peer, scope)

    async def _follow(self, stream: P2pStream, peer: PeerId) -> None:
        incoming, mine = Incoming(stream, MESSAGE_S), self._mine()
        with trio.fail_after(2 * MESSAGE_S):
            theirs = await _receive(incoming, CONNECT)
            await stream.write(frame(HolePunch(CONNECT, self._pairs(), mine)))
            way = plan(theirs.facts or Facts(), mine)
            if way in ("none", "initiator-dials"):
                return
            await _receive(incoming, SYNC)
        await self._dial(peer, self._worth(theirs), way, client=True)
        self._count(peer, way)

    def _worth(self, theirs: HolePunch) -> list[tuple[str, int]]:
        return worth_dialling(theirs.pairs, mine=self._autonat.facts.ips, machine=addresses.machine_addresses())

    def _count(self, peer: PeerId, way: Plan) -> None:
        direct = self._is_direct(peer)
        self.made, self.failed = self.made + direct, self.failed + (not direct)
        log.info("direct" if direct else "no direct connection yet", extra={"peer": peer, "plan": way})

    # -- dialling ------------------------------------------------------------------------------------------------

    async def _dial(self, peer: PeerId, pairs: list[tuple[str, int]], way: Plan, *, client: bool) -> None:
        """Dial all the addresses at once until there is a direct connection, for `punch_s` seconds at most."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + self._limits.punch_s
            for pair in pairs:
                nursery.start_soon(self._dial_one, peer, pair, way == "punch", client)
            await self._until_direct(peer, self._limits.punch_s)
            nursery.cancel_scope.cancel()

    async def _dial_one(self, peer: PeerId, pair: tuple[str, int], punch: bool, client: bool) -> None:
        came_in_mark.set(False)  # a hole is no proof that anybody can dial this node
        while True:
            try:
                await self._attempt(peer, pair, self._source(pair[0]) if punch else None, client)
            except OSError as error:
                log.debug("dialling for a hole: %s", error.strerror or error)
            except Exception as error:  # whatever answers there, it is not the peer
                log.debug("dialling for a hole: %s", type(error).__name__)
            else:
                return
            await trio.sleep(REDIAL_S)

    async def _attempt(self, peer: PeerId, pair: tuple[str, int], source: tuple[str, int] | None, client: bool) -> None:
        network, wanted = self._host.network, ID.from_base58(peer)
        stream = await (sockets.fresh(*pair) if source is None else sockets.from_port(*pair, source))
        try:
            if client:
                await network.upgrade_outbound_raw_conn(sockets.raw(stream, network.psk, initiator=True), wanted)
                return
            address = Multiaddr(addresses.to_text(*pair))
            # This way in wraps the connection in a private swarm's key by itself; the way out does not.
            muxed = await network.upgrade_inbound_raw_conn(sockets.raw(stream, None, initiator=False), address)
            if muxed.peer_id != wanted:
                await muxed.close()
                raise ProtocolViolation("somebody else answers there")
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.aclose()
            raise

    def _source(self, target: str) -> tuple[str, int]:
        """The listener whose port the hole is for, as one binds to it."""
        port, wild = self._autonat.facts.port, "::" if ":" in target else "0.0.0.0"  # noqa: S104  # as the listener does
        fitting = [ip for ip, bound in self._host.listening() if bound == port and (":" in ip) == (":" in target)]
        beyond = [ip for ip in fitting if not addresses.is_wildcard(ip) and scope_of(ip) != "machine"]
        return (wild if wild in fitting else next(iter(beyond), wild), port)


async def _receive(incoming: Incoming, kind: int) -> HolePunch:
    size = await incoming.size()
    if size is None:
        raise StreamLost("the peer does not want to punch now")
    if size > MAX_MESSAGE_BYTES:
        raise ProtocolViolation("a message about a hole is too long")
    message = decode(await incoming.take(size))
    if message.kind != kind:
        raise ProtocolViolation("a message about a hole came out of turn")
    return message
