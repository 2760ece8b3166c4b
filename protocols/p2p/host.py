"""A libp2p host that keeps its promises: TCP + Noise + Yamux, everything bounded, everything cancellable.

    host = Host(identity, listen=["/ip4/0.0.0.0/tcp/4001"])
    host.handle("/echo/1", echo)                       # async def echo(stream: P2pStream)
    async with host.running():
        await host.connect(peer_id, ["/ip4/192.0.2.7/tcp/4001"])
        stream = await host.open_stream(peer_id, "/echo/1")

What belongs here: dialling, listening, streams and the life of the host. The library's own code is mended in
`remedies.py`; admission of strangers is in `network.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from ..peer_id import Identity, PeerId
from . import addresses, identify, negotiation, remedies, sockets, telling
from .circuits import Circuits
from .closing import close, close_all, cut
from .dialling import Dial, is_live
from .errors import DialFailed, ListenFailed, NotConnected, ProtocolRefused, StreamLost
from .limits import HostLimits
from .network import Network, build
from .stream import LOST, P2pStream

log = logging.getLogger("shoal.p2p")

Handler = Callable[[P2pStream], Awaitable[None]]
PeerCallback = Callable[[PeerId], None]
ConnectionCallback = Callable[[PeerId, Any], None]

BARRED_S = 3.0  # that one who is barred may stay, to hear why on a stream of its own


class Host:
    """One node on the peer-to-peer network.

    `identity`: its key. `listen`: multiaddrs, may be empty. `psk`: the 32-byte key of a private swarm.
    """

    def __init__(
        self,
        identity: Identity,
        listen: Sequence[str] = (),
        psk: bytes | None = None,
        *,
        limits: HostLimits | None = None,
    ) -> None:
        if psk is not None and len(psk) != 32:
            raise ValueError("the key of a private swarm has 32 bytes")
        self.peer_id: PeerId = identity.peer_id
        self.limits = limits or HostLimits()
        self._identity = identity
        self._listen = list(listen)
        self._psk = psk
        self._handlers: dict[str, Handler] = {}
        self._refusals: dict[str, Handler] = {}  # what the barred get to hear
        self._on_connect: list[PeerCallback] = []
        self._on_disconnect: list[PeerCallback] = []
        self._on_connection: list[ConnectionCallback] = []
        self.external: tuple[tuple[str, int], ...] = ()  # (IP, port) where others were shown to reach this host
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._barred: set[PeerId] = set()
        self._known: set[PeerId] = set()  # of whom on_connect was told and on_disconnect not yet
        self._libp2p: Any = None
        self._network: Network | None = None
        self._nursery: trio.Nursery | None = None
        self._on_upgrade: list[PeerCallback] = []
        self.circuits = Circuits(self)
        self.handle(identify.PROTOCOL, identify.Identify(self).answer)

    # -- life ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Host]:
        """Listens and accepts until the block is left; then every connection is closed, within `limits.close_s`.

        ListenFailed when an address cannot be listened on.
        """
        remedies.apply()
        self._libp2p, network = build(self._identity.seed, self._psk, self.limits, self._advertised)
        self._network = network
        self._libp2p._push_identify_to_all_peers = _nothing  # one answer for all; peers are told by who uses this host
        network.set_stream_handler(self._guard(self._libp2p._swarm_stream_handler))
        network.register_notifee(_Notifee(self._connected))
        for protocol, handler in self._handlers.items():
            self._register(protocol, handler)
        try:
            async with self._libp2p.run([]), trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    for address in self._listen:
                        await self.listen(address)
                    yield self
                finally:
                    await self._shut_down()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The nurseries in here are our affair: an error of the caller's block leaves as it came.
            if (only := _sole(group)) is None:
                raise
            raise only from only.__cause__
        finally:
            self._nursery = self._network = self._libp2p = None

    async def _shut_down(self) -> None:
        network = self._running()
        network.admitting = False
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.limits.close_s):
            # 0.8.1 leaves 3 file descriptors and 9 tasks a connection without this (test_p2p_host: restarts).
            await close_all(network.get_connections())
            await self._libp2p.close()

    def _running(self) -> Network:
        if self._network is None:
            raise RuntimeError("the host is not running: enter `async with host.running()` first")
        return self._network

    # -- addresses -----------------------------------------------------------------------------------------------

    def addresses(self) -> list[str]:
        """Where others can dial this host, each with /p2p/ID; never a wildcard. Empty when it does not listen."""
        return [f"{addresses.to_text(*pair)}/p2p/{self.peer_id}" for pair in self._told()]

    def listening(self) -> list[tuple[str, int]]:
        """(IP address, port) of each listener as it was bound, a wildcard as such."""
        if self._libp2p is None:
            return []
        return [addresses.host_port(found) for found in self._libp2p.get_transport_addrs()]

    async def listen(self, address: str) -> list[str]:
        """Opens one more listener; gives what it adds to `addresses()`. ListenFailed with the reason."""
        network, before = self._running(), set(self.addresses())
        try:
            parsed = addresses.parse(address)
        except ValueError as error:
            raise ListenFailed(address, str(error)) from None
        if str(parsed) not in network.listeners:
            sockets.check_free(address, *addresses.host_port(parsed))
            if not await network.listen(parsed):
                raise ListenFailed(address, "the address cannot be bound")
        return [found for found in self.addresses() if found not in before]

    def _told(self) -> list[tuple[str, int]]:
        listening = self.listening()
        return list(dict.fromkeys([*self.external, *addresses.concrete(listening)])) if listening else []

    def told(self, remote_ip: str | None) -> list[tuple[str, int]]:
        """What a peer is told of this host's addresses; remote_ip: the other end of its connection, None: a relay."""
        return telling.for_peer(self._told(), addresses.machine_addresses(), remote_ip)

    def public_addresses(self) -> list[str]:
        """`addresses()` as far as they may be passed on to anybody (telling.py)."""
        pairs = telling.for_everyone(self._told(), addresses.machine_addresses())
        return [f"{addresses.to_text(*pair)}/p2p/{self.peer_id}" for pair in pairs]

    def is_here(self, peer_id: PeerId) -> bool:
        """Whether a peer is connected, and on this machine."""
        machine = addresses.machine_addresses()
        return any(telling.is_here(ip, machine) for ip in self.remote_ips(peer_id))

    def public_key(self) -> bytes:
        """In libp2p's spelling."""
        key: bytes = self._libp2p.get_public_key().serialize()
        return key

    def protocols(self) -> list[str]:
        """What this host answers."""
        return [str(name) for name in self._libp2p.get_mux().get_protocols() if name is not None]

    def _advertised(self, candidates: list[Any]) -> list[Any]:
        pairs = telling.for_everyone(self._told(), addresses.machine_addresses())
        return [Multiaddr(addresses.to_text(*pair)) for pair in pairs]

    # -- peers ---------------------------------------------------------------------------------------------------

    def connected(self) -> list[PeerId]:
        """The peers with a live connection."""
        if self._network is None:
            return []
        return [PeerId(str(peer)) for peer in list(self._network.connections) if self._live(peer)]

    def is_connected(self, peer_id: PeerId) -> bool:
        return self._network is not None and bool(self._live(_id(peer_id)))

    def on_connect(self, callback: PeerCallback) -> None:
        """`callback(peer)` when the first connection with a peer stands, whoever dialled."""
        self._on_connect.append(callback)

    def on_disconnect(self, callback: PeerCallback) -> None:
        """`callback(peer)` as soon as the last connection with a peer is gone."""
        self._on_disconnect.append(callback)

    def on_connection(self, callback: ConnectionCallback) -> None:
        """`callback(peer, connection)` for every connection that stands, a second or a relayed one, too."""
        self._on_connection.append(callback)

    @property
    def network(self) -> Network:
        """For the protocols of this folder. RuntimeError when the host is not running."""
        return self._running()

    def connections(self, peer_id: PeerId, *, relayed: bool | None = None) -> list[Any]:
        """The live connections with a peer, the newest first: all, those through a relay, or those without."""
        live = self._live(_id(peer_id)) if self._network is not None else []
        live.sort(key=lambda conn: -conn._created_at)  # an older one may be a dead line not yet noticed
        return [conn for conn in live if relayed is None or sockets.is_direct(conn.muxed_conn) != relayed]

    def remote_ips(self, peer_id: PeerId) -> list[str]:
        """The IP addresses at the other end of the direct connections with a peer."""
        ends = [sockets.endpoint(connection.muxed_conn) for connection in self.connections(peer_id, relayed=False)]
        return [end.remote_ip for end in ends if end is not None]

    def via(self, peer_id: PeerId) -> str:
        """How a stream to the peer would go: "direct", "relayed", or "" when there is no connection."""
        if self.connections(peer_id, relayed=False):
            return "direct"
        return "relayed" if self.connections(peer_id) else ""

    def relay_of(self, peer_id: PeerId) -> PeerId | None:
        """The relay through which a stream to the peer would go; None when it would go directly, or not at all."""
        if self.connections(peer_id, relayed=False) or not (through := self.connections(peer_id)):
            return None
        return PeerId(through[0].muxed_conn.relay)

    async def connect(self, peer_id: PeerId, addrs: Sequence[str]) -> None:
        """Sees to it that a live connection with the peer exists; returns at once when one does.

        All addresses are tried (dialling.py); the first that works wins. DialFailed says why each did not.
        """
        try:
            peer = _id(peer_id)
        except ValueError as error:
            raise DialFailed(peer_id, {"any": str(error)}) from None
        lock = self._dialling.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                if not self._live(peer):
                    network, nursery = self._running(), self._nursery
                    if peer_id == self.peer_id or nursery is None:
                        raise DialFailed(peer_id, {"any": "it is this node itself"})
                    late = partial(self._call, self._on_upgrade, peer_id)
                    await Dial(network, self.circuits, self.limits, peer_id, addrs).run(nursery, late=late)
        finally:
            if not lock.locked():
                self._dialling.pop(peer_id, None)

    async def disconnect(self, peer_id: PeerId) -> None:
        """Closes every connection with the peer, within about a second even when it takes no data."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.limits.close_s):
            await close_all(self._running().get_connections(_id(peer_id)))

    def on_upgrade(self, callback: PeerCallback) -> None:
        """`callback(peer)` when a direct address has worked after a dial that was settled by a relay."""
        self._on_upgrade.append(callback)

    async def disconnect_relayed(self, peer_id: PeerId) -> None:
        """Closes the connections with the peer that run through a relay."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.limits.close_s):
            await close_all(self.connections(peer_id, relayed=True))

    async def drop_dead(self, peer_id: PeerId, protocol: str, limit_s: float) -> None:
        """Closes the direct connections with the peer if none answers within `limit_s`, asked for `protocol`."""
        before = self.connections(peer_id, relayed=False)
        try:
            await (await self.open_stream(peer_id, protocol, relayed=False, deadline_s=limit_s)).close()
        except ProtocolRefused:
            return  # that is an answer
        except StreamLost:
            for connection in before:
                await cut(connection)

    async def disconnect_unused(self, peer_id: PeerId) -> None:
        """Closes the connections with the peer on which no stream is open."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.limits.close_s):
            await close_all([conn for conn in self.connections(peer_id) if not conn.muxed_conn.streams])

    def is_barred(self, peer_id: PeerId) -> bool:
        return peer_id in self._barred

    def bar(self, peer_id: PeerId) -> None:
        """Closes every connection with the peer, and each that it makes from now on, once it was told why (`handle`)
        or after 3 s."""
        self._barred.add(peer_id)
        if self._nursery is not None and self.is_connected(peer_id):
            self._nursery.start_soon(self.disconnect, peer_id)

    def unbar(self, peer_id: PeerId) -> None:
        self._barred.discard(peer_id)

    def _live(self, peer: Any) -> list[Any]:
        return [conn for conn in self._running().get_connections(peer) if is_live(conn)]

    async def _connected(self, connection: Any) -> None:
        # Called for every connection. Watching the muxer tells of its end 200 ms before the library's own notice.
        peer_id = PeerId(str(connection.muxed_conn.peer_id))
        if self._nursery is not None:
            self._nursery.start_soon(self._watch, connection, peer_id)
            if peer_id in self._barred:
                self._nursery.start_soon(self._turn_out, connection)
                return
            sockets.notice_silence(connection.muxed_conn, self.limits.silent_line_s)
            if peer_id not in self._known:
                self._known.add(peer_id)
                self._call(self._on_connect, peer_id)
            self._call(self._on_connection, peer_id, connection)

    async def _turn_out(self, connection: Any) -> None:
        if self._refusals:
            with trio.move_on_after(BARRED_S):
                await connection.muxed_conn.event_shutting_down.wait()
        await close(connection)

    async def _watch(self, connection: Any, peer_id: PeerId) -> None:
        await connection.muxed_conn.event_shutting_down.wait()
        if peer_id in self._known and not self._live(connection.muxed_conn.peer_id):
            self._known.discard(peer_id)
            self._call(self._on_disconnect, peer_id)

    def _call(self, callbacks: Iterable[Callable[..., None]], peer_id: PeerId, *more: Any) -> None:
        for callback in callbacks:
            try:
                callback(peer_id, *more)
            except Exception:
                log.exception("a callback for %s failed", peer_id)

    def beside(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Runs a task of this folder's until the host ends. It must not raise."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *args)

    # -- streams -------------------------------------------------------------------------------------------------

    def handle(self, protocol: str, handler: Handler, *, barred: Handler | None = None) -> None:
        """`handler(stream)` serves every stream that a peer opens for `protocol`.

        The stream is closed when it returns and reset when it raises; StreamLost may leave it freely. barred: serves
        those of barred peers, whose connection is closed afterwards; None: they are reset.
        """
        self._handlers[protocol] = handler
        if barred is not None:
            self._refusals[protocol] = barred
        if self._libp2p is not None:
            self._register(protocol, handler)

    def _register(self, protocol: str, handler: Handler) -> None:
        async def serve(net_stream: Any) -> None:
            stream = P2pStream(net_stream, protocol, PeerId(str(net_stream.muxed_conn.peer_id)))
            try:
                if stream.remote in self._barred:
                    await self._refuse(stream, protocol)
                    return
                await handler(stream)
            except StreamLost as error:
                log.debug("%s with %s: %s", protocol, stream.remote, error)
                await stream.reset()
            except BaseException:
                await stream.reset()
                raise
            finally:
                await stream.close()

        self._libp2p.set_stream_handler(protocol, serve)

    async def _refuse(self, stream: P2pStream, protocol: str) -> None:
        if (refusal := self._refusals.get(protocol)) is None:
            await stream.reset()
            return
        with trio.move_on_after(BARRED_S):
            await refusal(stream)
        await self.disconnect(stream.remote)

    def _guard(self, negotiate_and_handle: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        # In 0.8.1 an exception in any handler ends the host and the whole trio run.
        running: Counter[int] = Counter()

        async def guarded(net_stream: Any) -> None:
            conn = id(net_stream.muxed_conn)
            running[conn] += 1
            try:
                if running[conn] > self.limits.inbound_streams_per_connection:
                    await net_stream.reset()
                    return
                await negotiate_and_handle(net_stream)
            except LOST:
                pass
            except Exception as error:
                # Only the kind and the place: the text may carry what a peer sent.
                log.warning("the handler of %s failed: %s", net_stream.get_protocol(), type(error).__name__)
                log.debug("where it failed", exc_info=error)
            finally:
                running[conn] -= 1
                if not running[conn]:
                    del running[conn]
                # 0.8.1 keeps a stream that nobody closed for ever, slot and all.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0), contextlib.suppress(*LOST):
                    await net_stream.muxed_stream.close()

        return guarded

    async def open_stream(
        self, peer_id: PeerId, protocol: str, *, deadline_s: float | None = None, relayed: bool | None = None
    ) -> P2pStream:
        """A new stream for `protocol` on a live connection; whoever calls this closes it.

        relayed: only through a relay, or only without one; None: without one if there is such a connection.
        NotConnected, ProtocolRefused, or StreamLost when no answer comes in time. Cancelled, it leaves nothing.
        """
        deadline_s = self.limits.negotiation_s if deadline_s is None else deadline_s
        if relayed is None:
            live = self.connections(peer_id, relayed=False) or self.connections(peer_id)
        else:
            live = self.connections(peer_id, relayed=relayed)
        if not live:
            raise NotConnected(f"there is no connection to {peer_id}")
        connection = live[0]
        if len(connection.muxed_conn.streams) >= self.limits.streams_per_connection:
            raise StreamLost(f"{self.limits.streams_per_connection} streams with {peer_id} are open already")
        stream = None
        try:
            with trio.fail_after(deadline_s):
                # A cancelled open would leak one of the connection's 256 slots; it only takes a write to end.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + deadline_s):
                    stream = P2pStream(await connection.new_stream(), protocol, peer_id)
                if stream is None:
                    raise trio.TooSlowError
                await negotiation.select(stream, protocol)
        except trio.TooSlowError:
            await _reset(stream)
            raise StreamLost(f"{peer_id} did not answer within {deadline_s:g} s") from None
        except LOST as error:
            await _reset(stream)
            raise StreamLost(f"the connection to {peer_id} ended: {type(error).__name__}") from None
        except BaseException:
            await _reset(stream)
            raise
        return stream


class _Notifee:
    """Tells the host of connections; libp2p's INotifee by shape."""

    def __init__(self, connected: Callable[[Any], Awaitable[None]]) -> None:
        self._connected = connected

    async def connected(self, network: Any, connection: Any) -> None:
        await self._connected(connection)

    async def _nothing(self, network: Any, subject: Any) -> None:
        pass

    disconnected = opened_stream = closed_stream = listen = listen_close = _nothing


async def _nothing() -> None:
    pass


def _id(peer_id: str) -> Any:
    """The library's form of a peer id; ValueError when it is none. Peers of other kinds may have RSA ids ("Qm...")."""
    try:
        peer = ID.from_base58(peer_id)
    except (ValueError, KeyError):
        peer = None
    if peer is None or len(peer.to_bytes()) not in (34, 38):
        raise ValueError(f"not a peer id: {peer_id[:64]!r}")
    return peer


async def _reset(stream: P2pStream | None) -> None:
    if stream is not None:
        await stream.reset()


def _sole(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The one exception in a group, however deep; None when there are several."""
    only: BaseException = group
    while isinstance(only, BaseExceptionGroup):
        if len(only.exceptions) != 1:
            return None
        only = only.exceptions[0]
    return only
